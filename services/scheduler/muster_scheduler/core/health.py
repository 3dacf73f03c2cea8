"""How far each agent is to be trusted: a score that what goes wrong there lowers and time restores.

health = 2 ** -points, 1 = nothing is known against it. Points are forgotten by half every
HALF_LIFE_MS. Deaths, attempts not started or not ended, and refusals cost points each. Failures of
tasks cost points only as far as the agent fails more of a skill's attempts than the other agents
do, beyond chance: a skill that is broken everywhere blames nobody, nor does one that only one
agent runs. Times are cluster milliseconds, so the score goes on where another leader left it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

from muster.domain.ids import AgentId

HALF_LIFE_MS: Final = 10 * 60_000
# Under it an agent is quarantined: six deaths in short order, or two rounds of attempts that it
# did not start, or some eight attempts failed that others would not have.
FLOOR: Final = 0.25
# What is left of its points when a probe has succeeded; the rest is forgotten with time.
ABSOLVED_POINTS: Final = 1.0
# The worst there is: back above the floor after a good twenty minutes of silence.
MAX_POINTS: Final = 6.0
TASK_POINTS: Final = 0.25
# Standard deviations by which others' rate, and this agent's own luck, are given the benefit.
RATE_DOUBT: Final = 3.0
LUCK_DOUBT: Final = 2.0
# Skills whose failures are counted: of one agent, and in all. Others' failures blame nobody.
MAX_SKILLS_OF_AGENT: Final = 256
MAX_SKILLS_COUNTED: Final = 4_096
# Agents of which something is kept for the next leader.
MAX_KEPT: Final = 4_096
# Fewer points than this are nothing.
_NOTHING: Final = 0.01
# Weights grow by doubling; from here on everything is scaled down.
_MAX_DOUBLINGS: Final = 40.0


@dataclass(frozen=True, slots=True)
class QuarantineSettings:
    """`share` 0 to 0.5 of the agents are quarantined at most, 0 = none ever, else at least one
    of two; `first_wait_ms` is how long the first quarantine lasts."""

    share: float = 0.2
    first_wait_ms: int = 60_000


class Blame(StrEnum):
    """What an agent is blamed for, in words that follow a number."""

    DEATH = "deaths"
    UNSTARTED = "times it did not start what it was given"
    UNENDED = "times it did not end what it was told to end"
    REFUSED = "attempts that it gave back"


POINTS: Final[Mapping[Blame, float]] = {
    Blame.DEATH: 0.35,
    Blame.UNSTARTED: 1.0,
    Blame.UNENDED: 0.7,
    Blame.REFUSED: 0.05,
}


class Sentence(msgspec.Struct):
    """An agent's quarantine. It is over when `served`; `until_ms` is when its parole may begin.

    `times` counts quarantines and relapses since the agent was last well for long.
    """

    until_ms: int
    times: int = 1
    served: bool = False


class PlainTrust(msgspec.Struct, frozen=True):
    """What is kept of an agent when leaders change: numbers by blame, as of the time of saving."""

    numbers: dict[str, float]
    sentence: Sentence | None = None


class _Trust:
    """Numbers are weighted: divided by the present weight they are what is not forgotten yet."""

    __slots__ = ("numbers", "sentence", "tries")

    def __init__(self) -> None:
        self.numbers: dict[Blame, float] = {}
        # Attempts and failures by skill.
        self.tries: dict[str, list[float]] = {}
        self.sentence: Sentence | None = None


class HealthBook:
    """What is known for and against the agents of one cluster."""

    def __init__(self) -> None:
        self._trusts: dict[AgentId, _Trust] = {}
        self._totals: dict[str, list[float]] = {}
        self._origin_ms: int | None = None
        # Grows with each change of what `to_plain` keeps.
        self.version = 0

    def __contains__(self, ident: object) -> bool:
        return ident in self._trusts

    def blame(self, ident: AgentId, what: Blame, now_ms: int) -> None:
        """It has happened once more."""
        self.version += 1
        # First, for it may scale all numbers.
        weight = self._weight(now_ms)
        numbers = self._trust(ident).numbers
        numbers[what] = numbers.get(what, 0.0) + weight
        points = sum(POINTS[w] * n for w, n in numbers.items()) / weight
        if points > MAX_POINTS:
            # Beyond the worst nothing is remembered, or it would never end.
            for one in numbers:
                numbers[one] *= MAX_POINTS / points

    def tried(self, ident: AgentId, skill: str, failed: bool, now_ms: int) -> None:
        """An attempt of the skill has ended there."""
        tries = self._trust(ident).tries
        own = tries.get(skill)
        total = self._totals.get(skill)
        if own is None:
            if len(tries) >= MAX_SKILLS_OF_AGENT:
                return
            if total is None:
                if len(self._totals) >= MAX_SKILLS_COUNTED:
                    return
                total = self._totals[skill] = [0.0, 0.0]
            own = tries[skill] = [0.0, 0.0]
        assert total is not None, "what one agent has tried is counted in all"
        weight = self._weight(now_ms)
        own[0] += weight
        total[0] += weight
        if failed:
            own[1] += weight
            total[1] += weight

    def points(self, ident: AgentId, now_ms: int) -> float:
        """0 (well) to MAX_POINTS."""
        trust = self._trusts.get(ident)
        if trust is None:
            return 0.0
        weight = self._weight(now_ms)
        points = sum(POINTS[what] * n for what, n in trust.numbers.items()) / weight
        for skill, own in trust.tries.items():
            if own[1]:
                points += TASK_POINTS * self._excess(skill, own, weight)
        return min(points, MAX_POINTS)

    def health(self, ident: AgentId, now_ms: int) -> float:
        """0 to 1, in hundredths so that it does not change all the time."""
        return float(round(2.0 ** -self.points(ident, now_ms), 2))

    def reasons(self, ident: AgentId, now_ms: int) -> list[str]:
        """What lowers its health, in words; numbers are of what is not forgotten yet."""
        trust = self._trusts.get(ident)
        if trust is None:
            return []
        weight = self._weight(now_ms)
        said = [
            f"{number / weight:.1f} {what.value}"
            for what, number in trust.numbers.items()
            if POINTS[what] * number / weight >= _NOTHING
        ]
        for skill, own in trust.tries.items():
            if TASK_POINTS * self._excess(skill, own, weight) >= _NOTHING:
                tried, failed = own[0] / weight, own[1] / weight
                total = self._totals[skill]
                others = (total[0] - own[0]) / weight
                others_failed = max(0.0, (total[1] - own[1]) / weight)
                said.append(
                    f"skill {skill} failed {failed:.0f} of {tried:.0f} times here,"
                    f" {others_failed:.0f} of {others:.0f} elsewhere"
                )
        return said

    def sentence(self, ident: AgentId) -> Sentence | None:
        """Its quarantine, served or not; None when there was none lately."""
        trust = self._trusts.get(ident)
        return None if trust is None else trust.sentence

    def condemn(self, ident: AgentId, sentence: Sentence) -> None:
        """It is quarantined."""
        self.version += 1
        self._trust(ident).sentence = sentence

    def absolve(self, ident: AgentId, now_ms: int) -> None:
        """A probe has succeeded there: at most ABSOLVED_POINTS of its points are left."""
        trust = self._trusts.get(ident)
        if trust is None:
            return
        self.version += 1
        self._forget_tries(trust)
        points = self.points(ident, now_ms)
        if points > ABSOLVED_POINTS:
            share = ABSOLVED_POINTS / points
            # Beyond MAX_POINTS there may be more numbers than points.
            raw = sum(POINTS[w] * n for w, n in trust.numbers.items()) / self._weight(now_ms)
            share = min(share, ABSOLVED_POINTS / raw)
            trust.numbers = {what: n * share for what, n in trust.numbers.items()}
        if trust.sentence is not None:
            trust.sentence.served = True

    def prune(self, now_ms: int, sentences_ms: int) -> None:
        """Forgets what is as good as forgotten; called about once a minute.

        A served quarantine is kept for `sentences_ms` after its parole began.
        """
        weight = self._weight(now_ms)
        for ident, trust in list(self._trusts.items()):
            for skill, own in list(trust.tries.items()):
                if own[0] / weight < _NOTHING:
                    self._subtract(skill, own)
                    del trust.tries[skill]
            trust.numbers = {
                what: n for what, n in trust.numbers.items() if POINTS[what] * n / weight > _NOTHING
            }
            past = trust.sentence
            if past is not None and past.served and now_ms - past.until_ms > sentences_ms:
                trust.sentence = None
            if not (trust.tries or trust.numbers or trust.sentence):
                del self._trusts[ident]
        if weight > 2.0 ** (_MAX_DOUBLINGS / 2):
            self._scale(1.0 / weight)
            self._origin_ms = now_ms

    def to_plain(self, now_ms: int) -> dict[str, PlainTrust]:
        """Of the agents against whom there is something, the worst MAX_KEPT.

        Attempts of skills are not kept.
        """
        weight = self._weight(now_ms)
        plain = {}
        kept = list(self._trusts.items())
        if len(kept) > MAX_KEPT:
            kept = sorted(kept, key=lambda one: -self.points(one[0], now_ms))[:MAX_KEPT]
        for ident, trust in kept:
            numbers = {
                what.value: round(n / weight, 4)
                for what, n in trust.numbers.items()
                if POINTS[what] * n / weight > _NOTHING
            }
            if numbers or trust.sentence is not None:
                plain[str(ident)] = PlainTrust(numbers, trust.sentence)
        return plain

    def take_over(self, plain: Mapping[str, PlainTrust], at_ms: int, now_ms: int) -> None:
        """What another leader had kept at `at_ms`; called before anything else is noted."""
        weight = self._weight(now_ms) * 0.5 ** (max(0, now_ms - at_ms) / HALF_LIFE_MS)
        known = {what.value: what for what in Blame}
        for ident, kept in plain.items():
            trust = self._trust(AgentId(ident))
            trust.sentence = kept.sentence
            for name, number in kept.numbers.items():
                what = known.get(name)
                if what is not None and 0.0 < number < math.inf:
                    most = MAX_POINTS / POINTS[what]
                    trust.numbers[what] = trust.numbers.get(what, 0.0) + weight * min(number, most)

    def _trust(self, ident: AgentId) -> _Trust:
        trust = self._trusts.get(ident)
        if trust is None:
            trust = self._trusts[ident] = _Trust()
        return trust

    def _weight(self, now_ms: int) -> float:
        if self._origin_ms is None:
            self._origin_ms = now_ms
        doublings = (now_ms - self._origin_ms) / HALF_LIFE_MS
        if doublings > _MAX_DOUBLINGS:
            # Nobody has pruned for long, so all of it is forgotten but what was just noted.
            self._scale(2.0 ** -min(doublings, 1000.0))
            self._origin_ms, doublings = now_ms, 0.0
        return float(2.0 ** max(0.0, doublings))

    def _scale(self, factor: float) -> None:
        for trust in self._trusts.values():
            trust.numbers = {what: n * factor for what, n in trust.numbers.items()}
            for own in trust.tries.values():
                own[0] *= factor
                own[1] *= factor
        for total in self._totals.values():
            total[0] *= factor
            total[1] *= factor

    def _excess(self, skill: str, own: list[float], weight: float) -> float:
        """How many more attempts have failed here than chance and others' failures explain."""
        total = self._totals[skill]
        tried, failed = own[0] / weight, own[1] / weight
        rate = highest_rate((total[0] - own[0]) / weight, (total[1] - own[1]) / weight)
        luck = LUCK_DOUBT * math.sqrt(tried * rate * (1.0 - rate))
        return max(0.0, failed - tried * rate - luck)

    def _forget_tries(self, trust: _Trust) -> None:
        for skill, own in trust.tries.items():
            self._subtract(skill, own)
        trust.tries = {}

    def _subtract(self, skill: str, own: list[float]) -> None:
        total = self._totals[skill]
        total[0] -= own[0]
        total[1] -= own[1]
        if not any(t.tries.get(skill, own) is not own for t in self._trusts.values()):
            # Nobody else has tried it.
            del self._totals[skill]


def highest_rate(tried: float, failed: float) -> float:
    """The highest likely rate of failure after so many attempts (Wilson's bound); 1 after none."""
    if tried <= 0.0:
        return 1.0
    share = min(1.0, max(0.0, failed / tried))
    spread = RATE_DOUBT**2 / tried
    middle = share + spread / 2
    half = math.sqrt(share * (1.0 - share) * spread + spread**2 / 4)
    return min(1.0, (middle + half) / (1.0 + spread))
