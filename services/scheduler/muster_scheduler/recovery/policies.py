"""Rules that choose among the options of a failure; a policy names one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from muster.domain.errors import InvalidInput
from muster_scheduler.recovery.assess import Assessment, Option
from muster_scheduler.recovery.situation import Action, FailureKind

# Among equals what leaves least to chance.
_ORDER: Final = (Action.MIGRATE, Action.RESTART, Action.WAIT)

Rule = Callable[[Assessment], Action]


def planned(assessment: Assessment) -> Action:
    """The least expected cost within the bounds; none within: the least violation."""
    options = assessment.options.values()

    def order(option: Option) -> tuple[float, float, int]:
        return option.violation, option.cost, _ORDER.index(option.action)

    return min(options, key=order).action


def fixed(assessment: Assessment) -> Action:
    """One restart, then migrate; migrate where none can be had."""
    failure = assessment.failure
    if failure.tried <= (failure.restarting_s is not None):
        return _restart_or(Action.MIGRATE, assessment)
    return Action.MIGRATE


def always_migrate(_: Assessment) -> Action:
    """Everything is given away at once."""
    return Action.MIGRATE


def always_restart(assessment: Assessment) -> Action:
    """Restarts until one works, waits for whom nobody can restart."""
    otherwise = Action.MIGRATE if assessment.failure.can_restart else Action.WAIT
    return _restart_or(otherwise, assessment)


def wait_until_cost(assessment: Assessment) -> Action:
    """Waits until that has cost as much as migrating at once would have (ski rental).

    A runtime that is known to be dead is restarted meanwhile: there is nothing to wait for.
    """
    failure = assessment.failure
    waited = len(failure.tasks) * failure.epoch
    if waited >= assessment.moved_now - assessment.untouched:
        return Action.MIGRATE
    if failure.kind is FailureKind.DIED:
        return _restart_or(Action.WAIT, assessment)
    return Action.WAIT if Action.WAIT in assessment.options else Action.MIGRATE


def _restart_or(otherwise: Action, assessment: Assessment) -> Action:
    for action in (Action.RESTART, otherwise):
        if action in assessment.options:
            return action
    return Action.MIGRATE


POLICIES: Final[dict[str, Rule]] = {
    "planned": planned,
    "fixed": fixed,
    "always_migrate": always_migrate,
    "always_restart": always_restart,
    "wait_until_cost": wait_until_cost,
}


def rule(name: str) -> Rule:
    """The rule of that name; raises InvalidInput."""
    if name not in POLICIES:
        raise InvalidInput("recovery.policy", name, f"one of {', '.join(POLICIES)}")
    return POLICIES[name]
