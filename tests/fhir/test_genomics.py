"""Genomic Observations: what the Genomics Reporting guide's examples hold, and what absent findings do not."""

from __future__ import annotations

import json
from datetime import date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ehrseq.timeline.build import read_fhir
from ehrseq.timeline.store import Timelines

LOINC = "http://loinc.org"
PATIENT = {"resourceType": "Patient", "id": "p"}
FOUND = r"^(VARIANT|GENOTYPE|HAPLOTYPE|SIGNIFICANCE|IMPLICATION|MICROSATELLITE)//"


def concept(code: str, system: str = LOINC) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code}]}


def part(code: str, value: str, system: str = LOINC) -> dict[str, Any]:
    return {"code": concept(code), "valueCodeableConcept": concept(value, system)}


VARIANT: dict[str, Any] = {
    "resourceType": "Observation",
    "id": "v",
    "status": "final",
    "subject": {"reference": "Patient/p"},
    "code": concept("69548-6"),
    "effectiveDateTime": "2020-01-01",
    "issued": "2020-02-01T10:00:00Z",
    "valueCodeableConcept": concept("LA9633-4"),
    "component": [
        part("48018-6", "HGNC:1100", "http://www.genenames.org"),
        part("48004-6", "NM_007294.4:c.68_69del", "http://varnomen.hgvs.org"),
        part("53034-5", "LA6706-1"),
        {"code": concept("82155-3"), "valueQuantity": {"value": 3}},
    ],
}


def read(*resources: dict[str, Any]) -> list[dict[str, Any]]:
    frame = read_fhir([PATIENT, *resources]).events
    return [row for row in frame.iter_rows(named=True) if row["resource_type"] == "Observation"]


def codes(*resources: dict[str, Any]) -> set[str]:
    return {row["code"] for row in read(*resources)}


def test_a_variant_that_is_present() -> None:
    rows = {row["code"]: row for row in read(VARIANT)}
    assert set(rows) == {
        "LOINC//69548-6",
        "LOINC//48018-6",
        "LOINC//48004-6",
        "LOINC//53034-5",
        "LOINC//82155-3",
        "VARIANT//HGNC//1100",
        "VARIANT//HGVS//NM_007294.4:c.68_69del",
    }
    assert rows["VARIANT//HGNC//1100"]["text_value"] == "LOINC//LA6706-1"
    assert rows["LOINC//82155-3"]["numeric_value"] == 3
    assert {(row["time"], row["known_time"], row["time_source"]) for row in rows.values()} == {
        (datetime(2020, 2, 1, 10), datetime(2020, 2, 1, 10), "issued")
    }


@pytest.mark.parametrize(
    "value",
    [
        {"valueCodeableConcept": concept("LA9634-2")},
        {"valueCodeableConcept": concept("LA18198-4")},
        {"valueCodeableConcept": concept("LA11884-6")},
        {"valueCodeableConcept": concept("260385009", "http://snomed.info/sct")},
        {"dataAbsentReason": concept("error")},
    ],
)
def test_what_is_absent_or_not_called_is_not_present(value: dict[str, Any]) -> None:
    record = {k: v for k, v in VARIANT.items() if k != "valueCodeableConcept"} | value
    assert codes(record) == {"LOINC//69548-6"}


def test_a_part_that_is_not_known_is_not_present() -> None:
    hidden = part("48018-6", "HGNC:1100", "http://www.genenames.org") | {"dataAbsentReason": concept("unknown")}
    assert "VARIANT//HGNC//1100" not in codes(VARIANT | {"component": [hidden]})
    modified = part("48018-6", "HGNC:1100", "http://www.genenames.org") | {"modifierExtension": [{"url": "x"}]}
    assert codes(VARIANT | {"component": [modified]}) == {"LOINC//69548-6"}


