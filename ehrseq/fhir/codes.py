"""Code systems: their names in event codes, their order of preference, and how their codes are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from typing import Any

import polars as pl

from ehrseq.errors import SourceError, nearest

# URI (lower case, without a trailing slash) -> name. Anything else keeps its URI.
SYSTEMS = {
    "http://snomed.info/sct": "SNOMED",
    "urn:oid:2.16.840.1.113883.6.96": "SNOMED",
    "http://loinc.org": "LOINC",
    "urn:oid:2.16.840.1.113883.6.1": "LOINC",
    "http://www.nlm.nih.gov/research/umls/rxnorm": "RXNORM",
    "urn:oid:2.16.840.1.113883.6.88": "RXNORM",
    "http://hl7.org/fhir/sid/icd-10-cm": "ICD10CM",
    "urn:oid:2.16.840.1.113883.6.90": "ICD10CM",
    "http://hl7.org/fhir/sid/icd-10": "ICD10",
    "urn:oid:2.16.840.1.113883.6.3": "ICD10",
    "http://hl7.org/fhir/sid/icd-10-pcs": "ICD10PCS",
    "http://www.cms.gov/medicare/coding/icd10": "ICD10PCS",
    "urn:oid:2.16.840.1.113883.6.4": "ICD10PCS",
    "http://hl7.org/fhir/sid/icd-9-cm": "ICD9CM",
    "http://hl7.org/fhir/sid/icd-9-cm/diagnosis": "ICD9CM",
    "urn:oid:2.16.840.1.113883.6.103": "ICD9CM",
    "http://hl7.org/fhir/sid/icd-9-cm/procedure": "ICD9PROC",
    "urn:oid:2.16.840.1.113883.6.104": "ICD9PROC",
    "http://hl7.org/fhir/sid/icd-11": "ICD11",
    "http://id.who.int/icd/release/11/mms": "ICD11",
    "http://hl7.org/fhir/sid/cvx": "CVX",
    "urn:oid:2.16.840.1.113883.12.292": "CVX",
    "http://hl7.org/fhir/sid/ndc": "NDC",
    "urn:oid:2.16.840.1.113883.6.69": "NDC",
    "http://www.whocc.no/atc": "ATC",
    "urn:oid:2.16.840.1.113883.6.73": "ATC",
    "http://www.ama-assn.org/go/cpt": "CPT",
    "urn:oid:2.16.840.1.113883.6.12": "CPT",
    "https://www.cms.gov/medicare/coding/hcpcsreleasecodesets": "HCPCS",
    "http://www.cms.gov/medicare/coding/hcpcsreleasecodesets": "HCPCS",
    "https://www.cms.gov/medicare/coding/hcpcsreleasecodesets/alpha-numeric-hcpcs.html": "HCPCS",
    "urn:oid:2.16.840.1.113883.6.285": "HCPCS",
    "http://www.genenames.org": "HGNC",
    "http://www.genenames.org/geneid": "HGNC",
    "http://varnomen.hgvs.org": "HGVS",
    "http://www.ncbi.nlm.nih.gov/clinvar": "CLINVAR",
    "http://www.ncbi.nlm.nih.gov/snp": "DBSNP",
    "http://www.ncbi.nlm.nih.gov/projects/snp": "DBSNP",
    "http://www.ncbi.nlm.nih.gov/refseq": "REFSEQ",
    "http://www.sequenceontology.org": "SO",
    "https://iscn.karger.com": "ISCN",
    "http://www.pharmvar.org": "PHARMVAR",
    "http://www.ebi.ac.uk/ipd/imgt/hla": "HLA",
    "http://cancer.sanger.ac.uk/cancergenome/projects/cosmic": "COSMIC",
    "http://dicom.nema.org/resources/ontology/dcm": "DCM",
    "http://terminology.hl7.org/codesystem/v3-rolecode": "ROLECODE",
    "http://hl7.org/fhir/v3/rolecode": "ROLECODE",
    "http://unitsofmeasure.org": "UCUM",
    "http://fdasis.nlm.nih.gov": "UNII",
    "http://human-phenotype-ontology.org": "HPO",
    "http://purl.obolibrary.org/obo/mondo.owl": "MONDO",
    "http://ncimeta.nci.nih.gov": "NCIT",
    "http://ncicb.nci.nih.gov/xml/owl/evs/thesaurus.owl": "NCIT",
    "http://terminology.hl7.org/codesystem/v3-actcode": "ACTCODE",
    "http://hl7.org/fhir/v3/actcode": "ACTCODE",
    "http://terminology.hl7.org/codesystem/v3-observationinterpretation": "INTERPRETATION",
    "http://hl7.org/fhir/v2/0078": "INTERPRETATION",
    "http://terminology.hl7.org/codesystem/v2-0078": "INTERPRETATION",
    # MIMIC-IV on FHIR; its other systems are named by the rule in `system_name`
    "http://mimic.mit.edu/fhir/mimic/codesystem/mimic-diagnosis-icd9": "ICD9CM",
    "http://mimic.mit.edu/fhir/mimic/codesystem/mimic-diagnosis-icd10": "ICD10CM",
    "http://mimic.mit.edu/fhir/mimic/codesystem/mimic-procedure-icd9": "ICD9PROC",
    "http://mimic.mit.edu/fhir/mimic/codesystem/mimic-procedure-icd10": "ICD10PCS",
    "http://mimic.mit.edu/fhir/mimic/codesystem/mimic-medication-ndc": "NDC",
    "http://mimic.mit.edu/fhir/mimic/codesystem/mimic-hcpcs-cd": "HCPCS",
}
_MIMIC = "http://mimic.mit.edu/fhir/mimic/codesystem/mimic-"
NO_SYSTEM = "UNKNOWN"
NAMES = tuple(dict.fromkeys(SYSTEMS.values()))

# Systems whose codes say only that something is not known.
_NULLS = (
    "http://terminology.hl7.org/codesystem/data-absent-reason",
    "http://hl7.org/fhir/data-absent-reason",
    "http://terminology.hl7.org/codesystem/v3-nullflavor",
    "http://hl7.org/fhir/v3/nullflavor",
)

# Which coding of a concept gives the event, first to last; any other named system follows, then unknown ones.
DIAGNOSIS_ORDER = ("SNOMED", "ICD10CM", "ICD10", "ICD11", "ICD9CM")
MEASUREMENT_ORDER = ("LOINC", "SNOMED")
MEDICATION_ORDER = ("RXNORM", "ATC", "NDC", "SNOMED")
PROCEDURE_ORDER = ("SNOMED", "CPT", "HCPCS", "ICD10PCS", "ICD9PROC", "LOINC")
VACCINE_ORDER = ("CVX", "NDC", "RXNORM", "SNOMED")
ALLERGY_ORDER = ("SNOMED", "RXNORM", "UNII", "NDC")

Coding = tuple[str | None, str | None]
"""(system URI, code)"""

SEPARATOR = "\x1f"  # ASCII's unit separator; no code may hold a control character


@dataclass(frozen=True)
class CodingPreference:
    """Which coding of a concept gives an event its code, and what codes of a concept map say besides.

    Each field but the last names code systems (`SNOMED`, `LOINC`, or a system's URI), first to last; named systems
    that it leaves out follow, then unknown ones. The others become the event's `other_codes`. `concept_map` gives
    further codes for a code (see `read_concept_map`): they count as codings of the concept, after its own, so one of
    a preferred system becomes the event's code.

    >>> CodingPreference(diagnosis=("ICD10CM", "SNOMED")).order("diagnosis")
    ('ICD10CM', 'SNOMED')
    """

    diagnosis: tuple[str, ...] = DIAGNOSIS_ORDER
    measurement: tuple[str, ...] = MEASUREMENT_ORDER
    medication: tuple[str, ...] = MEDICATION_ORDER
    procedure: tuple[str, ...] = PROCEDURE_ORDER
    vaccine: tuple[str, ...] = VACCINE_ORDER
    allergy: tuple[str, ...] = ALLERGY_ORDER
    concept_map: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind in (f.name for f in fields(self) if f.name != "concept_map"):
            order = getattr(self, kind)
            if isinstance(order, str) or not all(isinstance(name, str) for name in order):
                raise SourceError(f"a list of code systems for {kind}", type(order).__name__, "write ('SNOMED', ...)")
            unknown = [name for name in order if not (":" in name or name in NAMES or name.startswith("MIMIC_"))]
            if unknown:
                raise SourceError(f"names or URIs of code systems for {kind}", unknown[0], nearest(unknown[0], NAMES))
            object.__setattr__(self, kind, tuple(order))

    @cached_property
    def named(self) -> dict[tuple[str, str, bool], dict[Any, str]]:
        """What concepts were called before, by kind, prefix and whether they are procedures (see `CodePool`)."""
        return {}

    def order(self, kind: str) -> tuple[str, ...]:
        """The order for a kind of concept: the name of a field."""
        order: tuple[str, ...] = getattr(self, kind)
        return order


def system_name(uri: str | None) -> str | None:
    """The name of a code system; its URI where it has none; None where its codes carry no meaning.

    >>> system_name("http://loinc.org"), system_name("https://example.org/labs"), system_name(None)
    ('LOINC', 'https://example.org/labs', 'UNKNOWN')
    """
    if not uri:
        return NO_SYSTEM
    key = uri.strip().rstrip("/").lower()
    if key in _NULLS:
        return None
    if key.startswith(_MIMIC) and key not in SYSTEMS:
        return "MIMIC_" + key.removeprefix(_MIMIC).replace("-", "_").upper()
    return SYSTEMS.get(key, uri.strip())


@lru_cache(maxsize=1 << 16)
def event_code(coding: Coding, procedure: bool = False) -> str | None:
    """`SYSTEM//code` of one coding, or None where it says nothing.

    ICD codes get the dot that exports tend to leave out. ICD-9-CM has volumes of diagnoses and of procedures under
    one URI: in a Procedure it means the latter.

    >>> event_code(("http://hl7.org/fhir/sid/icd-10-cm", "E119")), event_code(("http://loinc.org", None))
    ('ICD10CM//E11.9', None)
    >>> event_code(("http://hl7.org/fhir/sid/icd-9-cm", "5491"), procedure=True)
    'ICD9PROC//54.91'
    """
    uri, code = coding
    system = system_name(uri)
    # also takes away the separator of codes, wherever in the code it stands
    code = code.replace(SEPARATOR, "").strip() if code else None
    if system is None or not code:
        return None
    if procedure and system == "ICD9CM":
        system = "ICD9PROC"
    return f"{system}//{_dotted(system, code)}"


def _dotted(system: str, code: str) -> str:
    if system == "HGNC":
        return code.removeprefix("HGNC:")
    if "." in code or not code.isalnum():
        return code
    if system in ("ICD10CM", "ICD10"):
        code = code.upper()
        where = 3
    elif system == "ICD9CM":
        code = code.upper()
        where = 4 if code[0] == "E" else 3
    elif system == "ICD9PROC":
        where = 2
    else:
        return code
    return f"{code[:where]}.{code[where:]}" if len(code) > where else code


def preferred_code(codings: Sequence[Coding], order: Sequence[str], procedure: bool = False) -> str | None:
    """The event code of the preferred coding: by `order`, then named systems, then others; the first among equals.

    >>> preferred_code([("urn:local", "7"), ("http://loinc.org", "718-7")], MEASUREMENT_ORDER)
    'LOINC//718-7'
    """
    return next(iter(ranked_codes(codings, order, procedure)), None)


def ranked_codes(
    codings: Sequence[Coding],
    order: Sequence[str],
    procedure: bool = False,
    concept_map: Mapping[str, tuple[str, ...]] | None = None,
) -> list[str]:
    """All event codes of a concept and of their concept map: the preferred one, then the others, sorted, each once.

    >>> codings = [("urn:local", "7"), ("http://loinc.org", "718-7"), ("http://snomed.info/sct", "38082009")]
    >>> ranked_codes(codings, MEASUREMENT_ORDER)
    ['LOINC//718-7', 'SNOMED//38082009', 'urn:local//7']
    """
    codes = [code for coding in codings if (code := event_code(coding, procedure)) is not None]
    if concept_map:
        codes += [target for code in codes for target in concept_map.get(code, ())]
    if len(codes) < 2:
        return codes
    first = min(codes, key=lambda code: _rank(code, order))
    return [first, *sorted(set(codes) - {first})]


def split_codes(names: Sequence[str | None]) -> tuple[pl.Series, pl.Series]:
    """Of names as `CodePool` makes them: the codes, and the lists of other codes (null where there is none).

    >>> code, others = split_codes(["SNOMED//44054006\x1fICD10CM//E11.9", "SEX//female", None])
    >>> code.to_list(), others.to_list()
    (['SNOMED//44054006', 'SEX//female', None], [['ICD10CM//E11.9'], None, None])
    """
    parts = [[None] if name is None else name.split(SEPARATOR) for name in names]
    code = pl.Series("code", [first for first, *_ in parts], dtype=pl.String)
    return code, pl.Series("other_codes", [others or None for _, *others in parts], dtype=pl.List(pl.String))


def _rank(code: str, order: Sequence[str]) -> int:
    system = code.rsplit("//", 1)[0] if "://" in code else code.split("//", 1)[0]
    if system in order:
        return order.index(system)
    return len(order) + (":" in system or system == NO_SYSTEM)
