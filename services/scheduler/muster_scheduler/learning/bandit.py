"""Which strategy to use when: a contextual bandit with Thompson sampling.

Per arm a Bayesian linear model of the reward in the context (Agrawal and Goyal, ICML 2013): a
Gaussian posterior, one draw of its weights, the arm of the greatest drawn reward. Propensities are
the arms' shares in a number of such draws, mixed with a little of each, and the arm is then drawn
from them: so the logged propensity is exactly the probability by which it was chosen, which is what
evaluating other policies on the log needs (Horvitz and Thompson 1952).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from muster.domain.errors import InvalidInput

# Placement imports this module, so this one imports nothing of placement.
FloatArray = NDArray[np.float64]

# Of each arm at least this share in all, so that no arm is ever lost.
_EXPLORED = 0.05
_DRAWS = 64
# Rewards are -J, of the order of 1; a prior of this variance is wide.
_PRIOR = 1.0
_NOISE = 0.2
# Old rewards fade: a cluster of last month is another one.
_FADING = 0.999
# A plan that leaves work out has a large J; its size must not drown all other rewards.
_LEAST_REWARD = -10.0
_MAX_WEIGHT = 1e6


class Choice(msgspec.Struct, frozen=True):
    """What was chosen, for the log and for `Bandit.learn`; `propensities` by arm, of sum 1."""

    arm: str
    context: tuple[float, ...]
    propensities: dict[str, float]


class Arm(msgspec.Struct):
    """Precision matrix and its product with the mean, row by row; `count` rewards."""

    precision: list[list[float]]
    weighted: list[float]
    count: int = 0


class Bandit:
    """Chooses among arms; `choose` changes nothing, `learn` does."""

    def __init__(self, width: int) -> None:
        """`width`: length of the contexts."""
        self._width = width
        self._arms: dict[str, Arm] = {}

    def choose(self, arms: Sequence[str], context: Sequence[float], rng: Generator) -> Choice:
        """Raises InvalidInput for no arm."""
        if not arms:
            raise InvalidInput("arms", list(arms), "there must be at least one")
        x = self._checked(context)
        drawn = np.array([self._drawn_rewards(arm, x, rng) for arm in arms])
        wins = np.bincount(drawn.argmax(axis=0), minlength=len(arms)) / _DRAWS
        shares = (1.0 - _EXPLORED) * wins + _EXPLORED / len(arms)
        shares /= shares.sum()
        arm = arms[int(rng.choice(len(arms), p=shares))]
        return Choice(arm, tuple(context), dict(zip(arms, shares.tolist(), strict=True)))

    def learn(self, choice: Choice, reward: float) -> None:
        """`reward` is -J as it was realised. Raises InvalidInput for one that is no number."""
        if not math.isfinite(reward):
            raise InvalidInput("reward", reward, "must be a finite number")
        x = self._checked(choice.context)
        arm = self._arms.setdefault(choice.arm, self._new_arm())
        precision, weighted = np.array(arm.precision), np.array(arm.weighted)
        prior = np.eye(self._width) / _PRIOR
        precision = prior + _FADING * (precision - prior) + np.outer(x, x) / _NOISE**2
        weighted = _FADING * weighted + x * max(reward, _LEAST_REWARD) / _NOISE**2
        arm.precision, arm.weighted = precision.tolist(), weighted.tolist()
        arm.count += 1

    def to_json(self) -> bytes:
        return msgspec.json.encode(self._arms)

    def load_json(self, stored: bytes) -> str | None:
        """Takes over what `to_json` gave; a sentence when it is not that, and then nothing is."""
        try:
            arms = msgspec.json.decode(stored, type=dict[str, Arm])
        except (msgspec.DecodeError, RecursionError) as error:
            return f"the stored choices are not understood: {error}"
        for name, arm in arms.items():
            rows = [arm.weighted, *arm.precision]
            whole = len(rows) == self._width + 1 and all(len(r) == self._width for r in rows)
            if not whole or not np.isfinite(np.array(rows)).all():
                return f"the stored choices of {name[:64]!r} are not of this version"
            if np.linalg.eigvalsh(np.array(arm.precision)).min() <= 0:
                return f"the stored choices of {name[:64]!r} contradict themselves"
        self._arms = arms
        return None

    def _drawn_rewards(self, arm: str, x: FloatArray, rng: Generator) -> FloatArray:
        """float64 [_DRAWS]: x·w is normal, so no weights need to be drawn."""
        known = self._arms.get(arm)
        mean, variance = 0.0, float(x @ x) * _PRIOR
        if known is not None:
            precision = np.array(known.precision)
            mean = float(x @ np.linalg.solve(precision, np.array(known.weighted)))
            variance = float(x @ np.linalg.solve(precision, x))
        return rng.normal(mean, math.sqrt(max(variance, 0.0)), _DRAWS)

    def _new_arm(self) -> Arm:
        return Arm((np.eye(self._width) / _PRIOR).tolist(), [0.0] * self._width)

    def _checked(self, context: Sequence[float]) -> FloatArray:
        x = np.array(context, np.float64)
        if x.shape != (self._width,) or not (np.abs(x) < _MAX_WEIGHT).all():
            raise InvalidInput("context", context, f"must be {self._width} finite numbers")
        return x
