"""Make a small model folder of the current format, with the forecasts it gives, for `tests/data`.

    python -m tests.make_artifact

Run once for each format version: the folder stays for ever, and later versions must load it and give these forecasts.
"""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from ehrseq.config import ModelConfig, NetworkConfig, TrainingConfig
from ehrseq.estimator import ProgressionModel
from ehrseq.model.artifact import FORMAT_VERSION
from ehrseq.timeline.store import Timelines
from tests.toy import TASK, cohort

DATA = Path(__file__).parent / "data"
CONFIG = ModelConfig(
    NetworkConfig(width=8, layers=2, heads=2, intervals=4, min_subjects=3, max_events=40, summary_codes=8),
    TrainingConfig(max_epochs=12, patience=12, learning_rate=1e-2, warmup_steps=10, members=2),
)
EVENTS = {
    "columns": ["subject_id", "time", "code", "numeric_value", "unit", "known_time"],
    "rows": [
        [901, None, "SEX//female", None, None, None],
        [901, "1950-03-01", "MEDS_BIRTH", None, None, "1950-03-01"],
        [901, "2010-02-03T10:00:00", "LOINC//a", 6.5, "u", "2010-02-03T12:00:00"],
        [901, "2010-02-03T10:00:00", "LOINC//a", 7.5, "u", "2010-02-03T12:00:00"],
        [901, "2010-06-01", "ICD10CM//y", None, None, "2011-06-01"],
        [901, "2011-12-24", "RXNORM//x", None, None, "2011-12-24"],
        [901, "2013-01-01", "LOINC//b", 1.0, "u", "2013-01-01"],
        [902, None, "SEX//male", None, None, None],
        [902, "1971-11-30", "MEDS_BIRTH", None, None, "1971-11-30"],
        [902, "2011-05-05", "SNOMED//1", None, None, "2011-05-05"],
        [902, "2011-05-06", "LOINC//b", 3.25, "u", "2011-05-07"],
        [903, "1988-08-08", "MEDS_BIRTH", None, None, "1988-08-08"],
        [903, "2011-01-01", "UNSEEN//code", None, None, "2011-01-01"],
        [903, "2011-01-02", "LOINC//b", 9.0, "another unit", "2011-01-02"],
    ],
}
AT = "2012-06-30"


def timelines() -> Timelines:
    """Three subjects that the model has not seen: back-dated, tied, unknown and future events among theirs."""
    events = pl.DataFrame(EVENTS["rows"], schema=EVENTS["columns"], orient="row", infer_schema_length=None)
    times = [pl.col(c).str.to_datetime("%Y-%m-%dT%H:%M:%S", strict=False) for c in ("time", "known_time")]
    dates = [pl.col(c).str.to_datetime("%Y-%m-%d", strict=False) for c in ("time", "known_time")]
    return Timelines.from_events(events.with_columns(pl.coalesce(t, d) for t, d in zip(times, dates, strict=True)))


def main() -> None:
    folder = DATA / f"model_version_{FORMAT_VERSION}"
    if folder.exists():
        raise SystemExit(f"{folder.name} exists and stays as it is: a new format has a new version")
    ProgressionModel(CONFIG).fit(cohort(150, seed=1), TASK).save(folder)
    risk = ProgressionModel.load(folder).forecast(timelines(), AT).risk
    columns = ["subject_id", "outcome", "horizon_days", "probability", "competing", "event_free", "lower", "upper"]
    rows = risk.select(columns).rows()
    text = json.dumps({"columns": columns, "rows": rows}, indent=1)
    (DATA / f"forecasts_version_{FORMAT_VERSION}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
