"""Fitting head B on a frozen network: the next moment, its codes and their values. No files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from ehrseq.model.adjustment import Outcomes, fit_level
from ehrseq.model.code_state import CodeState
from ehrseq.model.heads import exposure_and_interval
from ehrseq.model.landmarks import draw_landmarks
from ehrseq.model.network import ProgressionNetwork
from ehrseq.model.path_model import (
    Emitted,
    PathModel,
    features_of,
    mark_terms,
    own_terms,
    tracked_codes,
    value_terms,
)
from ehrseq.model.sample import Labeller, Part
from ehrseq.task.definition import Outcome, Task
from ehrseq.task.predicate import code_matches
from ehrseq.timeline.schema import DEATH_CODE
from ehrseq.tokens.batch import Batches
from ehrseq.tokens.encode import MICROSECONDS_PER_DAY, STATIC
from ehrseq.tokens.vocabulary import FIRST_CODE, Vocabulary, is_static_fact

Float = NDArray[np.float64]
Index = NDArray[np.int64]
QUERIES = 8000  # of each kind: any time, and just after a moment
FROM_EACH = 16  # of a subject on average: more of them say the same again
INTERVALS = 24
QUANTILES = 41
PENALTY = 5.0  # of a weight's square, in observations: rare codes keep to what all people have in common
TOKENS_PER_BATCH = 8192
FEWEST_VALUES = 20


@dataclass(frozen=True)
class Asked:
    """Q queries of a part, what the network makes of them, and the moment that follows each.

    represented (Q, width), times (Q, 6); log_hazard (Q, H, I); days (Q,) to the next moment or the end, and whether it
    was a moment; codes (Q, C) of that moment and values (Q, C) scaled, NaN for none; state of the C codes at the query.
    """

    row: Index
    time: Index
    represented: Float
    times: Float
    log_hazard: Float
    days: Float
    happened: NDArray[np.bool_]
    codes: NDArray[np.bool_]
    values: Float
    state: CodeState


def fit_paths(
    network: ProgressionNetwork, part: Part, labeller: Labeller, task: Task, vocabulary: Vocabulary, max_events: int,
    seed: int,
) -> PathModel:  # fmt: skip
    """Head B of one network, from the training subjects."""
    emitted = emitted_codes(task, [h.outcome for h in labeller.hazards], vocabulary, part)
    codes = path_codes(task, vocabulary, emitted)
    end = part.lived_until
    rng = np.random.default_rng([seed, 4])
    numbers = _numbers(vocabulary, codes)[part.encoded.code]
    anywhere = _anywhere(part.start, end, rng)
    moments = _moments(part, numbers, end, rng)
    parts = [ask(network, part, numbers, len(codes), *q, end, vocabulary, max_events) for q in (anywhere[:2], moments)]
    weights = (anywhere[2], np.ones(len(moments[0])))
    edges = network.head.edges.double().numpy()
    levels = [_level(asked, w, part, labeller, edges) for asked, w in zip(parts, weights, strict=True)]
    days = np.concatenate([p.days[p.happened] for p in parts])
    own_edges = _edges(days, edges[-1])
    features = [features_of(p.represented, p.times, p.state, p.time) for p in parts]
    hazard = _fit_hazard(np.concatenate(features), parts, own_edges)
    marks, own, chain = _fit_codes(np.concatenate(features), parts)
    coefficient, residual, share, bounds = _fit_values(parts)
    return PathModel(
        codes, _scales(vocabulary, codes, part), emitted, own_edges, hazard, marks, own, chain, coefficient, residual,
        share, bounds, *levels,
    )  # fmt: skip


def emitted_codes(task: Task, fitted: Sequence[str], vocabulary: Vocabulary, part: Part) -> Emitted:
    """Of each fitted outcome that is an event, the codes it comes with, weighted by how many subjects have them.

    Outcomes that follow from values or from other outcomes are not drawn: they happen when their events do. Nor are
    those that share a code with one before them in the task, which would bring it twice as often.
    """
    owner = np.repeat(np.arange(len(part.start)), np.diff(part.encoded.offset))
    pairs = np.unique(np.column_stack([part.encoded.code, owner]), axis=0)[:, 0]
    subjects = np.bincount(pairs, minlength=vocabulary.n_codes)[FIRST_CODE:]
    out: Emitted = {}
    taken: set[str] = set()
    for outcome in (o for o in task.outcomes if o.name in fitted):
        patterns = event_patterns(outcome, task)
        codes: list[tuple[str, float]] = []
        if patterns == (DEATH_CODE,):
            codes = [(DEATH_CODE, 1.0)]
        elif patterns:
            matches = pl.DataFrame({"code": vocabulary.codes}).select(code_matches(patterns)).to_series().to_numpy()
            known = [(vocabulary.codes[i], float(subjects[i])) for i in np.flatnonzero(matches) if subjects[i]]
            exact = [p for p in patterns if not p.endswith("*")] or [p[:-1] for p in patterns]
            codes = known or [(exact[0], 1.0)]
        if codes and taken.isdisjoint(code for code, _ in codes):
            out[outcome.name] = codes
            taken.update(code for code, _ in codes)
    return out


def event_patterns(outcome: Outcome, task: Task) -> tuple[str, ...]:
    """The codes of an outcome that happens with one event of these codes; none where more than that is asked, and for
    death beside something else, which is known of another outcome.

    >>> task = Task.from_dict({"horizons": ["1y"], "prediction_times": {"rule": "every_encounter"}, "outcomes": {
    ...     "mi": {"codes": ["SNOMED//22298006"]}, "ckd": {"measure": "LOINC//1-1", "above": 3}}})
    >>> [event_patterns(o, task) for o in task.outcomes]
    [('SNOMED//22298006',), ()]
    """
    if outcome.admission is not None:
        return task.stay(outcome.admission).admissions
    if outcome.discharge is not None:
        return task.stay(outcome.discharge).discharges
    if outcome.measure is not None or outcome.confirm is not None:
        return ()
    if outcome.any_of and all(isinstance(p, Outcome) for p in outcome.any_of):
        parts = [event_patterns(p, task) for p in outcome.own_parts]
        together = tuple(c for patterns in parts for c in patterns) if all(parts) else ()
        return () if DEATH_CODE in together else together
    patterns = () if outcome.parts else outcome.patterns
    return () if DEATH_CODE in patterns and len(patterns) > 1 else patterns


def path_codes(task: Task, vocabulary: Vocabulary, emitted: Emitted) -> tuple[str, ...]:
    """The codes that moments are made of: those of the summary, of the outcomes' definitions, and the labs."""
    patterns = [p for o in task.definitions for p in o.patterns] + list(task.labs)
    table = pl.DataFrame({"code": vocabulary.codes}, schema={"code": pl.String})
    named = table.filter(code_matches(patterns))["code"].to_list() if patterns else []
    named += [code for codes in emitted.values() for code, _ in codes if code in vocabulary.codes]
    wanted = [c for c in vocabulary.summary_codes if not is_static_fact(c)]
    return tuple(dict.fromkeys([*wanted, *named]))


