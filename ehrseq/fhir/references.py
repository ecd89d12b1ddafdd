"""What the references of a source stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from urllib.parse import parse_qs

SEQUENCES = ("MolecularSequence/", "Sequence/")  # an Observation that is derived from one of them may date it
_DATED = ("Observation", "MolecularSequence", "Sequence")
DATED_BY_OTHERS = f"^({'|'.join(_DATED)})/"
"""Targets that stand for the record itself, in place of an encounter: a report or an Observation may date it."""


def subject_number(identity: str) -> int:
    """The `subject_id` of a FHIR identity: 63 bits of its hash, never 0.

    >>> subject_number("Patient/p") == subject_number("Patient/p") > 0
    True
    """
    return (int.from_bytes(blake2b(identity.encode(), digest_size=8).digest(), "big") >> 1) or 1


def named_target(reference: str) -> str | None:
    """`Type/id` where a reference says it itself: relative, absolute (the server is not looked at), versioned.

    >>> named_target("http://x.org/fhir/Encounter/9/_history/2"), named_target("Patient/7")
    ('Encounter/9', 'Patient/7')
    >>> named_target("#p1"), named_target("urn:uuid:1"), named_target("Patient?identifier=x|7")
    (None, None, None)
    """
    if reference.startswith(("#", "urn:")) or "?" in reference:
        return None
    parts = reference.partition("/_history/")[0].rsplit("/", 2)
    if len(parts) < 2 or not parts[-1] or not parts[-2].isalpha():
        return None
    return f"{parts[-2]}/{parts[-1]}"


UNKNOWN, ANYTHING, A_PATIENT, AN_ENCOUNTER, A_RESULT = range(5)
_POINTS_AT = {"Patient": A_PATIENT, "Encounter": AN_ENCOUNTER} | dict.fromkeys(_DATED, A_RESULT)


def points_at(target: str | None) -> int:
    """What a `Type/id` is, as far as linking asks: one of the numbers above.

    >>> points_at("Patient/7") == A_PATIENT, points_at("Claim/7") == ANYTHING, points_at(None) == UNKNOWN
    (True, True, True)
    """
    return UNKNOWN if target is None else _POINTS_AT.get(target.partition("/")[0], ANYTHING)


def wanted_identifier(reference: str) -> str | None:
    """The identifier that a conditional reference asks for, as `system|value`, or the value alone.

    >>> wanted_identifier("Patient?identifier=http://x.org|7"), wanted_identifier("Patient?identifier=|7")
    ('http://x.org|7', '7')
    """
    if "?" not in reference:
        return None
    wanted = parse_qs(reference.partition("?")[2]).get("identifier", [""])[0]
    return wanted.removeprefix("|") or None


class Resolver:
    """Turns a reference as written into `Type/id`.

    What the reference does not say itself (see `named_target`) is looked up: the name of a bundle's entry
    (`urn:uuid:...`), or, where it is conditional (`Patient?identifier=...`), the one patient with the identifier.
    """

    def __init__(self, names: Mapping[str, str], identifiers: Iterable[tuple[str, str]]) -> None:
        self.names = names  # of bundle entries -> Type/id, empty where it is not one thing
        self.identifiers: dict[str, str | None] = {}
        for identifier, target in identifiers:
            for key in {identifier, identifier.partition("|")[2]}:
                if self.identifiers.setdefault(key, target) != target:
                    self.identifiers[key] = None

    def __call__(self, reference: str) -> str | None:
        """`Type/id`, or None for what cannot be resolved.

        >>> resolve = Resolver({"urn:uuid:1-2": "Patient/a"}, [("http://x.org|7", "Patient/b")])
        >>> resolve("urn:uuid:1-2"), resolve("Patient?identifier=http://x.org|7"), resolve("#p1")
        ('Patient/a', 'Patient/b', None)
        """
        target = self.names.get(reference)
        if target is not None:
            return target or None
        if (wanted := wanted_identifier(reference)) is not None:
            return self.identifiers.get(wanted)
        return named_target(reference)


def medication_codes(
    coded: Mapping[str, str | None], made_of: Mapping[str, tuple[list[str], list[str]]], resolve: Resolver
) -> dict[str, list[str]]:
    """The codes of what each Medication without a code is made of (three steps deep), by `Medication/id`.

    `coded` gives the code of every Medication, `made_of` the codes of ingredients and the references to others.

    >>> made_of = {"Medication/m": (["A//1"], ["Medication/n"])}
    >>> medication_codes({"Medication/m": None, "Medication/n": "A//2"}, made_of, Resolver({}, []))
    {'Medication/m': ['A//1', 'A//2']}
    """

    def codes(target: str | None, depth: int) -> list[str]:
        if not depth:
            return []
        if (code := coded.get(target or "")) is not None:
            return [code]
        ingredients, references = made_of.get(target or "", ([], []))
        found = [c for r in references for c in codes(resolve(r), depth - 1)]
        return list(dict.fromkeys(ingredients + found))

    return {target: codes(target, 4) for target in made_of}
