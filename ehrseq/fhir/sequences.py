"""Sequences and their variants: `MolecularSequence`, which STU3 called `Sequence`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ehrseq.fhir.concepts import coded_pairs
from ehrseq.fhir.datatypes import Concept
from ehrseq.fhir.dating import POLICY, dated
from ehrseq.fhir.facts import PLAIN, Fact, Said
from ehrseq.fhir.ledger import Reason
from ehrseq.fhir.resource_findings import MolecularSequence, SequenceVariant

LONGEST = 50  # letters of an allele that a code spells out
_FIRST_IS_ONE = {"LA30102-0": True, "LA30101-2": False, "LA30100-4": False}  # coordinate systems of R5, by LOINC code
_ALLELE = re.compile(r"[A-Za-z*]+")
_ACCESSION = re.compile(r"[\w.*-]+")


def molecular_sequence(r: MolecularSequence) -> Said:
    """Each variant in SPDI notation (sequence : position : deleted : inserted, on the plus strand).

    The position counts what lies before it, so that 0 is before the first base: Holmes et al., Bioinformatics
    2020;36:1902-7. A sequence without variants is raw data. FHIR gives neither a date: they take the one of the
    Observation that is derived from them (see `timeline.link`).

    >>> from ehrseq.fhir.facts import preview
    >>> text = '''{"resourceType": "MolecularSequence", "coordinateSystem": 1, "referenceSeq": {"referenceSeqId":
    ...     {"coding": [{"system": "http://www.ncbi.nlm.nih.gov/nuccore", "code": "NT_007592.15"}]}},
    ...     "variant": [{"start": 18139214, "end": 18139214, "observedAllele": "A", "referenceAllele": "G"}]}'''
    >>> preview(molecular_sequence, text)
    [('VARIANT//SPDI//NT_007592.15:18139213:G:A', None, None)]
    """
    found = list(_variants(r))
    if not found:
        return Reason.REFERENCE_DATA
    when = dated(r, POLICY["MolecularSequence"])
    names = dict.fromkeys(spdi(*variant) for variant in found)
    return [Fact(PLAIN, f"VARIANT//SPDI//{name}", when) for name in names if name is not None]


def spdi(reference: Concept | None, first_is_one: bool | None, variant: SequenceVariant) -> str | None:
    """A variant's name; None where its place or its alleles are not told.

    An insertion lies between two bases: counted from 1, between `start` and the next one.

    >>> from ehrseq.fhir.datatypes import Coding
    >>> on = Concept(coding=[Coding("http://www.ncbi.nlm.nih.gov/nuccore", "NC_1.1")])
    >>> insertion = SequenceVariant(start=2, end=3, observed_allele="ATG", reference_allele="-")
    >>> spdi(on, True, insertion), spdi(on, False, SequenceVariant(start=6, end=7, observed_allele="-"))
    ('NC_1.1:2::ATG', 'NC_1.1:6:1:')
    """
    sequence = next((code for _, code in coded_pairs(reference) if code and _ACCESSION.fullmatch(code)), None)
    inserted = _allele(variant.observed_allele or variant.replacement_sequence)
    deleted = _allele(variant.reference_allele or variant.replaced_sequence)
    start, end = variant.start, variant.end
    if sequence is None or inserted is None or start is None or start < 0 or first_is_one is None:
        return None
    if deleted is None:  # SPDI may tell its length alone
        if end is None or end < start:
            return None
        deleted = str(end - start + first_is_one)
    return f"{sequence}:{start - (first_is_one and bool(deleted))}:{deleted}:{inserted}"


def _allele(written: str | None) -> str | None:
    """An allele in capitals, nothing for `-`; None where it is not told or too long for a code."""
    if written == "-":
        return ""
    return written.upper() if written and len(written) <= LONGEST and _ALLELE.fullmatch(written) else None


def _variants(r: MolecularSequence) -> Iterator[tuple[Concept | None, bool | None, SequenceVariant]]:
    """Each variant with its reference sequence (None: not named, or not read from its plus strand) and counting."""
    start = r.reference_seq
    named = start.reference_seq_id if start is not None and start.strand not in ("crick", -1) else None
    first_is_one = {0: False, 1: True}.get(-1 if r.coordinate_system is None else r.coordinate_system)
    for variant in r.variant or ():
        yield named, first_is_one, variant
    for part in r.relative or ():
        begin = part.starting_sequence
        named = begin.sequence_codeable_concept if begin is not None and begin.strand != "crick" else None
        systems = [_FIRST_IS_ONE[code] for _, code in coded_pairs(part.coordinate_system) if code in _FIRST_IS_ONE]
        for edit in part.edit or ():
            yield named, next(iter(systems), None), edit