def ask(
    network: ProgressionNetwork, part: Part, numbers: Index, n: int, row: Index, time: Index, end: Index,
    vocabulary: Vocabulary, max_events: int,
) -> Asked:  # fmt: skip
    """What there is to learn from at queries, from the frozen network and from what follows."""
    represented, times, log_hazard = represent(network, part, row, time, vocabulary, max_events)
    days, happened, codes, values = next_moments(part, numbers, n, row, time, end)
    state = CodeState.at(part.encoded, numbers, n, row, time)
    return Asked(row, time, represented, times, log_hazard, days, happened, codes, values, state)


def represent(
    network: ProgressionNetwork, part: Part, row: Index, time: Index, vocabulary: Vocabulary, max_events: int
) -> tuple[Float, Float, Float]:
    """The representation (Q, width), the scaled times (Q, 6) and the log hazards (Q, H, I) at queries."""
    found: list[list[Float]] = [[], [], []]
    order = []
    with torch.inference_mode():
        for batch in Batches(part.encoded, len(vocabulary.summary_codes), max_events).over(row, time, TOKENS_PER_BATCH):
            asked = batch.query >= 0
            order.append(batch.query[asked].numpy())
            represented, times = network.represent(batch)[asked], network.query_times.scaled(batch.query_features)
            several = (represented, times[asked], network.head(represented, times[asked]))
            for column, x in zip(found, several, strict=True):
                column.append(x.double().numpy())
    back = np.argsort(np.concatenate(order))
    out = [np.concatenate(column)[back] for column in found]
    return out[0], out[1], out[2]


