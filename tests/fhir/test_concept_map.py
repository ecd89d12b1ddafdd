from __future__ import annotations

import pytest

from ehrseq.errors import SourceError
from ehrseq.fhir.codes import CodingPreference, ranked_codes
from ehrseq.fhir.concept_map import read_concept_map
from ehrseq.timeline.build import read_fhir
from ehrseq.timeline.store import Timelines

SNOMED, ICD = "http://snomed.info/sct", "http://hl7.org/fhir/sid/icd-10-cm"
PATIENT = {"resourceType": "Patient", "id": "p"}


def condition(*codings, **more):
    return {
        "resourceType": "Condition", "id": "c", "subject": {"reference": "Patient/p"}, "onsetDateTime": "2020-01-01",
        "code": {"coding": [{"system": system, "code": code} for system, code in codings]}, **more,
    }  # fmt: skip


def codes(*resources, **options):
    return read_fhir([PATIENT, *resources], **options).events.select("code", "other_codes").rows()


def test_all_codings_of_a_concept_are_kept_sorted_and_once():
    both = condition((ICD, "E119"), (ICD, "E11.9"), ("urn:local", "7"), (SNOMED, "44054006"))
    assert codes(both) == [("SNOMED//44054006", ["ICD10CM//E11.9", "urn:local//7"])]
    assert codes(condition((SNOMED, "44054006"))) == [("SNOMED//44054006", None)]
    assert codes(condition((SNOMED, "44054006"), (SNOMED, "44054006"))) == [("SNOMED//44054006", None)]


def test_the_order_of_codings_makes_no_difference():
    one, two = (SNOMED, "44054006"), (ICD, "E11.9")
    assert codes(condition(one, two)) == codes(condition(two, one))


def test_the_end_of_a_condition_keeps_its_prefix_on_every_code():
    ended = condition((SNOMED, "1"), (ICD, "E11.9"), abatementDateTime="2021-01-01")
    assert codes(ended)[1] == ("ABATEMENT//SNOMED//1", ["ABATEMENT//ICD10CM//E11.9"])


def test_the_preferred_system_can_be_chosen():
    both = condition((SNOMED, "44054006"), (ICD, "E11.9"))
    assert codes(both, coding=CodingPreference(diagnosis=("ICD10CM",))) == [("ICD10CM//E11.9", ["SNOMED//44054006"])]
    local = condition((SNOMED, "44054006"), ("urn:local", "7"))
    assert codes(local, coding=CodingPreference(diagnosis=("urn:local",)))[0][0] == "urn:local//7"


def test_a_mapped_code_counts_as_a_coding():
    concept_map = read_concept_map({"code": ["urn:local//7"], "target": ["SNOMED//44054006"]})
    local = condition(("urn:local", "7"))
    assert codes(local, coding=CodingPreference(concept_map=concept_map)) == [("SNOMED//44054006", ["urn:local//7"])]
    kept = CodingPreference(diagnosis=("urn:local",), concept_map=concept_map)
    assert codes(local, coding=kept) == [("urn:local//7", ["SNOMED//44054006"])]


def test_no_code_can_pass_for_two():
    hostile = condition((SNOMED, "1\x1fICD10CM//E11.9"), (ICD, "\x1f"))
    assert codes(hostile) == [("SNOMED//1ICD10CM//E11.9", None)]


def test_ranking():
    codings = [("urn:a", "1"), ("http://loinc.org", "718-7"), (None, "x"), ("http://loinc.org", None)]
    assert ranked_codes(codings, ("LOINC",)) == ["LOINC//718-7", "UNKNOWN//x", "urn:a//1"]
    assert ranked_codes([], ("LOINC",)) == []
    assert ranked_codes([("urn:a", "1")], (), concept_map={"urn:a//1": ("urn:a//1",)}) == ["urn:a//1"]


def test_bad_settings_are_refused():
    with pytest.raises(SourceError, match="code systems for diagnosis; found snomed"):
        CodingPreference(diagnosis=("snomed",))
    with pytest.raises(SourceError, match="a list of code systems"):
        CodingPreference(diagnosis="SNOMED")
    assert CodingPreference(diagnosis=["SNOMED", "MIMIC_X"]).order("diagnosis") == ("SNOMED", "MIMIC_X")


def test_concept_maps_are_read_and_checked(tmp_path):
    (tmp_path / "map.csv").write_text(
        "code,target,note\nurn:l//1,LOINC//1-8,a\nurn:l//1,SNOMED//2,\nurn:l//1,SNOMED//2,\n"
    )
    assert read_concept_map(tmp_path / "map.csv") == {"urn:l//1": ("LOINC//1-8", "SNOMED//2")}
    for code, target in (("1", "LOINC//1-8"), ("urn:l//1", "1-8"), ("urn:l//1", "LOINC//1\x1fSNOMED//2")):
        with pytest.raises(SourceError, match="SYSTEM//code"):
            read_concept_map({"code": [code], "target": [target]})
    with pytest.raises(SourceError, match="columns code and target"):
        read_concept_map({"code": ["1"]})


def test_other_codes_and_units_are_saved_alike_whatever_the_order(tmp_path):
    weight = {
        "resourceType": "Observation", "id": "o", "status": "final", "subject": {"reference": "Patient/p"},
        "effectiveDateTime": "2020-01-01", "valueQuantity": {"value": 150, "unit": "lbs"},
        "code": {"coding": [{"system": "urn:l", "code": "w"}, {"system": "http://loinc.org", "code": "29463-7"}]},
    }  # fmt: skip
    both = condition((ICD, "E11.9"), (SNOMED, "44054006"))
    for name, records in (("one", [PATIENT, both, weight]), ("two", [weight, both, PATIENT])):
        read_fhir(records).save(tmp_path / name)
    files = sorted(f.relative_to(tmp_path / "one") for f in (tmp_path / "one").rglob("*.parquet"))
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)
    loaded = Timelines.load(tmp_path / "two")
    found = loaded.events.select("code", "other_codes", "numeric_value", "unit", "unit_recorded").rows()
    assert ("LOINC//29463-7", ["urn:l//w"], pytest.approx(68.0388), "kg", "lbs") in found
    assert ("SNOMED//44054006", ["ICD10CM//E11.9"], None, None, None) in found
    assert loaded.units.select("unit_recorded", "unit", "factor").row(0) == ("lbs", "kg", 0.45359237)


def test_an_event_frame_may_bring_other_codes():
    frame = {"subject_id": [1] * 4, "time": [None] * 4, "code": ["A", "B", "C", "D"]}
    others = [["Y", "X", "X", None], [], None, [None]]
    events = Timelines.from_events({**frame, "other_codes": others}).events
    assert events["other_codes"].to_list() == [["X", "Y"], None, None, None]
    assert Timelines.from_events(frame).events["other_codes"].null_count() == 4
