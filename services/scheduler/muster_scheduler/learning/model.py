"""The run-time model: a linear part, and boosted trees for the quantiles around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from muster_scheduler.learning.attempts import AgentFeatures, Attempt, TaskFeatures
from muster_scheduler.learning.evaluation import LEVELS, MEDIAN, Evaluation
from muster_scheduler.learning.forest import Forest
from muster_scheduler.learning.ridge import LinearPart, raw_columns, rows_by_skill
from muster_scheduler.placement.snapshot import FloatArray

# Fields of inputs that the trees see, of all skills together.
MAX_TREE_FIELDS = 16
# Columns before the fields: skill, linear prediction, agent's effect, load, capacities.
_AGENT_COLUMNS = 5
_FIRST_FIELD = 3 + _AGENT_COLUMNS
# Pairs of task and agent for which the trees are asked at once, some 50 ms; for more, they are
# asked once a task, about the average agent, and the linear part alone tells agents apart.
MAX_TREE_PAIRS = 16_384
# The median may be off by this factor before the declared estimate is the better bet: e^1.4 = 4.
CONFIDENCE_FLOOR = 0.25
# On fewer unseen attempts nothing can be said about a skill.
MIN_EVALUATED = 3

Kind = Literal["ridge", "boosted"]


@dataclass(frozen=True, slots=True, eq=False)
class RuntimeModel:
    """log run_s at LEVELS = linear part + (forest, or a constant) of the level.

    offsets  float64 [L], quantiles of what the linear part leaves; used where no forest is
    forests  one a level ("boosted"), or none ("ridge")
    skills   codes are positions; `fields` are names as `raw_columns` takes them
    trained  attempts that it was fitted to
    """

    version: int
    kind: Kind
    linear: LinearPart
    offsets: tuple[float, ...]
    forests: tuple[Forest, ...]
    skills: tuple[str, ...]
    fields: tuple[str, ...]
    trained: int
    evaluation: Evaluation
    _codes: Mapping[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        assert len(self.offsets) == len(LEVELS), "one offset a level"
        assert len(self.forests) in (0, len(LEVELS)), "one forest a level, or none"
        object.__setattr__(self, "_codes", {skill: i for i, skill in enumerate(self.skills)})

    def confidence(self, skill: str) -> float:
        """0 to 1: exp(-median |log error|) on attempts unseen in training; 0 where unknown."""
        seen = self.evaluation.skills.get(skill)
        if skill not in self.linear.lines or seen is None or seen.attempts < MIN_EVALUATED:
            return 0.0
        return float(np.exp(-seen.predicted))

    def is_trusted(self, skill: str) -> bool:
        """Whether its predictions are used rather than the declared estimate."""
        if self.confidence(skill) < CONFIDENCE_FLOOR:
            return False
        seen = self.evaluation.skills[skill]
        return seen.declared is None or seen.predicted <= seen.declared

    def knows_like(self, task: TaskFeatures) -> bool:
        """Whether its time is more than a guess: of a trusted skill, and not unlike all seen."""
        return self.is_trusted(task.skill) and not self.linear.lines[task.skill].is_unlike(task)

    def of_attempts(self, attempts: Sequence[Attempt]) -> FloatArray:
        """float64 [L, N], log seconds, rising with the level; NaN where the skill is unknown."""
        linear = self.linear.of_attempts(attempts)
        around: FloatArray = np.tile(np.array(self.offsets)[:, None], (1, len(attempts)))
        if self.forests and len(attempts):
            rows = self.tree_rows(attempts, linear)
            around = np.array([forest.predict(rows) for forest in self.forests])
        # Levels are fitted apart and may cross where attempts are few.
        return np.maximum.accumulate(linear + around, axis=0)

    def medians_of(self, attempts: Sequence[Attempt]) -> FloatArray:
        """float64 [N], log seconds at the median; NaN where the skill is unknown."""
        linear = self.linear.of_attempts(attempts)
        if self.forests and len(attempts):
            return linear + self.forests[MEDIAN].predict(self.tree_rows(attempts, linear))
        return linear + self.offsets[MEDIAN]

    def tree_rows(self, attempts: Sequence[Attempt], linear: FloatArray) -> FloatArray:
        """float64 [N, F]: what the trees compare."""
        tasks = [attempt.task for attempt in attempts]
        agents = agent_columns([attempt.agent for attempt in attempts])
        effects = [self.linear.effects.of(a.task.skill, a.agent) for a in attempts]
        return self._rows(tasks, linear, np.array(effects), agents)

    def medians(
        self,
        tasks: Sequence[TaskFeatures],
        columns: FloatArray,
        effects: Mapping[str, FloatArray],
        tree_pairs: int = MAX_TREE_PAIRS,
    ) -> FloatArray:
        """float64 [N, M], log seconds at the median for each task on each agent.

        `columns` float64 [M, 5] are `agent_columns` of the agents, `effects` by skill float64 [M].
        NaN for unknown skills. `tree_pairs` as MAX_TREE_PAIRS.
        """
        count = columns.shape[0]
        linear = np.full((len(tasks), count), np.nan)
        for skill, rows in rows_by_skill([task.skill for task in tasks]).items():
            line = self.linear.lines.get(skill)
            if line is not None:
                base = line.of([tasks[row] for row in rows])
                linear[rows] = base[:, None] + effects[skill][None, :]
        if not self.forests or not count:
            return linear + self.offsets[MEDIAN]
        forest = self.forests[MEDIAN]
        if linear.size > tree_pairs:
            effect = np.array([effects[task.skill].mean() for task in tasks])
            average = np.tile(columns.mean(axis=0), (len(tasks), 1))
            about = self._rows(tasks, linear.mean(axis=1), effect, average)
            linear += forest.predict(about)[:, None]
            return linear
        every_task = [task for task in tasks for _ in range(count)]
        effect = np.concatenate([effects[task.skill] for task in tasks])
        about = self._rows(every_task, linear.ravel(), effect, np.tile(columns, (len(tasks), 1)))
        linear += forest.predict(about).reshape(linear.shape)
        return linear

    def _rows(
        self,
        tasks: Sequence[TaskFeatures],
        linear: FloatArray,
        effects: FloatArray,
        agents: FloatArray,
    ) -> FloatArray:
        rows = np.empty((len(tasks), self.tree_columns))
        rows[:, 0] = [self._codes.get(task.skill, np.nan) for task in tasks]
        rows[:, 1] = linear
        rows[:, 2] = effects
        rows[:, 3:_FIRST_FIELD] = agents
        rows[:, _FIRST_FIELD:] = raw_columns(tasks, self.fields)
        return rows

    @property
    def tree_columns(self) -> int:
        return _FIRST_FIELD + len(self.fields)


def agent_columns(agents: Sequence[AgentFeatures]) -> FloatArray:
    """float64 [M, 5]: load, and the logarithms of cpu, memory, network and slots."""
    columns = np.empty((len(agents), _AGENT_COLUMNS))
    for row, agent in enumerate(agents):
        columns[row, 0] = agent.load
        columns[row, 1:] = agent.capacity
    np.log1p(columns[:, 1:], out=columns[:, 1:])
    return columns
