"""Genomic Observations, after the HL7 Genomics Reporting guide: what was found, as codes that a task can name.

    VARIANT//HGNC//<id>              a variant is present in this gene; its text is the allelic state
    VARIANT//<system>//<code>        a variant is present: its HGVS name, ClinVar, dbSNP or ISCN code, each of them
    GENOTYPE//HGNC//<id>             the genotype of this gene was determined; so HAPLOTYPE
    GENOTYPE//<system>//<code>       this genotype was found; so HAPLOTYPE
    SIGNIFICANCE//LOINC//LA6668-3    a finding of this clinical significance; its text is the condition
    IMPLICATION//<drug>/<effect>     what a finding means for a drug, or `IMPLICATION//<effect>`
    MICROSATELLITE//LOINC//LA14122-8 the status of microsatellites

They come beside the events that any Observation gives (`LOINC//69548-6` with its value, `LOINC//53034-5` with the
allelic state, `LOINC//82155-3` with the copy number, ...). Where a finding is absent, not called or indeterminate,
the Observation itself is the only event, with that as its value: nothing that it looked for is present.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ehrseq.fhir.codes import event_code
from ehrseq.fhir.concepts import coded_pairs
from ehrseq.fhir.datatypes import Concept
from ehrseq.fhir.dating import POLICY, dated
from ehrseq.fhir.facts import PLAIN, Fact, Said
from ehrseq.fhir.resource import Measured, Observation

GUIDE = "http://hl7.org/fhir/uv/genomics-reporting/CodeSystem/"
EXTENSION = "http://hl7.org/fhir/StructureDefinition/observation-genetics"  # of R4 and STU3, before the guide

# Codes of Observations -> the kind of finding. Implications have codes of the guide, or older LOINC ones.
KINDS = {
    "69548-6": "VARIANT",  # genetic variant assessment
    "84413-4": "GENOTYPE",
    "84414-2": "HAPLOTYPE",
    "81695-9": "MICROSATELLITE",
    "diagnostic-implication": "IMPLICATION",
    "therapeutic-implication": "IMPLICATION",
    "molecular-consequence": "IMPLICATION",
    "53037-8": "IMPLICATION",  # clinical significance
    "55233-1": "IMPLICATION",  # genetic analysis master panel, before the guide
    "51963-7": "IMPLICATION",  # medication assessed
}
GENE = "48018-6"
VARIANT_NAMES = {
    "48004-6",  # DNA change, c.HGVS
    "48005-3",  # amino acid change, p.HGVS
    "81290-9",  # genomic DNA change, g.HGVS
    "81252-9",  # variant ID: ClinVar, dbSNP, ...
    "81291-7",  # ISCN
}
ALLELIC_STATE = "53034-5"
SIGNIFICANCE = "53037-8"
CONDITION = "81259-4"
DRUG = {"51963-7", "associated-therapy"}
EFFECT = {"therapeutic-implication", "51961-1", "51971-0", "53040-2", "83009-1"}
# Answers that mean that nothing is known to be there; words of LOINC and SNOMED
NOT_PRESENT = {
    "LA9634-2",  # absent
    "LA18198-4",  # no call
    "LA18197-6",
    "LA11884-6",  # indeterminate
    "LA6577-6",  # negative
    "2667000",  # absent
    "260385009",  # negative
    "260415000",  # not detected
    "82334004",  # indeterminate
}
JUST_PRESENT = {"LA9633-4", "LA6576-8", "10828004", "52101004"}  # found, positive: no name of what was found
_HGVS = re.compile(r"[\w.()-]+:[cgmnpr]\.\S+")


def finding_kind(concept: Concept | None) -> str | None:
    """The kind of genomic finding that an Observation's code stands for; None where it is no such thing.

    >>> from ehrseq.fhir.datatypes import Coding
    >>> finding_kind(Concept(coding=[Coding("http://loinc.org", "69548-6")]))
    'VARIANT'
    """
    for system, code in coded_pairs(concept):
        if code in KINDS and system is not None and (system.endswith("loinc.org") or system.startswith(GUIDE)):
            return KINDS[code]
    return None


def is_present(r: Observation) -> bool:
    """Whether what was looked for was found: not where the value says that it was not, or that none is known.

    >>> from ehrseq.fhir.datatypes import Coding
    >>> absent = Concept(coding=[Coding("http://loinc.org", "LA9634-2")])
    >>> is_present(Observation(resource_type="Observation", value_codeable_concept=absent))
    False
    """
    if r.data_absent_reason is not None:
        return False
    return not any(code in NOT_PRESENT for _, code in coded_pairs(r.value_codeable_concept))


def genomic_findings(r: Observation) -> Said:
    """What a genomic Observation found, beyond what any Observation says. Nothing where it found nothing.

    >>> from ehrseq.fhir.facts import preview
    >>> text = '''{"resourceType": "Observation", "status": "final", "issued": "2016-09-06T00:00:00-05:00",
    ...     "code": {"coding": [{"system": "http://loinc.org", "code": "69548-6"}]},
    ...     "valueCodeableConcept": {"coding": [{"system": "http://loinc.org", "code": "LA9633-4"}]}, "component": [
    ...     {"code": {"coding": [{"system": "http://loinc.org", "code": "48018-6"}]}, "valueCodeableConcept":
    ...     {"coding": [{"system": "http://www.genenames.org", "code": "HGNC:1097"}]}},
    ...     {"code": {"coding": [{"system": "http://loinc.org", "code": "48005-3"}]}, "valueCodeableConcept":
    ...     {"coding": [{"system": "http://varnomen.hgvs.org", "code": "NP_004324.2:p.Val600Glu"}]}}]}'''
    >>> [code for code, *_ in preview(genomic_findings, text)]
    ['VARIANT//HGNC//1097', 'VARIANT//HGVS//NP_004324.2:p.Val600Glu']
    >>> preview(genomic_findings, text.replace("LA9633-4", "LA18198-4"))
    []
    """
    kind = _extended_kind(r) or finding_kind(r.code)
    if kind is None or not is_present(r):
        return []
    when = dated(r, POLICY["Observation (genomic)"])
    codes: dict[str, str | None] = {}
    if kind in ("VARIANT", "GENOTYPE", "HAPLOTYPE"):
        state = next(_values(r, {ALLELIC_STATE}), None)
        codes.update((f"{kind}//{code}", state) for code in _values(r, {GENE}) if "//" in code)
        if kind == "VARIANT":
            codes.update((f"VARIANT//{code}", None) for code in _values(r, VARIANT_NAMES))
    if kind in ("GENOTYPE", "HAPLOTYPE", "MICROSATELLITE"):
        names = [code for code in _codes(r.value_codeable_concept) if code.rsplit("//", 1)[-1] not in JUST_PRESENT]
        codes.update((f"{kind}//{code}", None) for code in names)
    condition = next(_values(r, {CONDITION}), None)
    significance = [*_values(r, {SIGNIFICANCE}), *(_codes(r.value_codeable_concept) if _is(r, SIGNIFICANCE) else ())]
    codes.update((f"SIGNIFICANCE//{code}", condition) for code in significance)
    drugs = [*_values(r, DRUG)]
    for effect in _values(r, EFFECT):
        codes.update((f"IMPLICATION//{drug}/{effect}", condition) for drug in drugs)
        if not drugs:
            codes[f"IMPLICATION//{effect}"] = condition
    return [Fact(PLAIN, code, when, text=text) for code, text in codes.items()]


def _is(r: Observation, code: str) -> bool:
    return any(c == code for _, c in coded_pairs(r.code))


def _extended_kind(r: Observation) -> str | None:
    """The kind of finding of an Observation that says so in the extensions which came before the guide."""
    names = [(e.url or "").removeprefix(EXTENSION) for e in r.extension or () if (e.url or "").startswith(EXTENSION)]
    if not names:
        return None
    return "VARIANT" if {"DNASequenceVariantName", "AminoAcidChange", "DNAVariantId"} & set(names) else "GENOTYPE"


_EXTENDED = {
    "Gene": {GENE},
    "DNASequenceVariantName": {"48004-6"},
    "AminoAcidChange": {"48005-3"},
    "AminoAcidChangeName": {"48005-3"},
    "DNAVariantId": {"81252-9"},
    "AllelicState": {ALLELIC_STATE},
}


def _values(r: Observation, wanted: set[str]) -> Iterator[str]:
    """Codes of the coded values of the components (or extensions) that have one of the codes."""
    for part in r.component or ():
        if not part.modifier_extension and any(code in wanted for _, code in coded_pairs(part.code)):
            yield from _component_codes(part)
    for extension in r.extension or ():
        if wanted & _EXTENDED.get((extension.url or "").removeprefix(EXTENSION), set()):
            yield from _codes(extension.value_codeable_concept)


def _component_codes(part: Measured) -> Iterator[str]:
    if part.data_absent_reason is not None:
        return
    yield from _codes(part.value_codeable_concept)
    if (text := (part.value_string or "").strip()) and _HGVS.fullmatch(text):
        yield f"HGVS//{text}"


def _codes(concept: Concept | None) -> Iterator[str]:
    """All codes of a concept, but for those that say that nothing is there."""
    pairs = coded_pairs(concept)
    if any(code in NOT_PRESENT for _, code in pairs):
        return
    for pair in pairs:
        if (code := event_code(pair)) is not None:
            yield code