def test_the_report_dates_a_finding_that_has_no_date() -> None:
    undated = {k: v for k, v in VARIANT.items() if k not in ("effectiveDateTime", "issued")}
    report = {
        "resourceType": "DiagnosticReport",
        "id": "r",
        "status": "final",
        "subject": {"reference": "Patient/p"},
        "code": concept("51969-4"),
        "issued": "2020-02-03T08:00:00Z",
        "result": [{"reference": "Observation/v"}],
    }
    for order in ([undated, report], [report, undated]):
        rows = read(*order)
        assert {r["code"] for r in rows} == codes(VARIANT)
        assert {(r["time"], r["known_time"], r["time_source"], r["encounter_id"]) for r in rows} == {
            (datetime(2020, 2, 3, 8), datetime(2020, 2, 3, 8), "report", None)
        }
    assert read(undated) == []
    assert read(undated, report | {"status": "entered-in-error"}) == []


def test_polygenic_scores_burden_and_microsatellites() -> None:
    burden = VARIANT | {"code": concept("94076-7"), "component": []}
    del burden["valueCodeableConcept"]
    (row,) = read(burden | {"valueQuantity": {"value": 29.5, "code": "1/1000000"}})
    assert (row["code"], row["numeric_value"], row["unit"]) == ("LOINC//94076-7", 29.5, "1/1000000")
    status = VARIANT | {"code": concept("81695-9"), "valueCodeableConcept": concept("LA26203-2"), "component": []}
    assert codes(status) == {"LOINC//81695-9", "MICROSATELLITE//LOINC//LA26203-2"}


def test_extensions_from_before_the_guide() -> None:
    url = "http://hl7.org/fhir/StructureDefinition/observation-genetics"
    record = VARIANT | {
        "code": concept("57290-9"),
        "component": [],
        "extension": [
            {"url": url + "Gene", "valueCodeableConcept": concept("HGNC:4931", "http://www.genenames.org")},
        ],
    }
    del record["valueCodeableConcept"]
    assert codes(record) == {"GENOTYPE//HGNC//4931"}


# -- sequences

CHROMOSOME = concept("NC_000009.11", "http://www.ncbi.nlm.nih.gov/nuccore")
CHANGE = {"start": 22125503, "end": 22125504, "observedAllele": "C", "referenceAllele": "G"}
R4_SEQUENCE: dict[str, Any] = {
    "resourceType": "MolecularSequence", "id": "s", "patient": {"reference": "Patient/p"}, "coordinateSystem": 0,
    "referenceSeq": {"referenceSeqId": CHROMOSOME, "strand": "watson"}, "variant": [CHANGE],
}  # fmt: skip
R5_SEQUENCE: dict[str, Any] = {
    "resourceType": "MolecularSequence", "id": "s", "subject": {"reference": "Patient/p"},
    "relative": [{"coordinateSystem": concept("LA30102-0"), "startingSequence": {"sequenceCodeableConcept": CHROMOSOME},
                  "edit": [{"start": 22125504, "end": 22125504, "replacementSequence": "C", "replacedSequence": "G"}]}],
}  # fmt: skip


def sequences(*resources: dict[str, Any]) -> list[tuple[Any, ...]]:
    events = read_fhir([PATIENT, *resources]).events.filter(pl.col("resource_type").str.ends_with("Sequence"))
    return events.select("code", "time", "known_time", "time_source").rows()


