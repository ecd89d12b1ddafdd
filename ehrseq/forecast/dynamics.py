"""What a fitted network makes of subjects whose futures are being sampled, one moment a step."""

from __future__ import annotations

import copy
from dataclasses import fields

import numpy as np
import torch
from numpy.typing import NDArray

from ehrseq.errors import ForecastError
from ehrseq.features.summary import DAY
from ehrseq.model.cache import Cache
from ehrseq.model.code_state import CodeState
from ehrseq.model.fitted import HYBRID, Fitted
from ehrseq.model.network import ProgressionNetwork
from ehrseq.model.path_fitting import tracked_numbers
from ehrseq.model.path_model import PathModel, features_of
from ehrseq.task.history import visible
from ehrseq.tokens.batch import FEATURES, Batch, Batches, Sequences, visible_end
from ehrseq.tokens.encode import STATIC, EncodedTimelines
from ehrseq.tokens.vocabulary import FIRST_CODE, UNKNOWN

Float = NDArray[np.float64]
Index = NDArray[np.int64]
Flags = NDArray[np.bool_]
YEAR = 365.25 * DAY
UNSEEN_DAYS = 3652.5  # what the summary takes for the time since the last event where there is none


class Sampler:
    """What all batches share: a network in float64, its head B, and encoded timelines.

    In float32, who shares a batch would move the last digits of a hazard, and a time by seconds.
    """

    def __init__(self, fitted: Fitted, encoded: EncodedTimelines, max_events: int) -> None:
        if fitted.paths is None or not fitted.networks:
            raise ForecastError(
                "a model that can sample paths", "one without", "fit the model again, as a transformer or hybrid"
            )
        self.model: PathModel = fitted.paths
        self.networks: list[ProgressionNetwork] = [copy.deepcopy(n).double().eval() for n in fitted.networks]
        self.fitted, vocabulary = fitted, fitted.vocabulary
        self.batches = Batches(encoded, len(vocabulary.summary_codes), max_events)
        self.max_events = max_events
        self.edges = fitted.edges
        numbers, self.own = tracked_numbers(vocabulary, self.model.codes)
        self.tracked = numbers[encoded.code]
        self.n_tracked = int(numbers.max(initial=-1)) + 1
        self.token = np.array([FIRST_CODE + vocabulary.codes.index(c) for c in self.model.codes], dtype=np.int64)
        self.above = vocabulary.ancestor_table()
        self.scales = [vocabulary.scales[s] if s >= 0 else None for s in self.model.scales]
        first = 1 + np.cumsum([0, *(len(s.knots) for s in vocabulary.scales)])
        self.first_knot = np.array([first[s] if s >= 0 else 0 for s in self.model.scales], dtype=np.int64)
        longest = max((len(s.knots) for s in self.scales if s is not None), default=1)
        self.knots = np.full((len(self.scales), longest + 1), np.inf)  # one column of nothing above the last knot
        self.middle, self.spread = np.zeros(len(self.scales)), np.ones(len(self.scales))
        for i, scale in enumerate(self.scales):
            if scale is not None:
                self.knots[i, : len(scale.knots)] = scale.knots
                self.middle[i], self.spread[i] = scale.centre, scale.spread

    def histories(self, row: Index, time: Index) -> Batch:
        """One sequence a query, in float64."""
        encoded, asked = self.batches.encoded, np.arange(len(row))[:, None]
        end = visible_end(encoded, row, time)
        length = np.minimum(end - encoded.offset[row], self.max_events)
        batch = self.batches.collate(Sequences(row, end, length, asked), asked[:, 0], row, time)
        columns = {f.name: getattr(batch, f.name) for f in fields(Batch)}
        return Batch(**{name: x.double() if x.is_floating_point() else x for name, x in columns.items()})

    @property
    def network(self) -> ProgressionNetwork:
        """The network that paths are sampled with: head B was fitted on its representations."""
        return self.networks[0]

    def issued(self, row: Index, time: Index, branch: str) -> Float:
        """(Q, H, I) log hazards of a branch, the mean of its members, with the networks in float64."""
        encoded, raw = self.batches.encoded, {}
        if branch in ("transformer", "hybrid"):
            batch = self.histories(row, time)
            with torch.inference_mode():
                raw["transformer"] = np.stack([network(batch)[:, 0].numpy() for network in self.networks])
        for part in ("boosted", "cox"):
            if branch == part or (branch == "hybrid" and part in HYBRID):
                raw |= self.fitted.raw(encoded, row, time, max_events=self.max_events, branch=part)
        return np.asarray(self.fitted.combine(raw, branch).mean(0))

    def knot_of(self, code: Index, value: Float) -> tuple[Index, Float]:
        """The knot below a scaled value and the weight of the knot above; (0, 0) without a value."""
        has = ~np.isnan(value) & (self.first_knot[code] > 0)
        x = (self.middle[code] + self.spread[code] * np.where(has, value, 0))[..., None]
        knots = self.knots[code]
        n = np.isfinite(knots).sum(-1)
        below = np.clip((x >= knots).sum(-1) - 1, 0, np.maximum(n - 2, 0))
        low, high = (np.take_along_axis(knots, (below + i)[..., None], -1)[..., 0] for i in (0, 1))
        inside = np.isfinite(high)
        part = np.where(inside, x[..., 0] - low, 0) / np.where(inside, np.where(inside, high, 1) - low, 1)
        return np.where(has, self.first_knot[code] + below, 0), np.where(has, np.clip(part, 0, 1), 0)


