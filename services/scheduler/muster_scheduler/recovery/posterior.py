"""What past outages say about the next: Beta posteriors per agent and kind of failure.

Counts are kept for each agent and, pooled, for the cluster; an agent's prior has the pool's mean,
so a new agent borrows what is known of the others. All counts fade by half every 6 h.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from muster.domain.errors import InvalidInput
from muster_scheduler.recovery.settings import number
from muster_scheduler.recovery.situation import FailureKind

# Ranges of the time since an agent was last heard, seconds; the last is open.
RANGES_S: Final = (5, 10, 15, 20, 30, 45, 60, 90, 120)
# Ranges of the seconds that a restart took; the last reaches to the deadline.
TOOK_S: Final = (1, 2, 3, 4, 6, 8, 11, 15, 20)
HALF_LIFE_S: Final = 6 * 3600.0
# Agents whose own counts are kept; whoever was not heard of for longest is forgotten.
MAX_AGENTS: Final = 20_000
_OWN_OUTCOMES, _OWN_SECONDS = 4.0, 60.0
_PRIOR_OUTCOMES, _PRIOR_SECONDS = 2.0, 60.0
# What a restart after another kind of failure says of this one.
_OTHER_KINDS: Final = 0.5
# An agent that is always back within the second, and one that never is, are both thinkable.
_LEAST: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Prior:
    """What is believed before anything was seen.

    `restart`: a restart works. `with_work`: who comes back by itself has its work. `back_per_s`:
    a silent agent comes back within a second, by kind.
    """

    restart: float = 0.8
    with_work: float = 0.5
    back_per_s: tuple[tuple[FailureKind, float], ...] = (
        (FailureKind.DIED, 0.001),
        (FailureKind.HUNG, 0.02),
        (FailureKind.UNREACHABLE, 0.02),
    )

    def __post_init__(self) -> None:
        number("prior.restart", self.restart, 0.0, 1.0)
        number("prior.with_work", self.with_work, 0.0, 1.0)
        for kind, chance in self.back_per_s:
            number(f"prior.back_per_s.{kind}", chance, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Beta:
    """A Beta(a, b) posterior. `seen`: outcomes of the agent itself behind it, faded ones less."""

    a: float
    b: float
    seen: float = 0.0

    @property
    def mean(self) -> float:
        """The chance of success."""
        return self.a / (self.a + self.b)

    def after_failures(self, failures: int) -> float:
        """The chance of success once so many more have failed."""
        return self.a / (self.a + self.b + failures)


@dataclass(slots=True)
class _Counts:
    good: float = 0.0
    bad: float = 0.0
    at_s: float = 0.0

    def at(self, now_s: float) -> tuple[float, float]:
        fade = 0.5 ** (max(0.0, now_s - self.at_s) / HALF_LIFE_S)
        return self.good * fade, self.bad * fade

    def add(self, good: float, bad: float, now_s: float) -> None:
        before_good, before_bad = self.at(now_s)
        self.good, self.bad = before_good + good, before_bad + bad
        self.at_s = max(self.at_s, now_s)


# The cluster's own counts are kept as those of an agent of no name.
_POOL: Final = ""


class Beliefs:
    """All that was learnt. Times are seconds on any clock that does not go back."""

    def __init__(self, prior: Prior | None = None) -> None:
        self.prior = prior or Prior()
        self._back_per_s = dict(self.prior.back_per_s)
        self._counts: dict[str, dict[str, _Counts]] = {_POOL: {}}

    # ------------------------------------------------------------------ learning

    def restart_ended(
        self, agent: str, kind: FailureKind, worked: bool, took_s: float, now_s: float
    ) -> None:
        """A restart brought the agent up, or was found to have failed, after `took_s`."""
        number("took_s", took_s, 0.0, 86_400.0)
        good, bad = (1.0, 0.0) if worked else (0.0, 1.0)
        self._learn(agent, f"{kind} restart", good, bad, now_s)
        index = sum(took_s > bound for bound in TOOK_S)
        self._counts[_POOL].setdefault(f"{kind} took {index}", _Counts()).add(1.0, 0.0, now_s)

    def came_back(
        self,
        agent: str,
        kind: FailureKind,
        found_s: float,
        back_s: float,
        with_work: bool,
        now_s: float,
    ) -> None:
        """Found DOWN when last heard `found_s` ago, it came back by itself `back_s` after it."""
        self.stayed_away(agent, kind, found_s, back_s, now_s)
        index = _range_of(back_s)
        # The second in which it came back was counted as one of waiting in vain.
        self._learn(agent, f"{kind} back {index}", 1.0, 0.0, now_s)
        good, bad = (1.0, 0.0) if with_work else (0.0, 1.0)
        self._learn(agent, f"{kind} work {index}", good, bad, now_s)

    def stayed_away(
        self, agent: str, kind: FailureKind, found_s: float, until_s: float, now_s: float
    ) -> None:
        """It did not come back by itself from `found_s` to `until_s` since it was last heard.

        Say this when a restart is ordered, and when nobody looks any more.
        """
        number("found_s", found_s, 0.0, 1e9)
        number("until_s", until_s, found_s, 1e9)
        low = 0.0
        for index, high in enumerate((*RANGES_S, float("inf"))):
            seconds = min(until_s, high) - max(found_s, low)
            if seconds > 0:
                self._learn(agent, f"{kind} back {index}", 0.0, seconds, now_s)
            low = high

    def _learn(self, agent: str, what: str, good: float, bad: float, now_s: float) -> None:
        if not agent:
            raise InvalidInput("agent", agent, "a name is needed")
        number("now_s", now_s, 0.0, 1e12)
        own = self._counts.pop(agent, {})
        # The agent last heard of stands last.
        self._counts[agent] = own
        for counts in (own, self._counts[_POOL]):
            counts.setdefault(what, _Counts()).add(good, bad, now_s)
        if len(self._counts) > MAX_AGENTS + 1:
            del self._counts[next(name for name in self._counts if name != _POOL)]

    # ------------------------------------------------------------------ asking

    def restart(self, agent: str, kind: FailureKind, now_s: float) -> Beta:
        """Whether a restart of the agent works; restarts after failures of another kind count by
        half, for what makes them fail is often the same."""
        good, bad = self._restarts(_POOL, kind, now_s)
        pooled = (self.prior.restart * _PRIOR_OUTCOMES + good) / (_PRIOR_OUTCOMES + good + bad)
        pooled = min(1 - _LEAST, max(_LEAST, pooled))
        good, bad = self._restarts(agent, kind, now_s)
        weight = _OWN_OUTCOMES
        return Beta(weight * pooled + good, weight * (1 - pooled) + bad, good + bad)

    def _restarts(self, agent: str, kind: FailureKind, now_s: float) -> tuple[float, float]:
        """Those that worked and those that did not."""
        known = self._counts.get(agent, {})
        good = bad = 0.0
        for other in FailureKind:
            counts = known.get(f"{other} restart")
            if counts is not None:
                share = 1.0 if other is kind else _OTHER_KINDS
                worked, failed = counts.at(now_s)
                good, bad = good + share * worked, bad + share * failed
        return good, bad

    def back(self, agent: str, kind: FailureKind, now_s: float) -> tuple[Beta, ...]:
        """Per range of RANGES_S: whether it comes back by itself within a second."""
        prior = self._back_per_s.get(kind, 0.0)
        return tuple(
            self._beta(agent, f"{kind} back {i}", prior, _PRIOR_SECONDS, _OWN_SECONDS, now_s)
            for i in range(len(RANGES_S) + 1)
        )

    def with_work(self, agent: str, kind: FailureKind, now_s: float) -> tuple[Beta, ...]:
        """Per range of RANGES_S: whether it has its work when it comes back."""
        prior = self.prior.with_work
        return tuple(
            self._beta(agent, f"{kind} work {i}", prior, _PRIOR_OUTCOMES, _OWN_OUTCOMES, now_s)
            for i in range(len(RANGES_S) + 1)
        )

    def restart_seconds(self, kind: FailureKind, deadline_s: int, now_s: float) -> list[float]:
        """[deadline_s]: the chance that a restart is over after 1, 2, ... s; they add up to 1.

        Before anything was seen, all seconds of TOOK_S's ranges but the last are alike.
        """
        shares = [0.0] * deadline_s
        low = 0
        for index, bound in enumerate((*TOOK_S, deadline_s)):
            counts = self._counts[_POOL].get(f"{kind} took {index}", _Counts())
            weight = counts.at(now_s)[0] + 0.2
            seconds = list(range(low, min(bound, deadline_s))) or [deadline_s - 1]
            for second in seconds:
                shares[second] += weight / len(seconds)
            low = bound
        total = sum(shares)
        return [share / total for share in shares]

    def _beta(
        self, agent: str, what: str, prior: float, prior_weight: float, weight: float, now_s: float
    ) -> Beta:
        good, bad = self._counts[_POOL].get(what, _Counts()).at(now_s)
        pooled = (prior * prior_weight + good) / (prior_weight + good + bad)
        pooled = min(1 - _LEAST, max(_LEAST, pooled))
        own = self._counts.get(agent, {}).get(what, _Counts())
        good, bad = own.at(now_s) if agent else (0.0, 0.0)
        return Beta(weight * pooled + good, weight * (1 - pooled) + bad, good + bad)

    # ------------------------------------------------------------------ keeping

    def to_plain(self) -> dict[str, dict[str, list[float]]]:
        """All counts as plain values, for keeping across restarts."""
        return {
            agent: {what: [c.good, c.bad, c.at_s] for what, c in counts.items()}
            for agent, counts in self._counts.items()
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], prior: Prior | None = None) -> Beliefs:
        """What `to_plain` gave; raises InvalidInput for what it cannot have given."""
        beliefs = cls(prior)
        if len(plain) > MAX_AGENTS + 1:
            raise InvalidInput("beliefs", len(plain), f"at most {MAX_AGENTS} agents")
        for agent, whats in plain.items():
            own = beliefs._counts.setdefault(agent, {})
            for what, values in whats.items():
                field = f"beliefs.{agent}.{what}"
                if len(values) != 3:
                    raise InvalidInput(field, values, "three numbers: good, bad, time")
                good, bad, at_s = (number(field, value, 0.0, 1e12) for value in values)
                own[what] = _Counts(good, bad, at_s)
        return beliefs


def _range_of(age_s: float) -> int:
    return sum(age_s > bound for bound in RANGES_S)


def range_of_second(age_s: float) -> int:
    """Which of the ranges holds the second that begins at `age_s`."""
    return sum(age_s >= bound for bound in RANGES_S)