def next_moments(
    part: Part, numbers: Index, n: int, row: Index, time: Index, end: Index
) -> tuple[Float, NDArray[np.bool_], NDArray[np.bool_], Float]:
    """Days to the next moment of any of n codes (or to the end), whether there is one, its codes and their values."""
    encoded = part.encoded
    owner = np.repeat(np.arange(len(encoded.subject_id)), np.diff(encoded.offset))
    mine = np.flatnonzero((numbers >= 0) & (encoded.known_time != STATIC))
    known = encoded.known_time[mine]
    instants = np.unique(np.append(known, time))
    stride = len(instants) + 1
    key = owner[mine] * stride + np.searchsorted(instants, known)
    first = np.searchsorted(key, row * stride + np.searchsorted(instants, time), side="right")
    found = first < len(mine)
    at = mine[np.minimum(first, max(len(mine) - 1, 0))] if len(mine) else np.zeros(len(row), np.int64)
    left = end[row] - time
    happened = found & (owner[at] == row) & (encoded.known_time[at] - time <= left) if len(mine) else found
    days = np.where(happened, encoded.known_time[at] - time, left) / MICROSECONDS_PER_DAY
    codes, values = np.zeros((len(row), n), bool), np.full((len(row), n), np.nan)
    query = np.flatnonzero(happened)
    token = first[query]
    this = key[token]
    while len(query):  # one event of each moment at a time
        column = numbers[mine[token]]
        value = encoded.value[mine[token]]
        codes[query, column] = True
        values[query, column] = np.where(np.isnan(value), values[query, column], value)
        token = token + 1
        more = token < len(mine)
        more[more] = key[token[more]] == this[more]
        query, token, this = query[more], token[more], this[more]
    return days, happened, codes, values


def _numbers(vocabulary: Vocabulary, codes: tuple[str, ...]) -> Index:
    """(n_codes of the vocabulary,) place among `codes`, -1 for none."""
    out = np.full(vocabulary.n_codes, -1, np.int64)
    out[[FIRST_CODE + vocabulary.codes.index(c) for c in codes]] = np.arange(len(codes))
    return out


def tracked_numbers(vocabulary: Vocabulary, codes: tuple[str, ...]) -> tuple[Index, Index]:
    """The place of each vocabulary code among the tracked ones (-1 for none), and that of each of `codes`."""
    tracked = tracked_codes(vocabulary, codes)
    return _numbers(vocabulary, tracked), np.array([tracked.index(c) for c in codes], dtype=np.int64)


