"""What became of `auto`'s choices: some of its plans are followed until their tasks have ended."""

from __future__ import annotations

import msgspec

from muster_scheduler.core.records import Now
from muster_scheduler.learning.bandit import Choice
from muster_scheduler.placement.auto import ChosenPlan
from muster_scheduler.placement.plan import Policy

# The first plan of each second is followed, whatever it is.
_EVERY_MS = 1000
MAX_FOLLOWED = 64
# Tasks of a plan by whose response times it is judged.
MAX_JUDGED_TASKS = 32
# Then those that have not ended count with the time that has passed.
_JUDGED_AFTER_MS = 120_000


class Followed(msgspec.Struct):
    """One plan. `response_s` and `reference_s` are sums over the tasks that have ended."""

    number: int
    choice: Choice
    guarded: bool
    began_clock_ms: int
    tasks: int = 0
    ended: int = 0
    response_s: float = 0.0
    reference_s: float = 0.0


class Judged(msgspec.Struct, frozen=True):
    """A plan whose J has come true; the reward is -`j`."""

    choice: Choice
    guarded: bool
    tasks: int
    j: float


class Choices:
    """Those of one leader that are followed."""

    def __init__(self) -> None:
        self._followed: dict[int, Followed] = {}
        self._number = 0
        self._next_clock_ms = 0

    def follow(self, plan: object, now: Now) -> Followed | None:
        """Begins to follow the plan, if it is `auto`'s and it is time."""
        if not isinstance(plan, ChosenPlan) or plan.choice is None:
            return None
        if now.clock_ms < self._next_clock_ms or len(self._followed) >= MAX_FOLLOWED:
            return None
        self._next_clock_ms = now.clock_ms + _EVERY_MS
        self._number += 1
        followed = Followed(self._number, plan.choice, plan.guarded, now.clock_ms)
        self._followed[followed.number] = followed
        return followed

    def __len__(self) -> int:
        return len(self._followed)

    def of(self, number: int) -> Followed | None:
        return self._followed.get(number)

    def ended(self, number: int, response_s: float, reference_s: float) -> None:
        """A task of the plan has ended, `response_s` after its creation.

        `reference_s` is what it might have taken at best.
        """
        followed = self._followed.get(number)
        if followed is not None:
            followed.ended += 1
            followed.response_s += response_s
            followed.reference_s += reference_s

    def judged(self, policy: Policy, used: float, spread: float, now: Now) -> list[Judged]:
        """Those whose tasks have all ended, or that have been followed for long enough.

        J as of a plan, with what has come true: T / T_ref is the tasks' response time over what
        they might have taken at best, `used` (U) and `spread` (B) are the cluster's now. A task
        that has not ended has taken what has passed, against the mean of the others.
        """
        found = []
        for followed in list(self._followed.values()):
            passed_s = (now.clock_ms - followed.began_clock_ms) / 1000
            late = followed.tasks - followed.ended
            if late > 0 and passed_s * 1000 < _JUDGED_AFTER_MS:
                continue
            del self._followed[followed.number]
            if not followed.tasks:
                continue
            mean_s = followed.reference_s / followed.ended if followed.ended else passed_s
            response_s = followed.response_s + late * passed_s
            slower = response_s / max(followed.reference_s + late * mean_s, 1e-3)
            j = policy.w_t * slower + policy.w_u * (1.0 - used) + policy.w_b * spread
            found.append(Judged(followed.choice, followed.guarded, followed.tasks, j))
        return found
