"""Paths from hazards: draw the first of all that may come next, move on, and again, until death or the horizon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ehrseq.features.summary import DAY
from ehrseq.forecast.draw import Key, first_event, hazard_pieces, uniforms

Float = NDArray[np.float64]
Index = NDArray[np.int64]
Flags = NDArray[np.bool_]
NEVER = np.iinfo(np.int64).max
SECOND = 1_000_000
LARGEST = 2.0  # of a correction of log hazards
CROWDED = 0.7  # the share of a batch's paths that still run below which the others are dropped


class Dynamics(Protocol):
    """S subjects with P paths each; see `ehrseq.forecast.dynamics.NetworkDynamics`."""

    edges: Float
    moment_edges: Float
    offset: Float

    def hazards(self) -> tuple[Float, Float]:
        """Log hazards (S, P, D, I) of outcomes and (S, P, B) of the next moment, per day from now on."""

    def draw(self, time: Index, uniform: Float) -> tuple[Flags, Float]:
        """Codes (S, P, C) of the moment at `time` and their values, from (S, P, 2 C) uniform numbers."""

    def move(self, time: Index, codes: Flags, values: Float, unknown: Index) -> None:
        """Go on to `time`, with what became known then."""

    def keep(self, subject: Index, path: Index) -> None:
        """Keep some subjects and paths."""


@dataclass(frozen=True)
class Rules:
    """How D drawn outcomes behave, over a table of codes: C that moments are made of, then others.

    `codes` (D, table) weights of the codes that an outcome's event comes with; `ends` (D, D): whether the row's
    outcome, once it has happened, ends the risk of the column's; `pause` (D,) microseconds for which it pauses its own
    risk; `death` (D,).
    """

    codes: Float
    ends: Flags
    pause: Index
    death: Flags


@dataclass(frozen=True)
class Start:
    """Where S subjects start: time and `stop` (S,) microseconds, `key` (S, P), and who is at risk of what (S, D)."""

    time: Index
    stop: Index
    key: Key
    at_risk: Flags


class Tally:
    """The mean hazard of S subjects' paths on the intervals of `edges` since the prediction time, (S, D, I)."""

    def __init__(self, n_subjects: int, n_outcomes: int, edges: Float) -> None:
        self.edges = edges
        shape = (n_outcomes, n_subjects, len(edges) - 1)
        self.hazard, self.days = np.zeros(shape), np.zeros(shape)

    def add(self, subject: Index, cuts: Float, hazards: Float, ahead: Float, lived: Float, at_risk: Flags) -> None:
        """N paths of `subject` (N,) lived `lived` (N,) days under `hazards` (N, D + 1, J) between `cuts` (N, J + 1)."""
        spent = np.clip(lived[:, None] - cuts[:, :-1], 0, np.diff(cuts, axis=1))
        middle = (cuts[:, 1:] + cuts[:, :-1]) / 2 + ahead[:, None]
        n = len(self.edges) - 1
        cell = (subject[:, None] * n + np.clip(np.searchsorted(self.edges, middle, side="left") - 1, 0, n - 1)).ravel()
        for d in range(len(self.hazard)):
            days = spent * at_risk[:, d, None]
            for total, more in ((self.days[d], days), (self.hazard[d], days * hazards[:, d])):
                total += np.bincount(cell, weights=more.ravel(), minlength=total.size).reshape(total.shape)

    def ratio(self, issued: Float) -> Float:
        """Log of the `issued` hazards (S, D, I) over the mean ones; 0 where nobody was at risk."""
        days, hazard = self.days.swapaxes(0, 1), self.hazard.swapaxes(0, 1)
        some = (days > 0) & (hazard > 0)
        mean = np.where(some, hazard, 1) / np.where(some, days, 1)
        return np.where(some, np.clip(issued - np.log(mean), -LARGEST, LARGEST), 0)


Drawn = dict[str, NDArray[Any]]