class NetworkDynamics:
    """S subjects at their prediction times, P paths of each: hazards now, then move on with what happened.

    `issued` (S, D, I) are the log hazards of the forecast for the D outcomes that are drawn, `hazard` (D,) which of the
    network's each is. The network's own hazards, evaluated anew at every moment, are set off by what the forecast said
    more at the prediction time, so that paths speak of the risks that were issued.
    """

    def __init__(self, sampler: Sampler, row: Index, time: Index, level: Float, hazard: Index, n_paths: int) -> None:
        self.sampler, self.hazard, self.level = sampler, hazard, level
        self.edges = sampler.edges
        self.moment_edges = sampler.model.edges
        encoded, shape = sampler.batches.encoded, (len(row), n_paths)
        with torch.inference_mode():
            self.cache = Cache(sampler.network, sampler.histories(row, time), n_paths, sampler.max_events)
        one = CodeState.at(encoded, sampler.tracked, sampler.n_tracked, row, time)
        self.state = one.take(np.repeat(np.arange(len(row))[:, None], n_paths, axis=1))
        self.dated = [self._dated(encoded, r, t) for r, t in zip(row, time, strict=True)]
        count = np.array([len(d) for d in self.dated])
        ends = np.array([(d[0], d[-1]) if len(d) else (STATIC, STATIC) for d in self.dated]).reshape(-1, 2)
        self.now, self.first, self.last, self.birth, self.count = (
            np.broadcast_to(x[:, None], shape).copy() for x in (time, ends[:, 0], ends[:, 1], encoded.birth[row], count)
        )
        self.moments = np.zeros((*shape, 0), np.int64)
        self.sizes = np.zeros((*shape, 0), np.int64)
        self.offset = np.zeros((*shape, *level.shape[1:]))
        self.events = torch.zeros(*shape, 0, sampler.network.code.embedding_dim, dtype=torch.float64)
        self.n_new = torch.zeros(shape, dtype=torch.int64)
        self.features = np.zeros((*shape, 0))
        self.started = False

    def hazards(self) -> tuple[Float, Float]:
        """Log hazards (S, P, D, I) of the outcomes, without the offset, and (S, P, B) of the next moment."""
        network, model = self.sampler.network, self.sampler.model
        with torch.inference_mode():
            times = torch.from_numpy(self._query_times())
            query = network.query_times(times) + network.summary(torch.from_numpy(self._summary()))
            represented = self.cache.advance(self.events, self.n_new, query)
            scaled = network.query_times.scaled(times)
            log_hazard = network.head(represented, scaled).numpy()[:, :, self.hazard]
        own = self.state.take(..., self.sampler.own)
        self.features = features_of(represented.numpy(), scaled.numpy(), own, self.now)
        log_hazard = log_hazard + (model.moment_level if self.started else model.level)[self.hazard]
        if not self.started:
            self.offset = self.level[:, None] - log_hazard
            self.started = True
        return log_hazard, model.log_hazard(self.features)

    def draw(self, time: Index, uniform: Float) -> tuple[Flags, Float]:
        """Which codes (S, P, C) the moment at `time` has, and their scaled values, NaN for none."""
        n = len(self.sampler.model.codes)
        own = self.state.take(..., self.sampler.own)
        wait = (time - self.now) / DAY
        codes = self.sampler.model.draw_codes(self.features, wait, own, time, uniform[..., :n])
        values = self.sampler.model.draw_values(own, time, uniform[..., n:])
        return codes, np.where(codes, values, np.nan)

    def move(self, time: Index, codes: Flags, values: Float, unknown: Index) -> None:
        """Go on to `time` (S, P), where events of `codes` (S, P, C) became known, and `unknown` (S, P) others."""
        n_new = codes.sum(-1) + unknown
        most = int(n_new.max(initial=0))
        order = np.argsort(~codes, axis=-1, kind="stable")[..., :most]
        order = np.concatenate([order, np.zeros((*order.shape[:2], most - order.shape[2]), np.int64)], axis=2)
        is_code = np.arange(most) < codes.sum(-1)[..., None]
        real = np.arange(most) < n_new[..., None]
        knot, fraction = self.sampler.knot_of(order, np.take_along_axis(values, order, -1))
        token = np.where(is_code, self.sampler.token[order], np.where(real, UNKNOWN, 0))
        some = n_new > 0
        gap = np.where(self.last == STATIC, 0, time - np.where(self.last == STATIC, time, self.last))
        self.first = np.where(some & (self.first == STATIC), time, self.first)
        times = self._times(time, gap, np.where(self.first == STATIC, time, self.first))
        with torch.inference_mode():
            self.events = self._embed(token, np.where(is_code, knot, 0), np.where(is_code, fraction, 0), times)
        self.n_new = torch.from_numpy(n_new)
        where = np.zeros(self.state.count.shape, dtype=bool)
        scaled = np.full(where.shape, np.nan)
        where[..., self.sampler.own], scaled[..., self.sampler.own] = codes, np.clip(values, -5, 5)
        self.state.add(where, time, scaled)
        self.last = np.where(some, time, self.last)
        self.count = self.count + n_new
        self.moments = np.concatenate([self.moments, time[..., None]], axis=2)
        self.sizes = np.concatenate([self.sizes, n_new[..., None]], axis=2)
        self.now = time

    def keep(self, subject: Index, path: Index) -> None:
        """Keep the subjects (S',), and of each the paths (S', P')."""
        at = (subject[:, None], path)
        self.cache.keep(torch.from_numpy(subject), torch.from_numpy(path))
        self.state = self.state.take(*at)
        self.dated = [self.dated[s] for s in subject]
        for name in ("now", "first", "last", "birth", "count", "moments", "sizes", "offset", "features"):
            setattr(self, name, getattr(self, name)[at])
        rows, columns = torch.from_numpy(at[0]), torch.from_numpy(path)
        self.events, self.n_new = self.events[rows, columns], self.n_new[rows, columns]

    def _dated(self, encoded: EncodedTimelines, row: int, time: int) -> Index:
        known = encoded.known_time[encoded.offset[row] : encoded.offset[row + 1]]
        return np.asarray(known[visible(known, time) & (known != STATIC)])

    def _times(self, time: Index, gap: Index, first: Index) -> Float:
        """(S, P, 6) as `token_features` and `query_features` have them, for what is known when it happens."""
        span = time - first
        hours = [np.log1p(np.maximum(x, 0) / (DAY / 24)) for x in (gap, span)]
        out = np.zeros((*time.shape, FEATURES))
        out[..., 0], out[..., 1], out[..., 2], out[..., 3] = (time - self.birth) / YEAR, hours[0], span / YEAR, hours[1]
        return out

    def _query_times(self) -> Float:
        none = self.last == STATIC
        out = self._times(
            self.now, np.where(none, 0, self.now - np.where(none, self.now, self.last)),
            np.where(none, self.now, self.first),
        )  # fmt: skip
        out[..., 4] = none
        return out

    def _summary(self) -> Float:
        """(S, P, ...) as `ehrseq.features.summary.summarise` gives it."""
        n = self.sampler.batches.n_summary_codes
        none = self.last == STATIC
        since = np.where(none, UNSEEN_DAYS, (self.now - np.where(none, 0, self.last)) / DAY)
        begins = self.now - round(YEAR)
        old = [len(d) - np.searchsorted(d, b, side="left") for d, b in zip(self.dated, begins, strict=True)]
        recent = np.stack(old)
        recent = recent + (self.sizes * (self.moments >= begins[..., None])).sum(-1)
        density = [np.log1p(self.count), np.log1p(recent), np.log1p(since) / 8]
        return np.concatenate([self.state.summary(self.now, n), np.stack(density, axis=-1)], axis=-1)

    def _embed(self, token: Index, knot: Index, fraction: Float, times: Float) -> torch.Tensor:
        """(S, P, n, width) embeddings of events, as `ProgressionNetwork.embed_events` makes them."""
        network, at = self.sampler.network, torch.from_numpy(knot)
        below, above = network.knot(at), network.knot(at + (at > 0))
        value = below + torch.from_numpy(fraction).unsqueeze(-1) * (above - below)
        when = network.event_times(torch.from_numpy(times)).unsqueeze(2)
        code = network.code(torch.from_numpy(token))
        if self.sampler.above.shape[1]:
            code = code + network.code(torch.from_numpy(self.sampler.above[token])).sum(-2)
        out: torch.Tensor = code + value + when
        return out
