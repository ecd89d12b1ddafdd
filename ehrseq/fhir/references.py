"""What the references of a source stand for, looked up once each."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import parse_qs

from ehrseq.fhir.rows import MedicationFacts, PatientFacts


class Resolver:
    """Turns a reference as written into `Type/id`.

    Relative (`Patient/7`), absolute (`https://.../Patient/7`, whose server is not looked at), versioned
    (`.../_history/2`), by the name of a bundle's entry (`urn:uuid:...`), and conditional (`Patient?identifier=...`,
    where one patient alone has the identifier).
    """

    def __init__(self, full_urls: dict[str, str], patients: Iterable[PatientFacts]) -> None:
        self.full_urls = full_urls
        self.identifiers: dict[str, str | None] = {}
        for patient in patients:
            target = f"Patient/{patient.id}"
            for identifier in patient.identifiers:
                for key in {identifier, identifier.partition("|")[2]}:
                    known = self.identifiers.setdefault(key, target)
                    if known != target:
                        self.identifiers[key] = None

    def __call__(self, reference: str) -> str | None:
        """`Type/id`, or None for what cannot be resolved.

        >>> resolve = Resolver({"urn:uuid:1-2": "Patient/a"}, [])
        >>> resolve("urn:uuid:1-2"), resolve("http://x.org/fhir/Encounter/9/_history/2"), resolve("#p1")
        ('Patient/a', 'Encounter/9', None)
        """
        target = self.full_urls.get(reference)
        if target is not None:
            return target or None
        if reference.startswith(("#", "urn:")):
            return None
        if "?" in reference:
            wanted = parse_qs(reference.partition("?")[2]).get("identifier", [""])[0]
            return self.identifiers.get(wanted.lstrip("|") if wanted.startswith("|") else wanted)
        parts = reference.partition("/_history/")[0].rsplit("/", 2)
        if len(parts) < 2 or not parts[-1] or not parts[-2].isalpha():
            return None
        return f"{parts[-2]}/{parts[-1]}"


def medication_codes(medications: list[MedicationFacts], resolve: Resolver) -> dict[str, list[int]]:
    """The code numbers of each Medication by `Medication/id`: its own, else its ingredients' (three steps deep)."""
    facts = {f"Medication/{m.id}": m for m in medications}

    def codes(target: str | None, depth: int) -> list[int]:
        medication = facts.get(target or "")
        if medication is None or not depth:
            return []
        if medication.code:
            return [medication.code]
        found = [c for r in medication.ingredient_references for c in codes(resolve(r), depth - 1)]
        return list(dict.fromkeys(medication.ingredient_codes + found))

    return {target: codes(target, 4) for target in facts}
