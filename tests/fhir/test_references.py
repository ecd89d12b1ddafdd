from __future__ import annotations

import pytest

from ehrseq.fhir.references import Resolver

RESOLVE = Resolver(
    {"urn:uuid:1-2": "Patient/a", "http://x.org/Patient/old": "Patient/new", "urn:uuid:twice": ""},
    [
        ("http://mrn|7", "Patient/a"),
        ("http://other|8", "Patient/a"),
        ("http://mrn|9", "Patient/b"),
        ("http://other|8", "Patient/b"),
    ],
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
