"""The linear part of a run-time model: per skill, log seconds from a task's own numbers.

Ridge regression (Hoerl and Kennard 1970) on logarithms, because work over speed is a sum there. It
is all of a model while attempts are few, and what the boosted trees start from later. Fitting a
window of a few hundred attempts takes milliseconds, so while attempts are few it is fitted anew as
they come.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from muster_scheduler.learning.attempts import Attempt, TaskFeatures
from muster_scheduler.learning.effects import Effects, fit_effects
from muster_scheduler.placement.snapshot import FloatArray

# A skill with fewer attempts is not predicted.
MIN_ATTEMPTS = 8
_PENALTY = 1.0
_ROUNDS = 6
# Slopes are trusted within what was seen and a little beyond, in standard deviations.
_MAX_SCALED = 4.0
# A task whose line, went it on, would end this many log seconds elsewhere is unlike all seen.
_UNLIKE = 0.3


class SkillLine(msgspec.Struct, frozen=True):
    """log run_s = intercept + Σ slope · (x - mean) / scale over `names`; 0 for an absent x.

    `names` are "declared", "bytes" and "field:NAME"; the x are log(1 + v), sign kept.
    """

    count: int
    intercept: float
    names: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    slopes: tuple[float, ...]

    def of(self, tasks: Sequence[TaskFeatures]) -> FloatArray:
        """float64 [N], log seconds on an average agent."""
        log_s: FloatArray = self.intercept + self._scaled(tasks) @ np.array(self.slopes)
        return log_s

    def is_unlike(self, task: TaskFeatures) -> bool:
        """Whether the task is so far from those seen that its time is a guess."""
        cut = np.maximum(np.abs(self._unbounded([task])[0]) - _MAX_SCALED, 0.0)
        return bool(cut @ np.abs(np.array(self.slopes)) > _UNLIKE)

    def _scaled(self, tasks: Sequence[TaskFeatures]) -> FloatArray:
        return self._unbounded(tasks).clip(-_MAX_SCALED, _MAX_SCALED)

    def _unbounded(self, tasks: Sequence[TaskFeatures]) -> FloatArray:
        raw = raw_columns(tasks, self.names)
        scaled: FloatArray = (raw - np.array(self.means)) / np.array(self.scales)
        return np.nan_to_num(scaled, nan=0.0)


class LinearPart(msgspec.Struct, frozen=True):
    """Lines by skill, and effects of agents."""

    lines: dict[str, SkillLine]
    effects: Effects

    def of_attempts(self, attempts: Sequence[Attempt]) -> FloatArray:
        """float64 [N], log seconds; NaN where the skill is not known."""
        log_s = np.full(len(attempts), np.nan)
        for skill, rows in rows_by_skill([a.task.skill for a in attempts]).items():
            line = self.lines.get(skill)
            if line is not None:
                log_s[rows] = line.of([attempts[row].task for row in rows])
        effects = [self.effects.of(attempt.task.skill, attempt.agent) for attempt in attempts]
        log_s += np.array(effects)
        return log_s


def fit_linear(attempts: Sequence[Attempt]) -> LinearPart:
    """Lines for the skills with MIN_ATTEMPTS or more; lines and effects are fitted in turns."""
    known = {
        skill: rows
        for skill, rows in rows_by_skill([a.task.skill for a in attempts]).items()
        if len(rows) >= MIN_ATTEMPTS
    }
    kept = np.array(sorted(row for rows in known.values() for row in rows), np.int64)
    used = [attempts[row] for row in kept.tolist()]
    place = {row: position for position, row in enumerate(kept.tolist())}
    positions = {skill: [place[row] for row in rows] for skill, rows in known.items()}
    log_s = np.log(np.array([attempt.run_s for attempt in used]))
    skills, agents = [a.task.skill for a in used], [a.agent for a in used]
    of_agent = np.zeros(len(used))
    lines: dict[str, SkillLine] = {}
    effects = Effects()
    designs = {
        skill: _design([used[row].task for row in rows]) for skill, rows in positions.items()
    }
    for _ in range(_ROUNDS if used else 0):
        of_task = np.zeros(len(used))
        for skill, rows in positions.items():
            lines[skill], of_task[rows] = _fit_line(*designs[skill], log_s[rows] - of_agent[rows])
        effects = fit_effects(skills, agents, log_s - of_task)
        of_agent = np.array([effects.of(a.task.skill, a.agent) for a in used])
    return LinearPart(lines, effects)


def rows_by_skill(skills: Sequence[str]) -> Mapping[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, skill in enumerate(skills):
        rows.setdefault(skill, []).append(row)
    return rows


def raw_columns(tasks: Sequence[TaskFeatures], names: Sequence[str]) -> FloatArray:
    """float64 [N, len(names)], NaN where a task does not have it."""
    columns = np.full((len(tasks), len(names)), np.nan)
    column_of = {name: column for column, name in enumerate(names)}
    for row, task in enumerate(tasks):
        for name, value in _named(task):
            column = column_of.get(name)
            if column is not None:
                columns[row, column] = value
    return columns


def _named(task: TaskFeatures) -> list[tuple[str, float]]:
    found = [("bytes", math.log1p(task.input_bytes))]
    if task.declared_s > 0:
        found.append(("declared", math.log(task.declared_s)))
    for name, value in task.fields:
        found.append((f"field:{name}", math.copysign(math.log1p(abs(value)), value)))
    return found


def _design(tasks: Sequence[TaskFeatures]) -> tuple[tuple[str, ...], FloatArray]:
    """The names that a line may use, and their columns: those that differ between tasks."""
    names = sorted({name for task in tasks for name, _ in _named(task)})
    columns = raw_columns(tasks, names)
    low, high = np.nanmin(columns, axis=0), np.nanmax(columns, axis=0)
    differs = high - low > 1e-9
    kept = tuple(name for name, use in zip(names, differs.tolist(), strict=True) if use)
    return kept, columns[:, differs]


def _fit_line(
    names: tuple[str, ...], columns: FloatArray, target: FloatArray
) -> tuple[SkillLine, FloatArray]:
    means = np.nanmean(columns, axis=0) if names else np.zeros(0)
    scales = np.nanstd(columns, axis=0) if names else np.ones(0)
    scaled = np.nan_to_num((columns - means) / scales, nan=0.0)
    centre = scaled.mean(axis=0)
    intercept = float(target.mean())
    shifted = scaled - centre
    gram = shifted.T @ shifted + _PENALTY * np.eye(len(names))
    slopes = np.linalg.solve(gram, shifted.T @ (target - intercept))
    intercept -= float(centre @ slopes)
    line = SkillLine(
        len(target),
        intercept,
        names,
        tuple(means.tolist()),
        tuple(scales.tolist()),
        tuple(slopes.tolist()),
    )
    return line, intercept + scaled @ slopes
