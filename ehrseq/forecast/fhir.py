"""Forecasts as FHIR R4 (and R4B) resources: one RiskAssessment a subject and prediction time, made by one Device.

`docs/fhir-output.md` has the mapping, element by element. A resource's id follows from the subject, the prediction
time, what was asked and the model, so that sending a forecast again replaces it at the receiver.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

import polars as pl

from ehrseq import __version__
from ehrseq.errors import ForecastError
from ehrseq.task.history import visible

if TYPE_CHECKING:
    from ehrseq.forecast.table import Forecast
    from ehrseq.timeline.store import Timelines

Resource = dict[str, Any]
URN = "urn:ehrseq"  # names of our own; no registered institution stands behind them
ENSEMBLE_RANGE, EXTRAPOLATED = f"{URN}:extension:ensemble-range", f"{URN}:extension:extrapolated"
RECORDS_READ = f"{URN}:extension:records-on-file"
SEEN_IN_TRAINING = f"{URN}:extension:seen-in-training"
MODEL_HASH = "model_manifest_sha256"  # of a forecast's metadata
MAX_BASIS = 100
# The one URI that FHIR gives each system (`fhir.codes` knows more spellings); any other is its own URI or has none.
SYSTEM_URI = {
    "SNOMED": "http://snomed.info/sct",
    "LOINC": "http://loinc.org",
    "RXNORM": "http://www.nlm.nih.gov/research/umls/rxnorm",
    "ICD10CM": "http://hl7.org/fhir/sid/icd-10-cm",
    "ICD10": "http://hl7.org/fhir/sid/icd-10",
    "ICD9CM": "http://hl7.org/fhir/sid/icd-9-cm",
    "ICD11": "http://id.who.int/icd/release/11/mms",
    "CVX": "http://hl7.org/fhir/sid/cvx",
    "NDC": "http://hl7.org/fhir/sid/ndc",
    "ATC": "http://www.whocc.no/atc",
    "CPT": "http://www.ama-assn.org/go/cpt",
}
RATIONALE = "Cumulative incidence by the end of the period, competing risks respected, on a scale from 0 to 1."
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_TYPE = re.compile(r"[A-Z][A-Za-z]{1,63}")
_NAMESPACE = uuid5(NAMESPACE_URL, URN)
_KEY = ("subject_id", "prediction_time")
_UNCONDITIONAL = (
    "name",
    "codes",
    "competing",
    "incident",
    "event_time",
)  # of an outcome: these leave its code its code
_QUERIES_AT_ONCE = 1 << 12  # whose records on file are looked up together


def risk_assessments(
    forecast: Forecast, *, timelines: Timelines | None = None, max_basis: int = MAX_BASIS, in_bundle: bool = False
) -> Iterator[Resource]:
    """One RiskAssessment a scored subject and prediction time, in the order of the risk table.

    `basis` names the records that were on file by the prediction time, those known last first, `max_basis` at most (0
    for none); they are those of `timelines`, by default the ones that the forecast was made from. A forecast read from
    a folder has none. `in_bundle` refers to the Device as a Bundle's entries do. Raises ForecastError for a probability
    outside 0 to 1.
    """
    made_by = device(forecast.metadata)
    performer = f"urn:uuid:{made_by['id']}" if in_bundle else f"Device/{made_by['id']}"
    outcomes = (forecast.metadata.get("task") or {}).get("outcomes") or {}
    method = str(forecast.metadata.get("model", "unknown"))
    if timelines is None and forecast.source is not None:
        timelines = forecast.source.timelines
    seen = set(forecast.seen["subject_id"].to_list())
    rows = forecast.risk.sort(*_KEY, "outcome", "horizon_days").iter_rows(named=True)
    # some at a time: each query is joined with every event of its subject
    groups = ((key, list(group)) for key, group in groupby(rows, itemgetter(*_KEY)))
    while some := list(islice(groups, _QUERIES_AT_ONCE)):
        queries = pl.DataFrame([key for key, _ in some], forecast.risk.select(_KEY).schema, orient="row")
        records = {} if timelines is None or not max_basis else _records_on_file(queries, timelines, max_basis)
        for key, group in some:
            basis, count = records.get(key, ((), None))
            yield risk_assessment(
                group, outcomes, performer, method, basis=basis, records_on_file=count, seen=key[0] in seen
            )


def risk_assessment(
    rows: Sequence[Mapping[str, Any]],
    outcomes: Mapping[str, Mapping[str, Any]],
    performer: str,
    method: str,
    *,
    basis: Sequence[str] = (),
    records_on_file: int | None = None,
    seen: bool = False,
) -> Resource:
    """The RiskAssessment of one subject and prediction time.

    `rows` are its rows of the risk table, `outcomes` the task's definitions as it writes them (`codes` are looked up),
    `performer` a reference to the Device, `method` the branch that answered, `basis` references to source records out
    of the `records_on_file`. `seen` says that the model was fitted on the subject.

    >>> row = {"subject_id": 1, "patient": "p7", "prediction_time": datetime(2024, 1, 1, 12), "outcome": "t2d",
    ...        "horizon_days": 366.0, "probability": 0.25, "lower": 0.2, "upper": 0.3, "extrapolated": False}
    >>> made = risk_assessment([row], {"t2d": {"codes": ["SNOMED//44054006"]}}, "Device/d", "hybrid")
    >>> made["subject"], made["occurrenceDateTime"]
    ({'reference': 'Patient/p7'}, '2024-01-01T12:00:00Z')
    >>> [prediction] = made["prediction"]
    >>> [coding["code"] for coding in prediction["outcome"]["coding"]], prediction["probabilityDecimal"]
    (['t2d', '44054006'], 0.25)
    >>> prediction["whenPeriod"]
    {'start': '2024-01-01T12:00:00Z', 'end': '2025-01-01T12:00:00Z'}
    """
    first = rows[0]
    at = first["prediction_time"]
    # the same question to the same model is the same resource, in a Bundle or not
    asked = [[r["outcome"], r["horizon_days"]] for r in rows]
    identity = json.dumps([first["subject_id"], at.isoformat(), re.split("[/:]", performer)[-1], asked])
    extension: list[Resource] = []
    if records_on_file is not None:
        extension.append({"url": RECORDS_READ, "valueInteger": records_on_file})
    if seen:
        extension.append({"url": SEEN_IN_TRAINING, "valueBoolean": True})
    made: Resource = {
        "resourceType": "RiskAssessment",
        "id": str(uuid5(_NAMESPACE, identity)),
        **({"extension": extension} if extension else {}),
        "status": "final",
        "method": {"coding": [{"system": f"{URN}:method", "code": method}], "text": f"ehrseq, {method}"},
        "subject": subject_reference(first["patient"]),
        "occurrenceDateTime": instant(at),
        "performer": {"reference": performer, "type": "Device"},
    }
    if basis:
        made["basis"] = [{"reference": reference} for reference in basis]
    made["prediction"] = [_prediction(row, outcomes.get(row["outcome"]) or {}) for row in rows]
    return made


def device(metadata: Mapping[str, Any]) -> Resource:
    """The Device that made a forecast: ehrseq at its version, with the model whose folder has the hash in `metadata`.

    >>> made = device({"model": "hybrid", "model_manifest_sha256": "ab12"})
    >>> [(version["type"]["text"], version["value"]) for version in made["version"]][1:]
    [('model folder, sha256 of its manifest', 'ab12')]
    """
    branch, folder, data = (metadata.get(name) for name in ("model", MODEL_HASH, "data_hash"))
    versions = {
        "ehrseq": __version__,
        "model folder, sha256 of its manifest": folder,
        # a model that was never saved has no folder, and is told from others by what it was fitted on
        "training data, hash": data if folder is None else None,
    }
    identity = json.dumps([__version__, branch, folder, data])
    return {
        "resourceType": "Device",
        "id": str(uuid5(_NAMESPACE, identity)),
        **({"identifier": [{"system": f"{URN}:model", "value": folder}]} if folder else {}),
        "status": "active",
        "deviceName": [{"name": "ehrseq progression model", "type": "model-name"}],
        **({"modelNumber": str(branch)} if branch else {}),
        "version": [{"type": {"text": name}, "value": str(value)} for name, value in versions.items() if value],
        "type": {"text": "Software that forecasts health outcomes"},
    }


def risk_bundle(forecast: Forecast, *, timelines: Timelines | None = None, max_basis: int = MAX_BASIS) -> Resource:
    """A Bundle of type collection: the Device, then the RiskAssessments (as in `risk_assessments`)."""
    made = risk_assessments(forecast, timelines=timelines, max_basis=max_basis, in_bundle=True)
    entries = [device(forecast.metadata), *made]
    return {
        "resourceType": "Bundle",
        "type": "collection",
        "entry": [{"fullUrl": f"urn:uuid:{resource['id']}", "resource": resource} for resource in entries],
    }


def write_ndjson(forecast: Forecast, path: str | Path, **options: Any) -> None:
    """Write the Device and then the RiskAssessments, one a line, to a file that appears only when it is whole.

    `options` are those of `risk_assessments`. Raises ForecastError where a file is already.
    """
    path = Path(path)
    if path.exists():
        raise ForecastError("a path where no file is yet", "a file or folder", "choose another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    opened, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        os.close(opened)
        write_lines(Path(scratch), [device(forecast.metadata)])
        write_lines(Path(scratch), risk_assessments(forecast, **options), mode="a")
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(scratch)


def write_folder(forecast: Forecast, folder: Path) -> None:
    """Write `Device.ndjson` and `RiskAssessment.ndjson` into a folder, one type a file as in a FHIR bulk export."""
    write_lines(folder / "Device.ndjson", [device(forecast.metadata)])
    write_lines(folder / "RiskAssessment.ndjson", risk_assessments(forecast))


def write_lines(path: Path, resources: Iterable[Resource], mode: str = "w") -> None:
    """Write resources as NDJSON, in UTF-8."""
    with path.open(mode, encoding="utf-8", newline="\n") as file:
        for resource in resources:
            file.write(json.dumps(resource, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n")


def subject_reference(patient: str) -> Resource:
    """A reference to the Patient; by identifier where the subject's name cannot be a FHIR id.

    >>> subject_reference("p-1"), subject_reference("a b")
    ({'reference': 'Patient/p-1'}, {'identifier': {'value': 'a b'}, 'type': 'Patient'})
    """
    if _ID.fullmatch(patient):
        return {"reference": f"Patient/{patient}"}
    return {"identifier": {"value": patient}, "type": "Patient"}


def outcome_concept(name: str, definition: Mapping[str, Any]) -> Resource:
    """The concept of an outcome: its name in the task, then the code of a known system where that alone defines it.

    Codings of one concept are translations of each other, so that a part of an outcome must not be one: a receiver
    would take the risk of any of them for the risk of each.

    >>> concept = outcome_concept("t2d", {"codes": ["https://x.org/codes//d"]})
    >>> [(coding["system"], coding["code"]) for coding in concept["coding"]]
    [('urn:ehrseq:outcome', 't2d'), ('https://x.org/codes', 'd')]
    >>> len(outcome_concept("mace", {"codes": ["ICD10CM//I21.4", "ICD10CM//I63.9"]})["coding"])
    1
    """
    codings = [{"system": f"{URN}:outcome", "code": name, "display": name}]
    codes = definition.get("codes") or []
    conditions = (value for key, value in definition.items() if key not in _UNCONDITIONAL)
    if len(codes) == 1 and all(value is None or value is False or value == [] for value in conditions):
        # an unknown system is a URI, which has slashes of its own
        system, _, value = codes[0].rpartition("//") if "://" in codes[0] else codes[0].partition("//")
        uri = SYSTEM_URI.get(system, system if ":" in system else None)
        if uri and value and not value.endswith("*"):
            codings.append({"system": uri, "code": value})
    return {"coding": codings, "text": name}


def instant(moment: datetime) -> str:
    """A moment (UTC without a zone) as FHIR writes it.

    >>> instant(datetime(2024, 1, 1, 23, 59, 59, 999999))
    '2024-01-01T23:59:59.999999Z'
    """
    return f"{moment.isoformat()}Z"


def _prediction(row: Mapping[str, Any], definition: Mapping[str, Any]) -> Resource:
    """One outcome by one horizon."""
    extension: list[Resource] = []
    low, high = row["lower"], row["upper"]
    if low is not None and high is not None:
        ends = {"low": {"value": _probability(low)}, "high": {"value": _probability(high)}}
        extension.append({"url": ENSEMBLE_RANGE, "valueRange": ends})
    if row["extrapolated"]:
        extension.append({"url": EXTRAPOLATED, "valueBoolean": True})
    at = row["prediction_time"]
    return {
        **({"extension": extension} if extension else {}),
        "outcome": outcome_concept(row["outcome"], definition),
        "probabilityDecimal": _probability(row["probability"]),
        "whenPeriod": {"start": instant(at), "end": instant(at + timedelta(days=row["horizon_days"]))},
        "rationale": RATIONALE,
    }


def _probability(value: float) -> float:
    """A probability, freed of what rounding put beyond 0 or 1."""
    if not (math.isfinite(value) and -1e-9 <= value <= 1 + 1e-9):
        raise ForecastError("probabilities from 0 to 1", "others", "score the export again")
    return min(max(value, 0.0), 1.0)


def _records_on_file(
    queries: pl.DataFrame, timelines: Timelines, limit: int
) -> dict[tuple[int, datetime], tuple[list[str], int]]:
    """By subject and prediction time: references to the records known last, `limit` at most, and how many there are."""
    known = pl.col("known_time").fill_null(datetime(1, 1, 1))  # what has no time was always known
    named = pl.col("resource_type").str.contains(f"^(?:{_TYPE.pattern})$") & pl.col("resource_id").str.contains(
        f"^(?:{_ID.pattern})$"
    )
    records = (
        timelines.events.lazy()
        .join(queries.lazy(), on="subject_id")
        .filter(named & visible(known, pl.col("prediction_time")))
        .select(*_KEY, reference=pl.concat_str("resource_type", pl.lit("/"), "resource_id"), known=known)
        .group_by(*_KEY, "reference")
        .agg(pl.col("known").max())
        .sort(*_KEY, "known", "reference", descending=[False, False, True, False])
        .group_by(_KEY, maintain_order=True)
        .agg(pl.col("reference").head(limit), count=pl.len())
        .collect()
    )
    return {(subject, at): (basis, count) for subject, at, basis, count in records.iter_rows()}
