"""Code systems: their names in event codes, their order of preference, and how their codes are written."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

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
    code = code.strip() if code else None
    if system is None or not code:
        return None
    if procedure and system == "ICD9CM":
        system = "ICD9PROC"
    return f"{system}//{_dotted(system, code)}"


def _dotted(system: str, code: str) -> str:
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
    codes = [code for coding in codings if (code := event_code(coding, procedure)) is not None]
    return min(codes, key=lambda code: _rank(code, order), default=None)


def _rank(code: str, order: Sequence[str]) -> int:
    system = code.rsplit("//", 1)[0] if "://" in code else code.split("//", 1)[0]
    if system in order:
        return order.index(system)
    return len(order) + (":" in system or system == NO_SYSTEM)