def sample(dynamics: Dynamics, start: Start, rules: Rules, n_codes: int, tally: Tally | None = None) -> Drawn:
    """Everything that happens on the paths: `subject`, `path`, `time`, `code` (of the table), `value` (scaled).

    The last event of each path is its death or the horizon (code -1). `tally` keeps count of the hazards met.
    """
    n_subjects, n_paths = start.key.shape
    subject, path = (x.astype(np.int64) for x in np.indices((n_subjects, n_paths)))
    now, stop = (np.broadcast_to(x[:, None], subject.shape).copy() for x in (start.time, start.stop))
    begun, key, alive = now.copy(), start.key, np.ones(subject.shape, bool)
    since = np.where(start.at_risk, np.iinfo(np.int64).min, NEVER)  # from when on a path is at risk of each outcome
    since = np.repeat(since[:, None], n_paths, axis=1)
    found: list[Drawn] = []
    step = 0
    while alive.any():
        log_outcome, log_moment = dynamics.hazards()
        u = uniforms(key, step, 3 + 2 * n_codes)
        later = np.where(since > now[..., None], since, NEVER).min(-1, initial=NEVER)
        limit = np.minimum(stop, later)
        log_outcome = np.where((since <= now[..., None])[..., None], log_outcome, -np.inf)
        pieces = _pieces(dynamics, log_outcome, log_moment, now - begun, limit - now)
        first, which = first_event(*pieces, u[..., 0].ravel(), u[..., 1].ravel())
        days, cause = first.reshape(now.shape), which.reshape(now.shape)
        time = now + np.maximum(np.round(days * (DAY / SECOND)), 1).astype(np.int64) * SECOND
        time = np.where(cause >= 0, np.minimum(time, limit), limit)
        time = np.where(alive, time, now)
        if tally is not None:
            ahead, lived = (now - begun).ravel() / DAY, (time - now).ravel() / DAY
            tally.add(subject.ravel(), *pieces, ahead, lived, (since <= now[..., None]).reshape(now.size, -1))
        codes, values = _happened(dynamics, rules, n_codes, cause, since, now, time, u)
        codes &= alive[..., None]
        at = np.nonzero(codes)
        found.append(_rows(subject[at[:2]], path[at[:2]], time[at[:2]], at[2], values[at]))
        since = _after(rules, since, np.where(alive, cause, -1), time)
        died = (cause >= 0) & (cause < len(rules.death)) & np.append(rules.death, False)[cause] & alive
        ended = alive & ~died & (time >= stop)
        found.append(_rows(subject[ended], path[ended], time[ended], -1, np.nan))
        alive = alive & ~died & ~ended
        now, step = time, step + 1
        if not alive.any():
            break
        dynamics.move(time, codes[..., :n_codes], values[..., :n_codes], codes[..., n_codes:].sum(-1))
        if alive.mean() < CROWDED:
            rows, columns = running(alive)
            dynamics.keep(rows, columns)
            rest = (rows[:, None], columns)
            subject, path, now, stop, begun, since = (x[rest] for x in (subject, path, now, stop, begun, since))
            key, alive = key[rest], alive[rest]
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def running(alive: Flags) -> tuple[Index, Index]:
    """The subjects (S',) with a path that runs, and (S', P') their paths, those that run first.

    >>> running(np.array([[True, False, True], [False, False, False]]))
    (array([0]), array([[0, 2]]))
    """
    subject = np.flatnonzero(alive.any(1))
    most = int(alive.sum(1).max())
    return subject, np.argsort(~alive[subject], axis=1, kind="stable")[:, :most]


def _pieces(
    dynamics: Dynamics, log_outcome: Float, log_moment: Float, ahead: Index, limit: Index
) -> tuple[Float, Float]:
    """Cuts and hazards of all paths, one after the other."""
    flat = (limit.size, *log_outcome.shape[2:])
    return hazard_pieces(
        log_outcome.reshape(flat), dynamics.offset.reshape(flat), log_moment.reshape(limit.size, -1), dynamics.edges,
        dynamics.moment_edges, ahead.ravel() / DAY, limit.ravel() / DAY,
    )  # fmt: skip


def _happened(
    dynamics: Dynamics, rules: Rules, n_codes: int, cause: Index, since: Index, now: Index, time: Index, u: Float
) -> tuple[Flags, Float]:
    """Codes (S, P, table) that become known at `time`, and their scaled values (S, P, table), NaN for none."""
    n_outcomes, table = rules.codes.shape
    codes, values = np.zeros((*cause.shape, table), bool), np.full((*cause.shape, table), np.nan)
    drawn, measured = dynamics.draw(time, u[..., 3:])
    # the codes of an outcome that a path is at risk of come by the outcome's own hazard, and only by it
    taken = ((since <= now[..., None]) @ (rules.codes > 0)) > 0
    moment = cause == n_outcomes
    codes[..., :n_codes] = drawn & moment[..., None] & ~taken[..., :n_codes]
    values[..., :n_codes] = np.where(codes[..., :n_codes], measured, np.nan)
    s, p = np.nonzero((cause >= 0) & ~moment)
    weight = np.cumsum(rules.codes[cause[s, p]], axis=1)
    one = (weight <= (u[s, p, 2] * weight[:, -1])[:, None]).sum(1)
    codes[s, p, one] = True
    return codes, values


def _after(rules: Rules, since: Index, cause: Index, time: Index) -> Index:
    """From when on a path is at risk of each outcome, once `cause` has happened."""
    n_outcomes = len(rules.death)
    ends = np.vstack([rules.ends, np.zeros((2, n_outcomes), bool)])  # a moment, and nothing (-1), end no risk
    own = np.vstack([np.eye(n_outcomes, dtype=bool), np.zeros((2, n_outcomes), bool)])
    paused = own[cause] & (rules.pause > 0)
    since = np.where(paused & (since != NEVER), time[..., None] + rules.pause, since)
    return np.where(ends[cause], NEVER, since)


def _rows(subject: Index, path: Index, time: Index, code: Any, value: Any) -> Drawn:
    n = len(subject)
    return {
        "subject": subject, "path": path, "time": time, "code": np.broadcast_to(np.asarray(code, np.int64), n),
        "value": np.broadcast_to(np.asarray(value, np.float64), n),
    }  # fmt: skip
