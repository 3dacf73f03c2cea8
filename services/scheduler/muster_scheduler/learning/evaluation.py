"""How good predictions were: pinball loss in log seconds, so that a factor of two costs the same
for short tasks and for long ones (Koenker and Bassett 1978; loss as in quantile regression)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from muster_scheduler.learning.attempts import Attempt
from muster_scheduler.learning.ridge import rows_by_skill
from muster_scheduler.placement.snapshot import FloatArray

# The quantiles that a model predicts.
LEVELS = (0.1, 0.5, 0.9, 0.99)
MEDIAN = LEVELS.index(0.5)
# What is assumed of a task of which nothing is known.
UNKNOWN_S = 1.0


class SkillError(msgspec.Struct, frozen=True):
    """Median of |log(predicted / real)| over a skill's attempts; `declared` None: none declared."""

    attempts: int
    predicted: float
    declared: float | None


class Evaluation(msgspec.Struct, frozen=True):
    """On attempts that the model was not fitted to.

    loss        mean pinball loss over LEVELS, log seconds; less is better
    error       median of |log(predicted / real)| at the median
    covered_90  share of attempts below the predicted 90th percentile
    """

    attempts: int
    loss: float
    error: float
    covered_90: float
    skills: dict[str, SkillError] = {}


def declared_log_s(attempts: Sequence[Attempt]) -> FloatArray:
    """float64 [N]: what would be assumed without a model."""
    return np.log([attempt.task.declared_s or UNKNOWN_S for attempt in attempts])


def evaluate_quantiles(attempts: Sequence[Attempt], log_s: FloatArray) -> Evaluation:
    """`log_s` float64 [len(LEVELS), N], the predictions; there is at least one attempt."""
    real = np.log([attempt.run_s for attempt in attempts])
    levels = np.array(LEVELS)[:, None]
    off = real - log_s
    loss = float(np.maximum(levels * off, (levels - 1.0) * off).mean())
    distance = np.abs(off[MEDIAN])
    declared = np.abs(real - declared_log_s(attempts))
    skills = {}
    for skill, rows in rows_by_skill([a.task.skill for a in attempts]).items():
        with_estimate = [row for row in rows if attempts[row].task.declared_s > 0]
        skills[skill] = SkillError(
            len(rows),
            float(np.median(distance[rows])),
            float(np.median(declared[with_estimate])) if with_estimate else None,
        )
    return Evaluation(
        len(attempts),
        loss,
        float(np.median(distance)),
        float((off[LEVELS.index(0.9)] <= 0).mean()),
        skills,
    )