def _anywhere(start: Index, end: Index, rng: np.random.Generator) -> tuple[Index, Index, Float]:
    """Rows, times and weights of landmarks."""
    row, time, weight = draw_landmarks(start, end, int(np.clip(QUERIES // len(start), 1, FROM_EACH)), rng)
    some = np.flatnonzero(end[row] > time)
    some = np.sort(rng.choice(some, min(QUERIES, len(some)), replace=False))
    return row[some], time[some], weight[some]


def _moments(part: Part, numbers: Index, end: Index, rng: np.random.Generator) -> tuple[Index, Index]:
    """Rows and times just after moments within follow-up: where a path asks what comes next."""
    owner = np.repeat(np.arange(len(part.start)), np.diff(part.encoded.offset))
    known = part.encoded.known_time
    inside = (numbers >= 0) & (known >= part.start[owner]) & (known < end[owner])
    pairs = np.unique(np.column_stack([owner[inside], known[inside]]), axis=0)
    n = min(QUERIES, FROM_EACH * len(part.start), len(pairs))
    some = np.sort(rng.choice(len(pairs), n, replace=False))
    return pairs[some, 0], pairs[some, 1]


def _level(asked: Asked, weight: Float, part: Part, labeller: Labeller, edges: Float) -> Float:
    """(H, I) what sets the network's log hazards right at these queries."""
    if not len(asked.row):
        return np.zeros(asked.log_hazard.shape[1:])
    found = labeller.after(part.encoded.subject_id[asked.row], asked.time, weight)
    return fit_level([(asked.log_hazard, Outcomes.of(found, edges, 1))]).shift


def _edges(days: Float, last: float) -> Float:
    """Intervals on quantiles of the waits between moments."""
    inner = np.unique(np.quantile(days, np.linspace(0, 1, INTERVALS + 1)[1:-1])) if len(days) else np.zeros(0)
    return np.concatenate([[0.0], inner[(inner > 0) & (inner < last)], [last]])


def _fit_hazard(features: Float, parts: list[Asked], edges: Float) -> Float:
    """(F, B) weights of the log hazard of the next moment.

    The likelihood asks whether a moment comes in an interval, not when: waits that are always the same (a visit of a
    quarter of an hour) have no constant hazard, whose likelihood would leave a third of them out. The last interval is
    long, and has the censored likelihood of times.
    """
    days = np.concatenate([p.days for p in parts])
    happened = np.concatenate([p.happened for p in parts])
    exposure, interval = exposure_and_interval(days, edges)
    n = len(edges) - 1
    event = np.zeros_like(exposure)
    inside = happened & (interval < n)
    event[np.flatnonzero(inside), interval[inside]] = 1
    start = np.zeros((features.shape[1], n))
    start[-1] = np.log((event.sum(0) + 0.5) / np.maximum(exposure.sum(0), 1e-9))
    grouped = np.arange(n) < n - 1
    width = np.where(grouped, np.diff(edges), 1.0)
    exposure = np.where(grouped & (event > 0), 0, exposure)
    x, at_risk, seen, whole = (torch.from_numpy(a) for a in (features, exposure, event, np.log(width)))
    is_grouped = torch.from_numpy(grouped)

    def loss(weights: list[Tensor]) -> Tensor:
        log_hazard = (x @ weights[0]).clamp(-30, 30)
        within = (log_hazard + whole).exp().clamp(1e-12, 50)
        happens = torch.where(is_grouped, torch.log(-torch.expm1(-within)), log_hazard)
        nll: Tensor = (log_hazard.exp() * at_risk - seen * happens).sum()
        return nll + PENALTY / 2 * weights[0][:-1].square().sum()

    return _minimise(loss, [start], len(x))[0]


def _fit_codes(features: Float, parts: list[Asked]) -> tuple[Float, Float, Float]:
    """Weights (F + 2, C), (3, C), (C, C) of the logits of a moment's codes."""
    happened = np.concatenate([p.happened for p in parts])
    wait = np.concatenate([p.days for p in parts])[happened]
    codes = np.concatenate([p.codes for p in parts])[happened].astype(np.float64)
    own = np.concatenate([own_terms(p.state, _next_time(p)) for p in parts])[happened]
    x, target, terms = torch.from_numpy(mark_terms(features[happened], wait)), torch.from_numpy(codes), own
    intercept = features.shape[1] - 1
    n = codes.shape[1]
    start = [np.zeros((x.shape[1], n)), np.zeros((3, n)), np.zeros((n, n))]
    rate = (codes.sum(0) + 0.5) / (len(codes) + 1.0)
    start[0][intercept] = np.log(rate) - np.log1p(-rate)
    each = torch.from_numpy(terms)

    def loss(weights: list[Tensor]) -> Tensor:
        logit = x @ weights[0] + (each * weights[1]).sum(1) + target @ weights[2].triu(1)
        nll = torch.nn.functional.binary_cross_entropy_with_logits(logit, target, reduction="sum")
        squares = sum(w.square().sum() for w in weights) - weights[0][intercept].square().sum()
        total: Tensor = nll + PENALTY / 2 * squares
        return total

    marks, own, chain = _minimise(loss, start, max(len(codes), 1))
    return marks, own, np.triu(chain, 1)


def _fit_values(parts: list[Asked]) -> tuple[Float, Float, Float, Float]:
    """Coefficients (7, C), residual quantiles (2, K, C), share with a value (C,), bounds (2, C)."""
    happened = np.concatenate([p.happened for p in parts])
    codes = np.concatenate([p.codes for p in parts])[happened]
    values = np.concatenate([p.values for p in parts])[happened]
    terms = np.concatenate([value_terms(p.state, _next_time(p)) for p in parts])[happened]
    n = codes.shape[1]
    valued = ~np.isnan(values)
    # a value that few were seen with would be theirs on every path
    valued &= valued.sum(0) >= FEWEST_VALUES
    share = valued.sum(0) / np.maximum(codes.sum(0), 1)
    probabilities = np.clip(np.linspace(0, 1, QUANTILES), 0.005, 0.995)
    coefficient, residual, bounds = np.zeros((terms.shape[1], n)), np.zeros((2, QUANTILES, n)), np.zeros((2, n))
    penalty = PENALTY * np.diag(np.arange(terms.shape[1]) > 0)
    for c in np.flatnonzero(valued.any(0)):
        x, y = terms[valued[:, c], :, c], values[valued[:, c], c]
        coefficient[:, c] = np.linalg.lstsq(x.T @ x + penalty, x.T @ y, rcond=None)[0]
        left = y - x @ coefficient[:, c]
        bounds[:, c] = np.quantile(y, [0.005, 0.995])
        for earlier in (0, 1):
            some = left[x[:, 1] == earlier]
            residual[earlier, :, c] = np.quantile(some if len(some) else left, probabilities)
    return coefficient, residual, share, bounds


def _next_time(asked: Asked) -> Index:
    return asked.time + np.round(asked.days * MICROSECONDS_PER_DAY).astype(np.int64)


def _minimise(loss: Callable[[list[Tensor]], Tensor], start: list[Float], n: int) -> list[Float]:
    """The weights at the minimum of a convex loss, a sum over n observations."""
    weights = [torch.from_numpy(w).requires_grad_() for w in start]
    optimizer = torch.optim.LBFGS(weights, max_iter=60, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(weights) / n
        torch.autograd.backward(value)
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return [w.detach().numpy().copy() for w in weights]


def _scales(vocabulary: Vocabulary, codes: tuple[str, ...], part: Part) -> tuple[int, ...]:
    """The value scale of each code that most of its values are on, -1 for none."""
    first = 1 + np.cumsum([0, *(len(s.knots) for s in vocabulary.scales)])
    knot = part.encoded.knot
    used = np.bincount(np.searchsorted(first, knot[knot > 0], side="right") - 1, minlength=len(vocabulary.scales))
    out = []
    for code in codes:
        mine = [i for i, s in enumerate(vocabulary.scales) if s.code == code]
        out.append(max(mine, key=lambda i: int(used[i])) if mine else -1)
    return tuple(out)
