"""Random numbers that belong to a path, and the first of several competing events."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Index = NDArray[np.int64]
Key = NDArray[np.uint64]
GAMMA = np.uint64(0x9E3779B97F4A7C15)


def path_keys(seed: int, subject_id: Index, prediction_time: Index, path: Index) -> Key:
    """(n, P) one key for each of n prediction times and P path numbers: nobody else's presence changes it.

    >>> a = path_keys(0, np.array([1, 2]), np.array([5, 5]), np.array([0, 1]))
    >>> b = path_keys(0, np.array([2]), np.array([5]), np.array([1]))
    >>> bool(a[1, 1] == b[0, 0]), len(np.unique(a))
    (True, 4)
    """
    key = _mix(np.full(len(subject_id), seed % 2**64, np.uint64))
    for part in (subject_id, prediction_time):
        key = _mix(key ^ _mix(part.astype(np.int64).view(np.uint64)))
    return _mix(key[:, None] ^ _mix(path.astype(np.uint64))[None])


def uniforms(key: Key, step: int, n: int) -> Float:
    """(..., n) numbers strictly between 0 and 1 of a step of each path (...).

    SplitMix64 (Steele, Lea and Flood 2014, OOPSLA) at counter step * n + 0, 1, ...: which paths are drawn together, and
    in what order, does not matter.
    """
    counter = np.arange(step * n + 1, step * n + n + 1, dtype=np.uint64)
    bits = _mix(key[..., None] + counter * GAMMA)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54


def _mix(x: Any) -> Key:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def hazard_pieces(
    outcome: Float, offset: Float, moment: Float, edges: Float, moment_edges: Float, ahead: Float, limit: Float
) -> tuple[Float, Float]:
    """Cuts (N, J + 1) in days from now to `limit` (N,), and hazards (N, D + 1, J) between them, the moment's last.

    `outcome` (N, D, I) log hazards on `edges`, counted from now; `offset` (N, D, I) is added to them on `edges` counted
    from the prediction time, `ahead` (N,) days ago; `moment` (N, B) log hazards on `moment_edges`, counted from now.
    The last interval of each holds beyond its last edge.

    >>> cuts, hazards = hazard_pieces(np.zeros((1, 1, 2)), np.log([[[1.0, 2.0]]]), np.zeros((1, 1)),
    ...     np.array([0.0, 10.0, 20.0]), np.array([0.0, 20.0]), np.array([4.0]), np.array([15.0]))
    >>> cuts.tolist(), hazards.round(1).tolist()
    ([[0.0, 6.0, 10.0, 15.0]], [[[1.0, 2.0, 2.0], [1.0, 1.0, 1.0]]])
    """
    n = len(limit)
    inner = [np.tile(edges[1:-1], (n, 1)), edges[1:-1] - ahead[:, None], np.tile(moment_edges[1:-1], (n, 1))]
    cuts = np.concatenate([np.zeros((n, 1)), *inner, limit[:, None]], axis=1)
    cuts = np.sort(np.clip(cuts, 0, limit[:, None]), axis=1)
    middle = (cuts[:, 1:] + cuts[:, :-1]) / 2
    parts = []
    for values, at, day in ((outcome, edges, middle), (offset, edges, middle + ahead[:, None]),
                            (moment[:, None], moment_edges, middle)):  # fmt: skip
        interval = np.clip(np.searchsorted(at, day, side="left") - 1, 0, len(at) - 2)
        column = np.broadcast_to(interval[:, None], (*values.shape[:2], day.shape[1]))
        parts.append(np.take_along_axis(values, column, axis=2))
    return cuts, np.exp(np.concatenate([parts[0] + parts[1], parts[2]], axis=1))


def first_event(cuts: Float, hazards: Float, when: Float, which: Float) -> tuple[Float, Index]:
    """Days (N,) until the first of K competing events, and which it is; the last cut and -1 where none comes before it.

    `cuts` (N, J + 1) days from 0, `hazards` (N, K, J) per day between them; `when` and `which` (N,) uniform numbers.
    The summed cumulative hazard is inverted at -log(when), and the cause drawn in proportion to the hazards there.

    >>> first_event(np.array([[0.0, 10.0]]), np.array([[[0.1], [0.3]]]), np.exp([-2.0]), np.array([0.5]))
    (array([5.]), array([1]))
    """
    total = hazards.sum(1)
    cumulative = np.cumsum(total * np.diff(cuts, axis=1), axis=1)
    target = -np.log(when)
    piece = (cumulative < target[:, None]).sum(1)
    happens = piece < cumulative.shape[1]
    j = np.minimum(piece, cumulative.shape[1] - 1)
    row = np.arange(len(j))
    before = np.where(j > 0, cumulative[row, j - 1], 0.0)
    days = cuts[row, j] + (target - before) / np.where(happens, total[row, j], 1.0)
    shares = np.cumsum(hazards[row, :, j], axis=1)
    cause = (shares <= (which * total[row, j])[:, None]).sum(1)
    cause = np.minimum(cause, hazards.shape[1] - 1)
    return np.where(happens, days, cuts[:, -1]), np.where(happens, cause, -1)
