"""Integrated gradients: how the forecast of the networks alone is made up of the embeddings of the events they read.

Each event's embedding grows from zero to what it is, all events together on a straight line, while the queries (age,
times and the summary of the history) stay as they are. An event's attribution is the integral of the gradient of the
cumulative incidence along its embedding, summed over the embedding's dimensions and over the members of the ensemble
(Sundararajan, Taly and Yan, "Axiomatic attribution for deep networks", 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from ehrseq.errors import ForecastError
from ehrseq.model.fitted import Fitted
from ehrseq.model.heads import HazardName
from ehrseq.task.definition import Horizon
from ehrseq.timeline.schema import TIME
from ehrseq.timeline.store import Timelines
from ehrseq.tokens.batch import Batch, Batches, plan_sequences
from ehrseq.tokens.encode import encode, merged_tokens

STEPS = 256
TOKENS_AT_ONCE = 8192
# Every layer reads the embeddings through a norm, so much happens where these are a millionth of what they are and
# less: steps of the eighth root of their scale get there. The line, and so the integral, is the same.
POWER = 8
GRADIENT_SCHEMA: dict[str, Any] = {
    "subject_id": pl.Int64,
    "patient": pl.String,
    "prediction_time": TIME,
    "outcome": pl.String,
    "horizon": pl.String,
    "time": TIME,  # null for a dateless fact
    "known_time": TIME,
    "code": pl.String,
    "attribution": pl.Float64,  # on the risk scale
    "probability": pl.Float64,  # forecast by the networks
    "baseline": pl.Float64,  # the same with the embeddings of all events at zero
    "gap": pl.Float64,  # sum of the attributions - (probability - baseline): 0 were the integral exact
}


def check_gradients(fitted: Fitted, steps: int) -> None:
    """Raise ForecastError unless there are networks, a step, and captum."""
    if not fitted.networks:
        raise ForecastError("a model with networks", "one without", "fit a hybrid or a transformer, or use `explain`")
    if steps < 1:
        raise ForecastError("at least one step", f"{steps}", "ask for more")
    _captum()


def integrated_gradients(
    fitted: Fitted, timelines: Timelines, scored: pl.DataFrame, spans: Sequence[Horizon], max_events: int,
    steps: int = STEPS,
) -> pl.DataFrame:  # fmt: skip
    """Attributions of the rows of `scored` (`subject_id, patient, prediction_time, outcome`) as `GRADIENT_SCHEMA`."""
    method = _captum()
    subjects = timelines.subjects.join(scored, on="subject_id", how="semi").sort("subject_id")
    encoded = encode(timelines.events, subjects, fitted.vocabulary)
    tokens = merged_tokens(timelines.events, subjects, fitted.vocabulary).select("time", "known_time", "code")
    batches = Batches(encoded, len(fitted.vocabulary.summary_codes), max_events)
    tables = [pl.DataFrame(schema=GRADIENT_SCHEMA)]
    for (subject, time), rows in scored.group_by("subject_id", "prediction_time", maintain_order=True):
        row = encoded.position(np.array([subject]))
        at = pl.Series([time], dtype=TIME)
        sequences = plan_sequences(encoded, row, at.dt.epoch("us").to_numpy(), max_events)
        batch = batches.collate(sequences, np.array([0]), row, at.dt.epoch("us").to_numpy())
        read = tokens[batches.token_rows(sequences, np.array([0]))[0][0]]
        hazards = scaled_hazards(fitted, batch)
        for span in spans:
            days = float(pl.select(span.days_after(pl.lit(at))).item())
            for told in rows.iter_rows(named=True):
                answer = attribute(method, incidence(fitted, hazards, told["outcome"], days), read.height, steps)
                attribution, probability, baseline = answer
                named = [pl.lit(told[c]).alias(c) for c in ("subject_id", "patient", "prediction_time", "outcome")]
                table = read.with_columns(
                    *named, horizon=pl.lit(span.label), attribution=pl.Series(attribution),
                    probability=pl.lit(probability), baseline=pl.lit(baseline),
                    gap=pl.lit(float(attribution.sum()) - (probability - baseline)),
                )  # fmt: skip
                tables.append(table.select(pl.col(c).cast(t) for c, t in GRADIENT_SCHEMA.items()))
    return pl.concat(tables)


Scaled = Callable[[Tensor], Tensor]
"""From the scales of the events' embeddings, (S, E) to the power of 1 / POWER, to what is forecast."""


def scaled_hazards(fitted: Fitted, batch: Batch) -> Scaled:
    """(S, E) to (S, H, I): log hazards of the transformer branch for a batch of one query, members averaged."""
    adjustment = fitted.adjustments["transformer"]
    slope, shift = torch.from_numpy(adjustment.slope), torch.from_numpy(adjustment.shift)
    with torch.no_grad():
        embedded = [network.eval().embed_events(batch) for network in fitted.networks]

    def hazards(scale: Tensor) -> Tensor:
        copies = Batch(**{f.name: _repeat(getattr(batch, f.name), len(scale)) for f in fields(Batch)})
        grown = (scale**POWER)[..., None]
        members = [n(copies, grown * x)[:, 0] for n, x in zip(fitted.networks, embedded, strict=True)]
        return slope[:, None] * torch.stack(members).double().mean(0) + shift

    return hazards


def incidence(fitted: Fitted, hazards: Scaled, outcome: str, days: float) -> Scaled:
    """(S, E) to (S,): cumulative incidence of an outcome by a horizon, the closed form of `cumulative_incidence`."""
    own, rival = (HazardName(outcome, competing=competing) for competing in (False, True))
    edges = torch.from_numpy(fitted.edges)
    widths = torch.cat([edges[1:-1] - edges[:-2], torch.tensor([torch.inf], dtype=edges.dtype)])
    overlap = torch.minimum((days - edges[:-1]).clamp(min=0), widths)

    def forecast(scale: Tensor) -> Tensor:
        rate = hazards(scale).exp()
        mine = rate[:, fitted.hazards.index(own)]
        total = mine + rate[:, fitted.hazards.index(rival)] if rival in fitted.hazards else mine
        passed = total * overlap
        start = passed.cumsum(-1) - passed
        return (mine / total * torch.exp(-start) * -torch.expm1(-passed)).sum(-1)

    return forecast


def attribute(method: Any, forecast: Scaled, n_events: int, steps: int) -> tuple[NDArray[np.float64], float, float]:
    """Attributions of the events (E,), the forecast, and the baseline's."""
    whole = torch.ones(1, n_events)
    with torch.no_grad():
        probability, baseline = (float(forecast(scale).item()) for scale in (whole, torch.zeros_like(whole)))
    # The derivative by an event's scale is the gradient by its embedding times the embedding, summed over dimensions.
    attribution = method(forecast).attribute(
        whole, n_steps=steps, method="gausslegendre", internal_batch_size=max(1, TOKENS_AT_ONCE // (n_events + 1))
    )
    return attribution[0].double().numpy(), probability, baseline


def _repeat(x: Tensor, n: int) -> Tensor:
    return x.expand(n, *x.shape[1:])


def _captum() -> Any:
    """captum's IntegratedGradients; ForecastError where it is not installed."""
    try:
        from captum.attr import IntegratedGradients
    except ImportError:
        raise ForecastError(
            "captum, for integrated gradients", "none installed",
            "install the extra `explain`: pip install '.[explain]' in the folder of the sources",
        ) from None  # fmt: skip
    return IntegratedGradients
