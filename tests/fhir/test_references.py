from __future__ import annotations

import pytest

from ehrseq.fhir.references import Resolver
from ehrseq.fhir.rows import PatientFacts


def person(name: str, *identifiers: str) -> PatientFacts:
    return PatientFacts(0, name, None, None, None, None, None, list(identifiers))


RESOLVE = Resolver(
    {"urn:uuid:1-2": "Patient/a", "http://x.org/Patient/old": "Patient/new", "urn:uuid:twice": ""},
    [person("a", "http://mrn|7", "http://other|8"), person("b", "http://mrn|9", "http://other|8")],
)


@pytest.mark.parametrize(
    ("reference", "target"),
    [
        ("Patient/a", "Patient/a"),
        ("https://x.org/fhir/Patient/a", "Patient/a"),
        ("Patient/a/_history/3", "Patient/a"),
        ("urn:uuid:1-2", "Patient/a"),
        ("http://x.org/Patient/old", "Patient/new"),
        ("Patient?identifier=http://mrn|7", "Patient/a"),
        ("Patient?identifier=http%3A%2F%2Fmrn%7C7", "Patient/a"),
        ("Patient?identifier=9", "Patient/b"),
        ("Patient?identifier=|9", "Patient/b"),
        ("Patient?identifier=http://other|8", None),
        ("Patient?identifier=http://mrn|1", None),
        ("Practitioner?name=x", None),
        ("urn:uuid:twice", None),
        ("urn:oid:1.2", None),
        ("#p", None),
        ("a", None),
        ("Patient/", None),
        ("", None),
    ],
)
def test_references(reference: str, target: str | None) -> None:
    assert RESOLVE(reference) == target
