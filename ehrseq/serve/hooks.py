"""CDS Hooks 2.0: what the service offers to a record system, what it is sent, and the card that it answers with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import uuid4

import msgspec
import polars as pl

from ehrseq import __version__
from ehrseq.explain.explanation import Explanation
from ehrseq.figures import plain
from ehrseq.serve.answer import WHY, Ask, Reply
from ehrseq.serve.problems import Problem
from ehrseq.serve.render import REASONS, names_of, with_horizons
from ehrseq.task.history import visible
from ehrseq.timeline.follow_up import is_contact

SERVICE, HOOK = "ehrseq-forecast", "patient-view"
SUMMARY = 140  # characters, by the specification
# the latest first, so that a first page holds what counts most
PREFETCH = {"patient": "Patient/{{context.patientId}}"} | {
    name: f"{kind}?patient={{{{context.patientId}}}}&_sort=-{when}&_count=1000"
    for name, (kind, when) in {
        "conditions": ("Condition", "recorded-date"), "observations": ("Observation", "date"),
        "medications": ("MedicationRequest", "authoredon"), "procedures": ("Procedure", "date"),
        "immunizations": ("Immunization", "date"), "encounters": ("Encounter", "date"),
    }.items()
}  # fmt: skip
# without these a forecast would be that of someone to whom nothing ever happened
ESSENTIAL = ("patient", "conditions", "observations")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>&~:])")


class Context(msgspec.Struct, rename="camel"):
    """Of which a forecast needs the patient alone."""

    patient_id: str
    user_id: str | None = None


class HookRequest(msgspec.Struct, rename="camel"):
    """What a record system sends, as far as it is read: nothing is fetched from it."""

    hook: str
    hook_instance: str
    context: Context
    prefetch: dict[str, msgspec.Raw] | None = None


class _Head(msgspec.Struct, rename="camel"):
    resource_type: str
    link: Any = None
    entry: list[msgspec.Raw] | None = None


def services() -> dict[str, Any]:
    """The answer to discovery."""
    return {
        "services": [
            {
                "id": SERVICE,
                "hook": HOOK,
                "title": "Forecast of outcomes",
                "description": "Risks of outcomes from the patient's record, with the entries that move them most.",
                "prefetch": PREFETCH,
                "usageRequirements": "Every prefetch key that the record has; nothing is fetched by the service.",
            }
        ]
    }


def read_hook(body: bytes, now: datetime) -> Ask:
    """What a record system asks: about one patient, from the prefetched records as one JSON list, at this moment.

    Raises Problem: 400 for what is no such request, 412 where what a forecast cannot do without did not come: an empty
    search result says that there is nothing, but no result says nothing.
    """
    try:
        request = msgspec.json.decode(body, type=HookRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Problem(400, f"expected a CDS Hooks request of {HOOK} with hook, hookInstance and context.patientId; "
                           "found another document") from None  # fmt: skip
    if request.hook != HOOK:
        raise Problem(400, f"expected the hook {HOOK}; found another")
    given = request.prefetch or {}
    heads = {name: _head(raw) for name, raw in given.items()}
    kinds = {name: head.resource_type for name, head in heads.items() if head is not None}
    came = {name for name in PREFETCH if kinds.get(name) == ("Patient" if name == "patient" else "Bundle")}
    # what came and is neither an answer nor a refusal cannot be left out of a history unseen
    broken = {name for name, raw in given.items() if kinds.get(name) is None and bytes(raw).strip() != b"null"}
    unusable = [name for name in PREFETCH if name in broken or (name in ESSENTIAL and name not in came)]
    if broken - PREFETCH.keys():
        unusable.append("a key that was not asked for")
    if unusable:
        raise Problem(412, f"expected prefetch that can be read of: {', '.join(unusable)}; found none; send each as "
                           "discovery asks for it, with an empty Bundle where nothing is on record")  # fmt: skip
    records = [bytes(given[name]) for name, kind in kinds.items() if kind != "OperationOutcome"]
    return Ask(
        b"[" + b",".join(records) + b"]", now, frozenset([WHY]), patient=request.context.patient_id, live=True,
        form="cards", incomplete=tuple(name for name in PREFETCH if name in came and _goes_on(heads[name])),
        missing=tuple(name for name in PREFETCH if name not in came),
    )  # fmt: skip


def _head(raw: msgspec.Raw) -> _Head | None:
    try:
        return msgspec.json.decode(raw, type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _goes_on(head: _Head | None) -> bool:
    """Whether a search has further pages."""
    links = head.link if head is not None and isinstance(head.link, list) else []
    return any(isinstance(link, dict) and link.get("relation") == "next" for link in links)


def as_cards(reply: Reply, ask: Ask) -> bytes:
    """One card: the risks, and what moves them most. None where nothing can be forecast."""
    risk = with_horizons(reply)
    if not risk.height:
        return NO_CARDS
    names = names_of(reply, ask.document)
    detail = [_moment(reply), "", *_table(risk), *_reasons(reply, names), *_caveats(reply, ask)]
    card = {
        "uuid": str(uuid4()),
        "summary": summary(risk),
        # how urgent a risk is, is for those to say who know what can be done about it
        "indicator": "info",
        "detail": "\n".join(detail),
        "source": {"label": f"ehrseq {__version__} ({reply.forecast.metadata['model']} model)"},
    }
    return msgspec.json.encode({"cards": [card]})


NO_CARDS = b'{"cards":[]}'


def summary(risk: pl.DataFrame) -> str:
    """The risks by the longest horizon that is not extrapolated, the highest first, in SUMMARY characters.

    >>> risk = {"outcome": ["death", "heart_failure"], "horizon": "5y", "horizon_days": 1826.0,
    ...         "probability": [0.071, 0.2], "extrapolated": False}
    >>> summary(pl.DataFrame(risk))
    'Risk by 5y: heart failure 20%, death 7%'
    """
    inside = risk.filter(~pl.col("extrapolated"))
    rows = (inside if inside.height else risk).sort("horizon_days")
    longest = rows["horizon_days"][-1 if inside.height else 0]
    chosen = rows.filter(pl.col("horizon_days") == longest).sort("probability", "outcome", descending=[True, False])
    told = [f"{_words(r['outcome'])} {percent(r['probability'])}" for r in chosen.iter_rows(named=True)]
    return plain(f"Risk by {chosen['horizon'][0]}: {', '.join(told)}", SUMMARY)


def percent(probability: float) -> str:
    """A probability for people.

    >>> percent(0.204), percent(0.0042), percent(0.00004)
    ('20%', '0.4%', '<0.1%')
    """
    points = 100 * probability
    return "<0.1%" if points < 0.1 else f"{points:.1f}%" if points < 1 else f"{points:.0f}%"


def _moment(reply: Reply) -> str:
    """What the forecast was made from: the moment, and how old the latest entry was then."""
    at = reply.forecast.risk["prediction_time"][0]
    seen = reply.timelines.events.filter(is_contact() & visible(pl.col("known_time"), at))["time"].max()
    latest = f"{seen:%Y-%m-%d}" if isinstance(seen, datetime) else "without a date"
    return f"Forecast from what was on record on {at:%Y-%m-%d %H:%M} UTC. Latest entry: {latest}."


def _table(risk: pl.DataFrame) -> list[str]:
    horizons = list(dict.fromkeys(risk.sort("horizon_days")["horizon"].to_list()))
    lines = [f"| outcome | {' | '.join(horizons)} |", "|---" * (1 + len(horizons)) + "|"]
    for (outcome,), rows in risk.sort("outcome").group_by("outcome", maintain_order=True):
        told = {row["horizon"]: _cell(row) for row in rows.iter_rows(named=True)}
        lines.append(f"| {escaped(_words(str(outcome)))} | {' | '.join(told.get(h, '') for h in horizons)} |")
    return [*lines, ""]


def _cell(row: Mapping[str, Any]) -> str:
    between = "" if row["lower"] is None else f" ({percent(row['lower'])} to {percent(row['upper'])})"
    return percent(row["probability"]) + between + (" \\*" if row["extrapolated"] else "")


def _reasons(reply: Reply, names: Mapping[str, str]) -> list[str]:
    """The main reasons of each outcome's forecast by the longest horizon that is not extrapolated."""
    if reply.explanation is None:
        return []
    explanation: Explanation = replace(reply.explanation, names=names)
    reasons = explanation.reasons(REASONS)
    inside = reply.forecast.risk.filter(~pl.col("extrapolated"))
    longest = with_horizons(reply).filter(
        pl.col("horizon_days") == (inside["horizon_days"].max() if inside.height else pl.col("horizon_days").min())
    )
    mine = reasons.join(longest.select("outcome", "horizon").unique(), on=["outcome", "horizon"], how="semi")
    lines = []
    for (outcome,), rows in mine.sort("outcome", "rank").group_by("outcome", maintain_order=True):
        lines += [f"**{escaped(_words(str(outcome)))}**", "", *(f"- {escaped(t)}" for t in rows["text"]), ""]
    return [*lines, *(f"_{escaped(note)}_" for note in explanation.notes[:1]), ""] if lines else []


