"""Regression trees as plain arrays, evaluated with numpy: nothing of scikit-learn is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingRegressor

Float = NDArray[np.float64]
Rows = NDArray[np.float32]
Index = NDArray[np.int64]
CHUNK = 4096  # rows evaluated together: their features stay in the processor's cache
FEW_LEAVES, MOST_LEAVES = 16, 64  # of a tree, as bits of one number
FEW_ROWS = 64  # walk down all trees together sooner than they are compared with one tree after the other


@dataclass(frozen=True)
class LeafSets:
    """One tree without walking it: an inner node that sends a row right rules out the leaves on its left, and the row
    is in the first leaf that is left over (QuickScorer: Lucchese et al., 2015, SIGIR). A comparison is made for a whole
    column of rows at once.

    `nodes` are (feature, threshold, missing goes left, leaves on the left as bits); `value` (L,) of the leaves.
    """

    nodes: list[tuple[int, np.float32, bool, Any]]
    value: Float

    @classmethod
    def of(cls, trees: Trees, root: int) -> LeafSets:
        """From the tree at this node."""
        found: list[tuple[int, np.float32, bool, int]] = []
        leaves: list[float] = []

        def visit(node: int) -> int:
            """The bits of the leaves below."""
            if trees.left[node] < 0:
                leaves.append(float(trees.value[node]))
                return 1 << (len(leaves) - 1)
            left = visit(int(trees.left[node]))
            below = _rounded_down(trees.threshold[node])
            found.append((int(trees.feature[node]), below, bool(trees.missing_left[node]), left))
            return left | visit(int(trees.right[node]))

        visit(root)
        kind = np.uint16 if len(leaves) <= FEW_LEAVES else np.uint64
        return cls([(f, t, m, kind(bits)) for f, t, m, bits in found], np.array(leaves))

    def leaves(self, columns: Rows, n_periods: int) -> Float:
        """(n, max(1, P)) the value of the leaf of each row in each period, from columns (F, n)."""
        kind = np.uint16 if len(self.value) <= FEW_LEAVES else np.uint64
        n_features, n = columns.shape
        out: NDArray[Any] = np.zeros(n, kind)
        by_period: NDArray[Any] = np.zeros(max(1, n_periods), kind)
        for feature, threshold, missing_left, bits in self.nodes:
            if n_periods and feature == n_features:
                by_period |= (np.arange(n_periods) > threshold) * bits
            else:
                x = columns[feature]
                out |= (x > threshold if missing_left else ~(x <= threshold)) * bits
        if not by_period.any():
            return self.value[_first_zero(out)][:, None]
        return np.column_stack([self.value[_first_zero(out | bits)] for bits in by_period])


def _rounded_down(threshold: float) -> np.float32:
    """The largest float32 that is not above: float32 values are below or equal to one as to the other."""
    near = np.float32(threshold)
    return near if near <= threshold else np.nextafter(near, np.float32(-np.inf))


def _first_zero(bits: NDArray[Any]) -> Index:
    """The number of the lowest bit that is not set.

    >>> _first_zero(np.array([0b0, 0b1011], np.uint16)).tolist(), _first_zero(np.array([2**33 - 1], np.uint64)).tolist()
    ([0, 2], [33])
    """
    if bits.dtype == np.uint16:
        return np.asarray(_FIRST_ZERO[bits], dtype=np.int64)
    lowest = ~bits & (bits + np.uint64(1))
    return np.asarray(np.frexp(lowest.astype(np.float64))[1] - 1, dtype=np.int64)


_FIRST_ZERO = np.zeros(2**16, np.int64)
for _bit in range(FEW_LEAVES):  # a number whose lowest bits are all set has its first zero after them
    _FIRST_ZERO[2**_bit - 1 :: 2 ** (_bit + 1)] = _bit


@dataclass(frozen=True)
class Trees:
    """T regression trees as flat node arrays; tree t starts at node `root[t]`, and children are node numbers.

    feature, left, right (M,) int32, left = -1 at a leaf; threshold, value (M,) float64; missing_left (M,) bool. A row
    goes left where its feature is at most the threshold, or missing and `missing_left`. `offset` is added to the sum.
    """

    root: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: Float
    missing_left: NDArray[np.bool_]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    value: Float
    offset: float
    depth: int

    def predict(self, rows: Rows, n_periods: int = 0) -> Float:
        """(n,) the sum of the trees' leaves, for rows (n, F) float32 with NaN for missing.

        With `n_periods` P, (n, P): the sum in each period, the last feature of the trees, which `rows` then lack.
        """
        if len(rows) < FEW_ROWS or self._is_large:
            return self._walked(rows, n_periods)
        out = np.full((len(rows), max(1, n_periods)), self.offset)
        for start in range(0, len(rows), CHUNK):
            columns = np.ascontiguousarray(rows[start : start + CHUNK].T)
            for tree in self._leaf_sets:
                out[start : start + CHUNK] += tree.leaves(columns, n_periods)
        return out if n_periods else out[:, 0]

    @cached_property
    def _is_large(self) -> bool:
        """Whether a tree has more leaves than a number has bits."""
        leaves = np.bincount(np.searchsorted(self.root, np.flatnonzero(self.left < 0), side="right"))
        return bool((leaves > MOST_LEAVES).any())

    @cached_property
    def _leaf_sets(self) -> list[LeafSets]:
        return [LeafSets.of(self, int(root)) for root in self.root]

    def _walked(self, rows: Rows, n_periods: int) -> Float:
        """`predict` by walking down all trees together, some rows at a time."""
        asked = np.concatenate([with_period(rows, p) for p in range(n_periods)]) if n_periods else rows
        total = np.empty(len(asked))
        for start in range(0, len(asked), FEW_ROWS):
            some = slice(start, start + FEW_ROWS)
            total[some] = self.added(self.leaf_values(asked[some]))
        return total.reshape(n_periods, -1).T if n_periods else total

    def leaf_values(self, rows: Rows) -> Float:
        """(n, T) of each tree, for rows that have the period where there are any."""
        return self.value.take(self._leaves(rows, self.root))

    def added(self, leaves: Float) -> Float:
        """(n,) the sum of `leaf_values`, one after the other as in `predict`: the last bit depends on the order."""
        return np.cumsum(np.column_stack([np.full(len(leaves), self.offset), leaves]), axis=1)[:, -1]

    def stages(self, rows: Rows) -> Iterator[Float]:
        """(n,) the sum after each tree."""
        total = np.full(len(rows), self.offset)
        for root in self.root:
            total = total + self.value[self._leaves(rows, np.array([root]))[:, 0]]
            yield total

    def first(self, n_trees: int) -> Trees:
        """The first trees alone."""
        end = int(self.root[n_trees]) if n_trees < len(self.root) else len(self.value)
        names = ("feature", "threshold", "missing_left", "left", "right", "value")
        return replace(self, root=self.root[:n_trees], **{name: getattr(self, name)[:end] for name in names})

    def _leaves(self, rows: Rows, roots: NDArray[np.int32]) -> Index:
        """(n, R) the leaf that each row comes to from each root. IndexError for rows with fewer features."""
        if rows.shape[1] <= self._last_feature:  # what follows would look into the next row
            raise IndexError(f"feature {self._last_feature} of rows with {rows.shape[1]}")
        node = np.tile(roots.astype(np.int64), (len(rows), 1))
        flat, begin = rows.ravel(), np.arange(len(rows))[:, None] * rows.shape[1]
        for _ in range(self.depth):
            x = flat.take(begin + self.feature.take(node))
            goes_right = (x > self.threshold.take(node)) | (np.isnan(x) & ~self.missing_left.take(node))
            before, node = node, self._children.take(2 * node + goes_right)
            if np.array_equal(before, node):
                break
        return node

    @cached_property
    def _last_feature(self) -> int:
        return int(self.feature.max(initial=-1, where=self.left >= 0))

    @cached_property
    def _children(self) -> Index:
        """(2M,) the left and the right child of each node; a leaf's are itself."""
        itself = np.arange(len(self.left))
        each = [np.where(self.left < 0, itself, child) for child in (self.left, self.right)]
        return np.column_stack(each).ravel()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The trees as arrays by name; `from_arrays` gives back equal ones."""
        names = ("root", "feature", "threshold", "missing_left", "left", "right", "value")
        return {name: getattr(self, name) for name in names} | {
            "offset": np.array([self.offset]), "depth": np.array([self.depth], np.int32),
        }  # fmt: skip

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Trees:
        """The trees that `arrays` described."""
        rest = {k: v for k, v in arrays.items() if k not in ("offset", "depth")}
        return cls(**rest, offset=float(arrays["offset"][0]), depth=int(arrays["depth"][0]))

    @classmethod
    def joined(cls, several: Sequence[Trees]) -> Trees:
        """The trees of several as those of one, in this order; the offset is that of none."""
        shift = np.cumsum([0, *(len(trees.value) for trees in several)])[:-1].astype(np.int32)
        names = ("root", "feature", "threshold", "missing_left", "left", "right", "value")
        arrays = {name: np.concatenate([getattr(trees, name) for trees in several]) for name in names}
        arrays["root"] = arrays["root"] + np.repeat(shift, [len(trees.root) for trees in several])
        for name in ("left", "right"):
            moved = arrays[name] + np.repeat(shift, [len(trees.value) for trees in several])
            arrays[name] = np.where(arrays[name] < 0, -1, moved)
        return cls(**arrays, offset=0.0, depth=max(trees.depth for trees in several))

    @classmethod
    def none(cls) -> Trees:
        """No trees: 0 for every row."""
        number, flag, real = np.zeros(1, np.int32), np.zeros(1, bool), np.zeros(1)
        return cls(np.zeros(0, np.int32), number, real, flag, number - 1, number - 1, real, 0.0, 0)

    @classmethod
    def from_sklearn(cls, model: HistGradientBoostingRegressor) -> Trees:
        """The trees of a fitted regressor, on the scale of its link (here the log of the rate)."""
        nodes = [stage[0].nodes for stage in model._predictors]
        size = [len(n) for n in nodes]
        root = np.cumsum([0, *size])[: len(size)].astype(np.int32)
        every, shift = np.concatenate(nodes), np.repeat(root, size)
        leaf = every["is_leaf"].astype(bool)
        return cls(
            root=root,
            feature=np.where(leaf, 0, every["feature_idx"]).astype(np.int32),
            threshold=np.where(leaf, 0.0, every["num_threshold"]).astype(np.float64),
            missing_left=every["missing_go_to_left"].astype(bool),
            left=np.where(leaf, -1, every["left"].astype(np.int64) + shift).astype(np.int32),
            right=np.where(leaf, -1, every["right"].astype(np.int64) + shift).astype(np.int32),
            value=every["value"].astype(np.float64),
            offset=float(np.ravel(model._baseline_prediction)[0]),
            depth=int(every["depth"].max(initial=0)),
        )


def with_period(rows: Rows, period: int) -> Rows:
    """(n, F + 1): the rows (n, F), and the period as their last feature."""
    return np.column_stack([rows, np.full(len(rows), period, np.float32)])
