"""Making a model from a window of attempts, and deciding whether it may replace the one in use.

Fitted to the older attempts of the window, judged on the newest, which neither it nor its
predecessor has seen. Takes seconds for a full window: never on the leader's loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from muster_scheduler.learning.attempts import Attempt
from muster_scheduler.learning.evaluation import (
    LEVELS,
    Evaluation,
    declared_log_s,
    evaluate_quantiles,
)
from muster_scheduler.learning.forest import Forest, fit_forest
from muster_scheduler.learning.model import MAX_TREE_FIELDS, Kind, RuntimeModel
from muster_scheduler.learning.ridge import MIN_ATTEMPTS, LinearPart, fit_linear
from muster_scheduler.placement.snapshot import FloatArray

# Below this trees would learn the noise; the linear part serves alone.
MIN_BOOSTED = 200
# The newest share of a window, which judges.
NEWEST_SHARE = 0.2
_TREES = 60
_NOT_JUDGED = Evaluation(0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """What came of a training: `model` None where nothing is to be installed, `why` says why."""

    model: RuntimeModel | None
    why: str
    candidate: Evaluation | None = None
    predecessor: Evaluation | None = None


def train(window: Sequence[Attempt], predecessor: RuntimeModel | None, seed: int) -> Training:
    """`window` oldest first. Deterministic for its arguments."""
    cut = len(window) - max(1, round(len(window) * NEWEST_SHARE))
    older, newest = window[:cut], window[cut:]
    if len(older) < MIN_ATTEMPTS:
        return Training(None, f"{len(window)} attempts are too few to learn from")
    version = 1 if predecessor is None else predecessor.version + 1
    ridge = fit_ridge(older, newest, version)
    candidates = [ridge]
    if len(window) >= MIN_BOOSTED:
        candidates.append(_boost(ridge, older, newest, seed))
    best = min(candidates, key=lambda model: model.evaluation.loss)
    if predecessor is None:
        return Training(best, "there was no model before", best.evaluation)
    before = evaluate(predecessor, newest)
    if best.evaluation.loss > before.loss:
        why = (
            f"it is worse than version {predecessor.version} on the newest {len(newest)} attempts "
            f"(loss {best.evaluation.loss:.4f}, {before.loss:.4f} before)"
        )
        return Training(None, why, best.evaluation, before)
    return Training(best, "it is no worse than the one before", best.evaluation, before)


def fit_ridge(older: Sequence[Attempt], newest: Sequence[Attempt], version: int) -> RuntimeModel:
    """The linear part alone: milliseconds for a few hundred attempts."""
    linear = fit_linear(older)
    residuals = _residuals(linear, older)
    known = residuals[~np.isnan(residuals)]
    offsets = np.quantile(known, LEVELS) if known.size else np.zeros(len(LEVELS))
    return _judged("ridge", linear, offsets, (), older, newest, version)


def evaluate(model: RuntimeModel, attempts: Sequence[Attempt]) -> Evaluation:
    """As it would have served: what it does not know counts as the declared estimate."""
    log_s = model.of_attempts(attempts)
    return evaluate_quantiles(attempts, np.where(np.isnan(log_s), declared_log_s(attempts), log_s))


def _residuals(linear: LinearPart, attempts: Sequence[Attempt]) -> FloatArray:
    return np.log([attempt.run_s for attempt in attempts]) - linear.of_attempts(attempts)


def _boost(
    ridge: RuntimeModel, older: Sequence[Attempt], newest: Sequence[Attempt], seed: int
) -> RuntimeModel:
    residuals = _residuals(ridge.linear, older)
    known = np.flatnonzero(~np.isnan(residuals))
    kept = [older[row] for row in known.tolist()]
    rows = ridge.tree_rows(kept, ridge.linear.of_attempts(kept))
    forests = tuple(fit_forest(rows, residuals[known], level, _TREES, seed) for level in LEVELS)
    offsets = np.array(ridge.offsets)
    return _judged("boosted", ridge.linear, offsets, forests, older, newest, ridge.version)


def _judged(
    kind: Kind,
    linear: LinearPart,
    offsets: FloatArray,
    forests: tuple[Forest, ...],
    older: Sequence[Attempt],
    newest: Sequence[Attempt],
    version: int,
) -> RuntimeModel:
    fields = Counter(f"field:{name}" for attempt in older for name, _ in attempt.task.fields)
    common = sorted(fields, key=lambda name: (-fields[name], name))[:MAX_TREE_FIELDS]
    unjudged = RuntimeModel(
        version=version,
        kind=kind,
        linear=linear,
        offsets=tuple(offsets.tolist()),
        forests=forests,
        skills=tuple(sorted(linear.lines)),
        fields=("declared", "bytes", *common),
        trained=len(older),
        evaluation=_NOT_JUDGED,
    )
    return replace(unjudged, evaluation=evaluate(unjudged, newest))
