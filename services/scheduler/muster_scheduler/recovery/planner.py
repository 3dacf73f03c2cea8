"""What to do about failed agents: one, or several that share what capacity is spare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from muster_scheduler.recovery.assess import assess, sooner_by_restart
from muster_scheduler.recovery.decision import Decision
from muster_scheduler.recovery.ledger import SpareLedger
from muster_scheduler.recovery.policies import rule
from muster_scheduler.recovery.posterior import Beliefs
from muster_scheduler.recovery.settings import MAX_SECONDS, MAX_TRIES, Bounds, RecoverySettings
from muster_scheduler.recovery.situation import Action, Cluster, Failure

# An agent without tasks is planned for so many seconds ahead; its silence is rounded to so many, so
# that a table serves for several of them.
_AHEAD_S: Final = 120
_STEP_S: Final = 5


def decide(
    failure: Failure,
    cluster: Cluster,
    beliefs: Beliefs,
    ledger: SpareLedger,
    settings: RecoverySettings,
    now_s: float,
    policy: str = "planned",
) -> Decision:
    """Chooses for one failure at this epoch; the slots of what it gives away are promised to it.

    Call it about once a second while the agent's tasks are held, and when a restart has ended.
    `now_s` is on the clock that `beliefs` are told. Raises InvalidInput for a policy unknown.
    """
    seen = assess(failure, cluster, beliefs, ledger, settings, now_s)
    action = rule(policy)(seen)
    moved: tuple[int, ...] = ()
    if action is Action.MIGRATE or policy == "planned":
        moved = seen.options[action].moved
    give_away = tuple(ident for group in moved for ident in seen.groups[group].ids)
    ledger.promise(failure.agent, min(len(give_away), seen.free))
    return Decision(policy, action, give_away, seen)


def decide_all(
    failures: Sequence[Failure],
    cluster: Cluster,
    beliefs: Beliefs,
    ledger: SpareLedger,
    settings: RecoverySettings,
    now_s: float,
    policy: str = "planned",
) -> list[Decision]:
    """Chooses for failures of one moment, in the order given; they never count on the same slot.

    Each is first planned alone with the spare slots and without them: whom they save most per slot
    has the first choice.
    """
    gains = [
        _worth_of_slots(f, cluster, beliefs, ledger, settings, now_s) if len(failures) > 1 else 0.0
        for f in failures
    ]
    decisions: dict[int, Decision] = {}
    for index in sorted(range(len(failures)), key=lambda i: -gains[i]):
        decisions[index] = decide(
            failures[index], cluster, beliefs, ledger, settings, now_s, policy
        )
    return [decisions[index] for index in range(len(failures))]


def restart_emptied(
    failure: Failure, beliefs: Beliefs, settings: RecoverySettings, now_s: float
) -> bool:
    """Whether to restart a failed agent that holds no tasks any more, or to let it mend by itself.

    What counts is when the agent is back: a restart ends whatever would have mended. It may be
    tried for as long as the hourly budget lets, `settings.tries` or not.
    """
    if not failure.can_restart or failure.restarting_s is not None or not failure.restarts_left:
        return False
    away_s = min(MAX_SECONDS, failure.silent_s + failure.epoch)
    itself = replace(failure, tasks=(), silent_s=_STEP_S * round(away_s / _STEP_S), epoch=0)
    tries = min(MAX_TRIES, failure.tried + 1)
    alone = replace(settings, tries=tries, horizon_s=_AHEAD_S, bounds=Bounds())
    return sooner_by_restart(itself, beliefs, alone, now_s)


def _worth_of_slots(
    failure: Failure,
    cluster: Cluster,
    beliefs: Beliefs,
    ledger: SpareLedger,
    settings: RecoverySettings,
    now_s: float,
) -> float:
    """What the spare slots save this failure, per slot that it would take."""
    least = [
        min(option.cost for option in seen.options.values())
        for seen in (
            assess(failure, there, beliefs, ledger, settings, now_s)
            for there in (replace(cluster, able_free=0), cluster)
        )
    ]
    return (least[0] - least[1]) / max(1, min(len(failure.tasks), cluster.free))
