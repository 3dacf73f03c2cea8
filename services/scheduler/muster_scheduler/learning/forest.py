"""Boosted regression trees as plain arrays: made from scikit-learn's, evaluated here.

So a stored model holds numbers only, and loading one runs nothing. Every tree is padded to the
same number of nodes; a leaf points to itself, so that walking `depth` steps ends in a leaf
whichever way it is reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muster_scheduler.placement.snapshot import FloatArray

MAX_TREES = 512
MAX_NODES = 255
MAX_DEPTH = 64
# Rows walked at once: the arrays of one step stay within a core's cache.
_CHUNK_ROWS = 2048


@dataclass(frozen=True, slots=True, eq=False)
class Forest:
    """A sum of trees.

    feature       int32 [T, P], column compared at the node; 0 in leaves
    threshold     float64 [T, P], left when x ≤ threshold
    left, right   int32 [T, P], children, of higher index; a leaf's are itself
    missing_left  bool [T, P], where NaN goes
    value         float64 [T, P], what a leaf adds; 0 elsewhere
    """

    baseline: float
    depth: int
    feature: NDArray[np.int32]
    threshold: FloatArray
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    missing_left: NDArray[np.bool_]
    value: FloatArray

    def predict(self, rows: FloatArray) -> FloatArray:
        """float64 [N] of `rows` float64 [N, F]; NaN is a missing value."""
        out = np.full(rows.shape[0], self.baseline)
        for start in range(0, rows.shape[0], _CHUNK_ROWS):
            chunk = rows[start : start + _CHUNK_ROWS]
            out[start : start + _CHUNK_ROWS] += self._sum(chunk)
        return out

    def _sum(self, rows: FloatArray) -> FloatArray:
        trees, nodes = self.feature.shape
        offset = (np.arange(trees) * nodes)[None, :]
        at = np.zeros((rows.shape[0], trees), np.int64)
        which = np.arange(rows.shape[0])[:, None]
        feature, threshold = self.feature.ravel(), self.threshold.ravel()
        left, right = self.left.ravel(), self.right.ravel()
        missing_left = self.missing_left.ravel()
        missing = np.isnan(rows)
        any_missing = bool(missing.any())
        for _ in range(self.depth):
            flat = at + offset
            column = feature[flat]
            goes_left = rows[which, column] <= threshold[flat]
            if any_missing:
                goes_left = np.where(missing[which, column], missing_left[flat], goes_left)
            at = np.where(goes_left, left[flat], right[flat])
        total: FloatArray = self.value.ravel()[at + offset].sum(axis=1)
        return total

    def problem(self, columns: int) -> str | None:
        """Why the arrays are no forest over `columns` columns; None when they are one."""
        trees, nodes = self.feature.shape
        if trees > MAX_TREES or not 1 <= nodes <= MAX_NODES or not 0 <= self.depth <= MAX_DEPTH:
            return "a forest of that size is not accepted"
        index = np.arange(nodes)[None, :]
        leaf = (self.left == index) & (self.right == index)
        deeper = (self.left > index) & (self.right > index)
        inside = (self.left < nodes) & (self.right < nodes)
        if not ((leaf | deeper) & inside).all():
            return "a tree's node points outside the tree, or back"
        if ((self.feature < 0) | (self.feature >= columns)).any():
            return "a tree asks for a column that there is not"
        numbers = (np.array([self.baseline]), self.value)
        if not all(np.isfinite(values).all() for values in numbers):
            return "a tree holds a value that is no finite number"
        if np.isnan(self.threshold).any():
            return "a tree holds a threshold that is no number"
        return None


def fit_forest(
    rows: FloatArray, target: FloatArray, quantile: float, trees: int, seed: int
) -> Forest:
    """Quantile gradient boosting (scikit-learn's HistGradientBoostingRegressor)."""
    from sklearn.ensemble import HistGradientBoostingRegressor  # noqa: PLC0415
    from threadpoolctl import threadpool_limits  # noqa: PLC0415

    regressor = HistGradientBoostingRegressor(
        loss="quantile",
        quantile=quantile,
        learning_rate=0.1,
        max_iter=trees,
        max_leaf_nodes=15,
        max_depth=6,
        min_samples_leaf=20,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=seed,
    )
    # A column without any value cannot be binned; a constant one is never split at.
    empty = np.isnan(rows).all(axis=0)
    if empty.any():
        rows = np.where(empty, 0.0, rows)
    # Its threads would fight for the cores with what the machine is there for.
    with threadpool_limits(1):
        regressor.fit(rows, target)
    return from_sklearn(regressor)


def from_sklearn(regressor: Any) -> Forest:
    """The trees lie in attributes that scikit-learn does not document; a test compares both."""
    grown = [iteration[0].nodes for iteration in regressor._predictors]
    trees, size = len(grown), max(len(nodes) for nodes in grown)
    own = np.broadcast_to(np.arange(size, dtype=np.int32), (trees, size))
    feature = np.zeros((trees, size), np.int32)
    threshold = np.zeros((trees, size))
    left, right = own.copy(), own.copy()
    missing_left = np.zeros((trees, size), np.bool_)
    value = np.zeros((trees, size))
    for tree, nodes in enumerate(grown):
        count = len(nodes)
        leaf = nodes["is_leaf"].astype(bool)
        inner = np.flatnonzero(~leaf)
        feature[tree, inner] = nodes["feature_idx"][inner]
        threshold[tree, inner] = nodes["num_threshold"][inner]
        left[tree, inner] = nodes["left"][inner]
        right[tree, inner] = nodes["right"][inner]
        missing_left[tree, inner] = nodes["missing_go_to_left"][inner].astype(bool)
        value[tree, :count] = np.where(leaf, nodes["value"], 0.0)
    depth = max(int(nodes["depth"].max()) for nodes in grown)
    baseline = float(np.asarray(regressor._baseline_prediction).ravel()[0])
    return Forest(baseline, depth, feature, threshold, left, right, missing_left, value)
