"""Replies as JSON, and what a person is told of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import polars as pl

from ehrseq import __version__
from ehrseq.explain.names import display_name
from ehrseq.fhir.codes import system_name
from ehrseq.figures import plain
from ehrseq.forecast.fhir import instant, risk_bundle
from ehrseq.forecast.table import days_ahead
from ehrseq.frames import places
from ehrseq.serve.answer import TIMELINE, WHY, Reply
from ehrseq.timeline.analytes import ANALYTES

REASONS = 3  # of a forecast
EVENTS = 2000  # of a timeline that are sent: the latest
NAME = 80  # characters of a name
_KEY = ("subject_id", "prediction_time")


def as_json(reply: Reply, document: bytes, include: Collection[str] = ()) -> bytes:
    """The reply as `docs/serve.md` describes it; codes are called as in the document, where it calls them anything."""
    forecast = reply.forecast
    # reading a record's names takes as long as a fifth of a forecast: only where something is called by them
    named = WHY in include or TIMELINE in include or reply.unseen.height
    names = names_of(reply, document if named else b"[]")
    people = {row for t in (forecast.risk, forecast.labs) for row in t[[*_KEY, "patient"]].iter_rows()}
    seen = set(forecast.seen["subject_id"].to_list())
    explained = None if reply.explanation is None else replace(reply.explanation, names=names).reasons(REASONS)
    tables = {"risk": with_horizons(reply), "labs": forecast.labs, "reasons": explained, "curves": reply.curves}
    rows = {name: _rows_of_each(table) for name, table in tables.items() if table is not None}
    forecasts = []
    for subject_id, time, patient in sorted(people):
        made: dict[str, Any] = {
            "patient": patient,
            "prediction_time": instant(time),
            "seen_in_training": subject_id in seen,
            **{name: of_each.get((subject_id, time), []) for name, of_each in rows.items()},
        }
        made["labs"] = [row | {"name": lab_name(row, names)} for row in made["labs"]]
        forecasts.append(made)
    content: dict[str, Any] = {
        "model": {"version": __version__, "branch": forecast.metadata["model"]},
        "forecasts": forecasts,
        "skipped": _rows(forecast.skipped, keep=("prediction_time", "patient")),
        "unseen_codes": _unseen(reply, names),
        "records": _records(reply),
        "notes": [] if reply.explanation is None else reply.explanation.notes,
    }
    if TIMELINE in include:
        content["timeline"] = timeline(reply, names)
    return msgspec.json.encode(content)


def lab_name(row: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The analyte's name where the band is in its unit: the document's may speak of another unit."""
    analyte = ANALYTES.get(row["code"])
    return analyte.name if analyte and row["unit"] == analyte.unit else display_name(row["code"], dict(names))


def _unseen(reply: Reply, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """The codes that the model does not know, with how many events of each patient have them."""
    if not reply.unseen.height:
        return []
    people = reply.timelines.subjects.select("subject_id", "patient")
    events = reply.timelines.events.select("subject_id", "code").join(reply.unseen, on="code", how="semi")
    of = dict[str, dict[str, int]]()
    counted = events.join(people, on="subject_id").group_by("code", "patient").len().sort("code", "patient")
    for code, patient, number in counted.iter_rows():
        of.setdefault(code, {})[patient] = number
    return [
        row | {"name": display_name(row["code"], dict(names)), "patients": of.get(row["code"], {})}
        for row in reply.unseen.to_dicts()
    ]


def as_fhir(reply: Reply) -> bytes:
    """The reply as a Bundle of RiskAssessments."""
    return msgspec.json.encode(risk_bundle(reply.forecast, timelines=reply.timelines))


def timeline(reply: Reply, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """The latest events of the patients, for people to look at."""
    events = reply.timelines.events.drop_nulls("time").sort("time", maintain_order=True).tail(EVENTS)
    events = events.join(reply.timelines.subjects.select("subject_id", "patient"), on="subject_id", how="left")
    told = _told(events.select("patient", "time", "known_time", "code", "numeric_value", "unit", "resource_type"))
    return [row | {"name": display_name(row["code"], dict(names))} for row in told]


def names_of(reply: Reply, document: bytes) -> dict[str, str]:
    """Names of codes for people: those of the document go before our own."""
    return {code: analyte.name for code, analyte in ANALYTES.items()} | names_in(document)


def with_horizons(reply: Reply) -> pl.DataFrame:
    """The risk table with the horizon of each row as it was written, such as 5y."""
    risk, spans = reply.forecast.risk, reply.forecast.spans
    found = days_ahead(risk, spans) == risk["horizon_days"].to_numpy()[:, None]
    labels = pl.Series("horizon", [*(span.label for span in spans), None], pl.String)
    return risk.hstack([labels[places(np.where(found.any(1), found.argmax(1), len(spans)))]])


def names_in(document: bytes) -> dict[str, str]:
    """What a document calls its codes. Untrusted text, cut to one short line.

    >>> names_in(b'[{"coding": [{"system": "http://loinc.org", "code": "718-7", "display": "Hb  (blood)"}]}]')
    {'LOINC//718-7': 'Hb (blood)'}
    """
    found: dict[str, str] = {}
    try:
        waiting: list[Any] = [json.loads(document)]  # takes numbers of any size, which msgspec does not
    except (ValueError, RecursionError):
        return {}
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, dict):
            waiting.extend(v for v in item.values() if isinstance(v, dict | list))
            system, code, display = (item.get(k) for k in ("system", "code", "display"))
            if isinstance(display, str) and isinstance(code, str) and isinstance(system, str) and display.strip():
                found[f"{system_name(system)}//{code.strip()}"] = plain(display, NAME)
    return found


def _rows(table: pl.DataFrame, keep: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The rows without what the forecast they stand in says already."""
    left_out = {*_KEY, "patient"} - set(keep)
    return _told(table[[c for c in table.columns if c not in left_out]])


def _rows_of_each(table: pl.DataFrame) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """The rows of each forecast, by its subject and prediction time."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for forecast, row in zip(table[list(_KEY)].iter_rows(), _rows(table), strict=True):
        found.setdefault(forecast, []).append(row)
    return found


def _told(table: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows whose times are text, as FHIR writes them."""
    times = [c for c, kind in table.schema.items() if kind.is_temporal()]
    rows = table.to_dicts()
    for row in rows if times else ():
        row.update({c: None if row[c] is None else instant(row[c]) for c in times})
    return rows


def _records(reply: Reply) -> dict[str, dict[str, int]]:
    """What became of the records: by fate, how many for each reason."""
    ledger = reply.timelines.ledger
    counts: dict[str, dict[str, int]] = {}
    if ledger is not None:
        for fate, reason, count in sorted(ledger[["fate", "reason", "count"]].iter_rows()):
            of = counts.setdefault(fate, {})
            of[reason or "read"] = of.get(reason or "read", 0) + count
    return counts