@pytest.mark.parametrize("record", [R4_SEQUENCE, R4_SEQUENCE | {"resourceType": "Sequence"}, R5_SEQUENCE])
def test_a_sequence_takes_the_time_of_the_observation_derived_from_it(record: dict[str, Any]) -> None:
    kind = record["resourceType"]
    reference = {"reference": f"{kind}/s"}
    sources = {"related": [{"type": "derived-from", "target": reference}]} if kind == "Sequence" else {
        "derivedFrom": [{"reference": "Observation/x"}, reference]
    }  # fmt: skip
    reported = datetime(2020, 2, 1, 10)
    assert sequences(record, VARIANT | sources) == [
        ("VARIANT//SPDI//NC_000009.11:22125503:G:C", reported, reported, "report")
    ]
    # with none, or one that has no date either, there is no event
    assert sequences(record, VARIANT) == []
    undated = {key: value for key, value in VARIANT.items() if key not in ("issued", "effectiveDateTime")}
    assert sequences(record, undated | sources) == []
    # it does not go on, as an encounter would; of what was issued at no time nobody can tell since when it was there
    plain = VARIANT | sources | {"code": concept("718-7"), "effectiveDateTime": "2020-01-20"}
    (event,) = sequences(record, {key: value for key, value in plain.items() if key != "issued"})
    assert event[1].date() == event[2].date() == date(2020, 1, 20)
    assert sequences(record, plain | {"issued": "soon"}) == []


# the sequences of the specification that show both ways of counting: one change each
@pytest.mark.parametrize(
    ("first_is_one", "variant", "name"),
    [
        (False, {"start": 2, "end": 2, "observedAllele": "ATG", "referenceAllele": "-"}, "2::ATG"),
        (True, {"start": 2, "end": 3, "observedAllele": "ATG", "referenceAllele": "-"}, "2::ATG"),
        (False, {"start": 4, "end": 5, "observedAllele": "T", "referenceAllele": "A"}, "4:A:T"),
        (True, {"start": 5, "end": 5, "observedAllele": "T", "referenceAllele": "A"}, "4:A:T"),
        (False, {"start": 6, "end": 7, "observedAllele": "-", "referenceAllele": "T"}, "6:T:"),
        (True, {"start": 7, "end": 7, "observedAllele": "-", "referenceAllele": "T"}, "6:T:"),
        (False, {"start": 6, "end": 9, "observedAllele": "a"}, "6:3:A"),
        (True, {"start": 7, "end": 9, "observedAllele": "a"}, "6:3:A"),
    ],
)
def test_variants_have_one_name_however_they_are_counted(
    first_is_one: bool, variant: dict[str, Any], name: str
) -> None:
    record = R4_SEQUENCE | {"coordinateSystem": int(first_is_one), "variant": [variant]}
    found = sequences(record, VARIANT | {"derivedFrom": [{"reference": "MolecularSequence/s"}]})
    assert [code for code, *_ in found] == [f"VARIANT//SPDI//NC_000009.11:{name}"]


@pytest.mark.parametrize(
    "change",
    [
        {"coordinateSystem": 2},
        {"coordinateSystem": None},
        {"referenceSeq": {"referenceSeqString": "ACGT"}},
        {"referenceSeq": {"referenceSeqId": CHROMOSOME, "strand": "crick"}},
        {"referenceSeq": {"referenceSeqId": CHROMOSOME, "strand": -1}},
        {"variant": [{"start": 1, "observedAllele": "C"}]},
        {"variant": [CHANGE | {"observedAllele": "C" * 51}]},
        {"variant": [CHANGE | {"observedAllele": "Jane Doe"}]},
        {"variant": [CHANGE | {"start": -5}]},
    ],
)
def test_a_variant_that_is_not_told_has_no_name(change: dict[str, Any]) -> None:
    derived = VARIANT | {"derivedFrom": [{"reference": "MolecularSequence/s"}]}
    assert sequences(R4_SEQUENCE | change, derived) == []


# -- the guide's examples


@pytest.fixture(scope="module")
def examples(data_folder: Path) -> Timelines:
    return read_fhir(data_folder / "genomics_r4")