def _caveats(reply: Reply, ask: Ask) -> list[str]:
    told = [f"{escaped(_words(r['outcome']))}: no forecast ({escaped(_words(r['reason']))})."
            for r in reply.forecast.skipped.drop_nulls("outcome").iter_rows(named=True)]  # fmt: skip
    if reply.forecast.risk["lower"].null_count() < reply.forecast.risk.height:
        told.append("In brackets: the range of the model's members, not a confidence interval.")
    if reply.forecast.risk["extrapolated"].any():
        told.append("\\* beyond what the model was fitted on.")
    if ask.incomplete:
        told.append(f"Only a first page came of: {', '.join(ask.incomplete)}. The forecast has not seen the rest.")
    if ask.missing:
        told.append(f"Nothing came of: {', '.join(ask.missing)}. The forecast has not seen them.")
    ledger = reply.timelines.ledger
    if ledger is not None and (lost := ledger.filter(pl.col("fate") == "quarantined")["count"].sum()):
        told.append(f"Records that could not be read: {lost}. The forecast has not seen them.")
    if reply.forecast.seen.height:
        told.append("The model was fitted on this patient.")
    return told


def _words(name: str) -> str:
    return name.replace("_", " ")


def escaped(text: str) -> str:
    """Untrusted text that stays text in Markdown.

    >>> print(escaped("a [link](x) <b>"))
    a \\[link\\]\\(x\\) \\<b\\>
    """
    return _MARKDOWN.sub(r"\\\1", plain(text, 400))
