"""What a leader holds of all this: outcomes in, predicted times out, and when to train again.

Nothing here takes longer than some milliseconds. Between two trainings each outcome corrects its
agent at once, so a machine that has become slow is seen after a dozen or two of attempts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from muster_scheduler.learning.attempts import AgentFeatures, Attempt, History, TaskFeatures
from muster_scheduler.learning.effects import pair_key
from muster_scheduler.learning.estimates import Quantiles, declared
from muster_scheduler.learning.evaluation import MEDIAN, UNKNOWN_S
from muster_scheduler.learning.model import MAX_TREE_PAIRS, RuntimeModel, agent_columns
from muster_scheduler.learning.ridge import MIN_ATTEMPTS
from muster_scheduler.learning.training import MIN_BOOSTED, NEWEST_SHARE, Training, fit_ridge
from muster_scheduler.placement.snapshot import BoolArray, FloatArray

# Attempts between two trainings: half as many again as the last one knew, within these.
_MIN_BETWEEN, _MAX_BETWEEN = 200, 2000
# An agent with fewer attempts of a skill is taken to be as fast as the fastest known.
_TRIED = 2
# Corrections since training: imagined attempts at 0, and attempts after which old ones fade.
_CORRECTION_DOUBT = 2.0
_CORRECTION_MEMORY = 20
# One measurement may not move an agent further than this many log seconds (a factor of 20).
_MAX_SURPRISE = 3.0
# Log offsets at LEVELS where no model is: a factor of two either way is usual.
_UNKNOWN_SPREAD = (-0.7, 0.0, 0.7, 1.4)
# Elapsed over predicted time up to which the remaining time is tabled.
_TABLED = 4.0


class _Correction:
    __slots__ = ("count", "mean")

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0

    def add(self, surprise: float) -> None:
        self.count += 1
        self.mean += (surprise - self.mean) / min(self.count, _CORRECTION_MEMORY)

    @property
    def effect(self) -> float:
        count = min(self.count, _CORRECTION_MEMORY)
        return self.mean * count / (count + _CORRECTION_DOUBT)


class _SkillRow:
    """Of one skill, over the agents: what the model says, what came since, how often tried."""

    __slots__ = ("correction", "effect", "tried")

    def __init__(self, effect: FloatArray, correction: FloatArray, tried: FloatArray) -> None:
        self.effect, self.correction, self.tried = effect, correction, tried


class Foresight:
    """Predictions for a set of agents that changes now and then."""

    def __init__(self, *, explores: bool = True, tree_pairs: int = MAX_TREE_PAIRS) -> None:
        """`explores`: agents hardly tried count as fast, so that they are tried.

        `tree_pairs`: pairs of task and agent up to which `response_s` asks the trees of each.
        """
        self._tree_pairs = tree_pairs
        self.history = History()
        self.model: RuntimeModel | None = None
        self._explores = explores
        self._agents: tuple[AgentFeatures, ...] = ()
        self._row_of: dict[str, int] = {}
        self._columns = agent_columns(())
        self._rows: dict[str, _SkillRow] = {}
        self._corrections: dict[str, _Correction] = {}
        self._left = _left_table(_UNKNOWN_SPREAD)
        self._train_at = MIN_BOOSTED
        self._refit_at = MIN_ATTEMPTS + 2

    def set_agents(self, agents: Sequence[AgentFeatures]) -> None:
        """The agents that `response_s` is about, in its column order; when they have changed."""
        self._agents = tuple(agents)
        self._row_of = {agent.agent_id: row for row, agent in enumerate(self._agents)}
        self._columns = agent_columns(self._agents)
        self._rows.clear()

    def observe(self, attempts: Sequence[Attempt]) -> None:
        """Takes in attempts that succeeded, in the order of their ends."""
        self.history.add(attempts)
        self.correct(attempts)
        seen = self.history.seen
        if seen < MIN_BOOSTED and seen >= self._refit_at:
            self._refit_at = math.ceil(seen * 1.25)
            self._refit()

    def resume(self, window: Sequence[Attempt], model: RuntimeModel | None) -> Sequence[Attempt]:
        """Takes over from another leader: its window, oldest first, and its newest model.

        Returns as `adopt`.
        """
        self.history.add(window)
        if model is not None:
            # What that leader may have learned since is no reason to train at once.
            self.training_began()
            return self.adopt(model)
        if MIN_ATTEMPTS < self.history.seen < MIN_BOOSTED:
            self._refit()
        return ()

    def training_due(self) -> bool:
        """Whether enough has come for `train` to be worth its seconds."""
        return self.history.seen >= self._train_at

    def training_began(self) -> None:
        """The next one waits for as much again, whatever comes of this."""
        seen = self.history.seen
        self._train_at = seen + min(max(seen // 2, _MIN_BETWEEN), _MAX_BETWEEN)

    def install(self, training: Training) -> bool:
        """Whether there was a model to install."""
        if training.model is None:
            return False
        self._use(training.model)
        return True

    def adopt(self, model: RuntimeModel) -> Sequence[Attempt]:
        """Uses the model. Returns what is news to it, for `correct`, in slices if there is much:
        what it was judged on and what came since."""
        self.model = model
        self._left = _left_table(model.offsets)
        self._rows.clear()
        self._corrections.clear()
        window = self.history.window()
        return window[min(model.trained, len(window)) :]

    def response_s(self, tasks: Sequence[TaskFeatures], load: FloatArray | None) -> FloatArray:
        """t_ij, float64 [N, M]: predicted run times on the agents of `set_agents`.

        `load` float64 [M], dominant shares in use now; None: as the agents' features say.
        """
        fallback = np.array([task.declared_s or UNKNOWN_S for task in tasks])
        times = np.repeat(fallback[:, None], len(self._agents), axis=1)
        model = self.model
        if model is None or not len(self._agents):
            return times
        trusted = [row for row, task in enumerate(tasks) if model.is_trusted(task.skill)]
        if not trusted:
            return times
        if load is not None:
            self._columns[:, 0] = load
        asked = [tasks[row] for row in trusted]
        rows = {skill: self._row(model, skill) for skill in {task.skill for task in asked}}
        log_s = model.medians(
            asked,
            self._columns,
            {skill: row.effect for skill, row in rows.items()},
            self._tree_pairs,
        )
        corrections = {skill: self._applied(row) for skill, row in rows.items()}
        log_s += np.array([corrections[task.skill] for task in asked])
        times[trusted] = np.exp(log_s)
        return times

    def quantiles(self, task: TaskFeatures, agent: AgentFeatures) -> Quantiles:
        """Of the run time on one agent, without the optimism of exploring."""
        return self.quantiles_of([Attempt(task, agent, 1.0)])[0]

    def quantiles_of(self, attempts: Sequence[Attempt]) -> list[Quantiles]:
        """Of attempts that have not ended; their `run_s` is not looked at.

        The declared estimate where the skill is not trusted, or the task unlike all seen.
        """
        model = self.model
        found = [declared(a.task.declared_s or UNKNOWN_S) for a in attempts]
        if model is None:
            return found
        trusted = [row for row, a in enumerate(attempts) if model.knows_like(a.task)]
        if not trusted:
            return found
        log_s = model.of_attempts([attempts[row] for row in trusted])
        for column, row in enumerate(trusted):
            key = pair_key(attempts[row].task.skill, attempts[row].agent.agent_id)
            correction = self._corrections.get(key)
            effect = 0.0 if correction is None else correction.effect
            seconds = np.exp(log_s[:, column] + effect)
            found[row] = Quantiles(tuple(seconds.tolist()), "learned")
        return found

    def medians_s(self, attempts: Sequence[Attempt]) -> list[float]:
        """Of attempts as `quantiles_of` has them; 0 where the declared estimate would be used."""
        return [
            found.median_s if found.source == "learned" else 0.0
            for found in self.quantiles_of(attempts)
        ]

    def remaining_s(self, predicted_s: FloatArray, elapsed_s: FloatArray) -> FloatArray:
        """float64 [R]: what is left of attempts that were predicted to take `predicted_s`.

        The median given what has passed, by the spread of the model's errors as a whole (see
        Quantiles.remaining_s): one table serves all running attempts.
        """
        grid, left = self._left
        ratio = elapsed_s / predicted_s
        beyond = np.maximum(ratio - grid[-1], 0.0)
        # Who is far beyond what was predicted is taken to need as long again as a share of it.
        remaining: FloatArray = predicted_s * (np.interp(ratio, grid, left) + beyond * left[-1])
        return remaining

    def correct(self, attempts: Sequence[Attempt]) -> None:
        """Moves what is expected of the attempts' agents towards what came true."""
        model = self.model
        if model is None:
            return
        known = [a for a in attempts if a.task.skill in model.linear.lines]
        if not known:
            return
        surprises = np.log([a.run_s for a in known]) - model.medians_of(known)
        surprises = surprises.clip(-_MAX_SURPRISE, _MAX_SURPRISE)
        for attempt, surprise in zip(known, surprises.tolist(), strict=True):
            key = pair_key(attempt.task.skill, attempt.agent.agent_id)
            correction = self._corrections.setdefault(key, _Correction())
            correction.add(surprise)
            row, at = self._rows.get(attempt.task.skill), self._row_of.get(attempt.agent.agent_id)
            if row is not None and at is not None:
                row.correction[at] = correction.effect
                row.tried[at] += 1

    def _refit(self) -> None:
        """The linear part alone, while attempts are few: an online model of some milliseconds."""
        window = self.history.window()
        cut = len(window) - max(1, round(len(window) * NEWEST_SHARE))
        if cut >= MIN_ATTEMPTS:
            version = 1 if self.model is None else self.model.version + 1
            self._use(fit_ridge(window[:cut], window[cut:], version))

    def _use(self, model: RuntimeModel) -> None:
        self.correct(self.adopt(model))

    def _row(self, model: RuntimeModel, skill: str) -> _SkillRow:
        row = self._rows.get(skill)
        if row is None:
            keys = [pair_key(skill, agent.agent_id) for agent in self._agents]
            found = [self._corrections.get(key) for key in keys]
            counts = model.linear.effects.counts
            tried = [
                counts.get(key, 0) + (0 if c is None else c.count)
                for key, c in zip(keys, found, strict=True)
            ]
            row = self._rows[skill] = _SkillRow(
                model.linear.effects.row(skill, self._agents),
                np.array([0.0 if c is None else c.effect for c in found]),
                np.array(tried, np.float64),
            )
        return row

    def _applied(self, row: _SkillRow) -> FloatArray:
        """What is added to the model's log seconds, per agent."""
        if not self._explores:
            return row.correction
        new: BoolArray = row.tried < _TRIED
        if not new.any() or new.all():
            return row.correction
        total = row.effect + row.correction
        fastest = total[~new].min()
        applied: FloatArray = np.where(new, np.minimum(fastest, total) - row.effect, row.correction)
        return applied


def _left_table(offsets: Sequence[float]) -> tuple[FloatArray, FloatArray]:
    """Elapsed and remaining time as shares of the predicted median."""
    around = np.array(offsets) - offsets[MEDIAN]
    shares = Quantiles(tuple(np.exp(np.maximum.accumulate(around)).tolist()), "learned")
    grid = np.linspace(0.0, _TABLED, 201)
    return grid, np.array([shares.remaining_s(elapsed) for elapsed in grid.tolist()])