EXPECTED = {
    "EGFR-L858R-var": {
        "VARIANT//HGNC//3236",
        "VARIANT//HGVS//NM_005228.4:c.2573T>G",
        "VARIANT//HGVS//NP_005219.2:p.Leu858Arg",
        "VARIANT//HGVS//NC_000007.13:g.55259515T>G",
    },
    "EGFR-L858R-significance": {"SIGNIFICANCE//LOINC//LA6668-3"},
    "EGFR-L858R-therapuDrug1": {"IMPLICATION//LOINC//LA6677-4"},  # its drug is text
    "ATR-insertion-var": {
        "VARIANT//HGNC//882",
        "VARIANT//HGVS//NC_000003.11:g.142269071_142269072insTTACT",
        "VARIANT//HGVS//NM_001184.4:c.2878_2879insAGTAA",
    },
    "ATR-insertion-significance": {"SIGNIFICANCE//LOINC//LA26332-9"},
    "MSH2-del-var": {"VARIANT//HGNC//7235", "VARIANT//CLINVAR//1780982"},
    "MSH2-del-disease": {"SIGNIFICANCE//LOINC//LA6668-3"},
    "NTHL1-snv-var": {
        "VARIANT//HGNC//8028",
        "VARIANT//CLINVAR//962538",
        "VARIANT//HGVS//NC_000016.10:g.2040196C>T",
        "VARIANT//HGVS//NM_002528.7:c.728G>A",
        "VARIANT//HGVS//NP_002519.2:p.Trp243Ter",
    },
    "NTHL1-snv-disease": {"SIGNIFICANCE//LOINC//LA6668-3"},
    "NOTCH1-uncertain-var": {
        "VARIANT//HGNC//7881",
        "VARIANT//HGVS//NC_000009.11:g.139395147C>T",
        "VARIANT//HGVS//NM_017617.5:c.5791G>A",
        "VARIANT//HGVS//NP_060087.3:p.A1931T",
    },
    "NOTCH1-significance": {"SIGNIFICANCE//LOINC//LA26333-7"},
    "ROS1-Fusion-var": {"VARIANT//HGNC//10261"},
    "ROS1-Fusion-disease": {"SIGNIFICANCE//LOINC//LA6668-3"},
    "SNVexample": {
        "VARIANT//HGNC//644",
        "VARIANT//HGVS//NM_000044.6:c.7G>A",
        "VARIANT//HGVS//NP_000035.2:p.Val3Met",
    },
    "RepeatExpansion": {"VARIANT//HGNC//8565", "VARIANT//CLINVAR//503634", "VARIANT//HGVS//NM_004643.3:c.3GGC[14]"},
    "ISCN-CMLExample": {"VARIANT//ISCN//46,XX,t(9;22)(q34;q4)"},
    "GenotypeExample1": {"GENOTYPE//HGNC//4932", "GENOTYPE//CLINVAR//14909"},
    "Pgx-geno-1001": {"GENOTYPE//HGNC//2621", "GENOTYPE//CLINVAR//638797"},
    "HLA-A-haplotype1": {"HAPLOTYPE//HGNC//4931", "HAPLOTYPE//HLA//A*24:02"},
    "haplotype-hla-a-1-r4": {"HAPLOTYPE//HGNC//4931", "HAPLOTYPE//HLA//HLA-A*03:01:01:01"},
    "metab": {"IMPLICATION//RXNORM//11289/LOINC//LA25390-8"},
    "TxImp01": {"IMPLICATION//RXNORM//32968/LOINC//LA9657-3"},
    "MSIExample": {"MICROSATELLITE//LOINC//LA26203-2"},
    "PolyGenicDiagnosticImpExample": {"SIGNIFICANCE//LOINC//LA6668-3"},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_findings_of_an_example(examples: Timelines, name: str) -> None:
    found = examples.events.filter((pl.col("resource_id") == name) & pl.col("code").str.contains(FOUND))
    assert set(found["code"]) == EXPECTED[name]


def observations(folder: Path) -> list[dict[str, Any]]:
    """The Observations of the files, by plain JSON."""
    found = []
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_bytes())
        entries = [e["resource"] for e in document.get("entry", [])] or [document]
        found += [r for r in entries if r["resourceType"] == "Observation"]
    return found


def values(record: dict[str, Any], code: str, system: str) -> set[str]:
    return {
        coding["code"]
        for component in record.get("component", [])
        if code in {c.get("code") for c in component["code"].get("coding", [])}
        for coding in component.get("valueCodeableConcept", {}).get("coding", [])
        if coding.get("system") == system
    }


def test_every_gene_variant_and_significance_of_the_files(examples: Timelines, data_folder: Path) -> None:
    """An independent reading of the files: nothing that they name is missing, for any Observation with a patient."""
    in_timeline = examples.events.filter(pl.col("resource_type") == "Observation")
    have = {
        (row["resource_id"], row["code"]) for row in in_timeline.select("resource_id", "code").iter_rows(named=True)
    }
    read_ids = set(in_timeline["resource_id"])
    genes = variants = significances = 0
    for record in observations(data_folder / "genomics_r4"):
        if record["id"] not in read_ids:
            assert "reference" not in record.get("subject", {}), record["id"]  # it names nobody
            continue
        main = {c.get("code") for c in record["code"].get("coding", [])}
        kind = next((k for c, k in {"69548-6": "VARIANT", "84413-4": "GENOTYPE", "84414-2": "HAPLOTYPE"}.items()
                     if c in main), None)  # fmt: skip
        if kind is not None:
            for gene in values(record, "48018-6", "http://www.genenames.org"):
                genes += 1
                assert (record["id"], f"{kind}//HGNC//{gene.removeprefix('HGNC:')}") in have
        if kind == "VARIANT":
            for code in ("48004-6", "48005-3", "81290-9"):
                for name in values(record, code, "http://varnomen.hgvs.org"):
                    variants += 1
                    assert (record["id"], f"VARIANT//HGVS//{name}") in have
        for answer in values(record, "53037-8", LOINC):
            significances += 1
            assert (record["id"], f"SIGNIFICANCE//LOINC//{answer}") in have
    assert (genes, variants, significances) == (80, 69, 16)


def test_the_sequences_of_the_official_examples(data_folder: Path) -> None:
    """Two were reported by an Observation that is derived from them, of a patient that the files hold."""
    events = read_fhir(data_folder / "hl7_r4_examples").events.filter(resource_type="MolecularSequence")
    assert sorted(zip(events["resource_id"], events["code"], events["time"].cast(pl.String), strict=True)) == [
        ("example-TPMT-one", "VARIANT//SPDI//NT_007592.15:18139213:G:A", "2013-04-03 14:30:10.000000"),
        ("example-TPMT-two", "VARIANT//SPDI//NT_007592.15:18131011:C:T", "2013-04-03 14:30:10.000000"),
        ("example-pgx-1", "VARIANT//SPDI//NG_007726.3:55227976:T:G", "2013-04-03 14:30:10.000000"),
        ("example-pgx-2", "VARIANT//SPDI//NG_007726.3:55227978:T:G", "2013-04-03 14:30:10.000000"),
    ]


def test_examples_turned_absent_hold_no_finding(data_folder: Path) -> None:
    """The negative control: the same variants, said to be absent."""
    text = "[" + ",".join(
        path.read_text("utf-8") for path in sorted((data_folder / "genomics_r4").glob("Observation-*.json"))
    ) + "]"  # fmt: skip
    records = [r for r in json.loads(text.replace("LA9633-4", "LA9634-2")) if "69548-6" in json.dumps(r["code"])]
    records = [r for r in records if "reference" in r.get("subject", {})]
    people = [{"resourceType": "Patient", "id": r["subject"]["reference"].split("/")[-1]} for r in records]
    events = read_fhir([*{p["id"]: p for p in people}.values(), *records]).events
    assert set(events["code"]) == {"LOINC//69548-6"}
    assert set(events["text_value"]) == {"LOINC//LA9634-2"}
