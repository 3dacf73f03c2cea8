"""A decision as it is recorded and shown: plain values, and one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from muster_scheduler.recovery.assess import SAID_AHEAD_S, Assessment, Option
from muster_scheduler.recovery.situation import Action, Failure


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about one failed agent now.

    `give_away`: ids of the tasks that others are to have at once; all of them when the action is
    `migrate`, some or none otherwise.
    """

    policy: str
    action: Action
    give_away: tuple[str, ...]
    assessment: Assessment

    @property
    def option(self) -> Option:
        """The chosen option."""
        return self.assessment.options[self.action]

    def to_plain(self) -> dict[str, Any]:
        """Everything behind the decision as plain values."""
        seen, failure = self.assessment, self.assessment.failure
        return {
            "agent": failure.agent,
            "kind": str(failure.kind),
            "silent_s": failure.silent_s + failure.epoch,
            "epoch": failure.epoch,
            "restarts_tried": failure.tried,
            "tasks": len(failure.tasks),
            "policy": self.policy,
            "action": str(self.action),
            "give_away": list(self.give_away),
            "expected_cost_task_s": _rounded(self.option.cost),
            "alternatives": {
                str(action): _rounded(option.held_cost)
                for action, option in seen.options.items()
                if action is not self.action
            },
            "excluded": {str(action): why for action, why in seen.excluded.items()}
            | {
                str(option.action): _bounds_said(option)
                for option in seen.options.values()
                if option.broken and option.action is not self.action
            },
            "evidence": {
                "restart_works": _rounded(seen.restart.mean) if seen.restart else None,
                "restarts_seen": _rounded(seen.restart.seen) if seen.restart else 0.0,
                "back_within_30_s": _rounded(seen.back_soon),
                "returns_seen": _rounded(seen.back_seen),
                "free_slots": seen.free,
                "slots": seen.capacity,
                "slot_second_worth": _rounded(seen.slot_worth),
            },
            "before": {"T": _rounded(seen.was.T), "U": seen.was.U, "B": seen.was.B},
            "after": {
                "T": _rounded(self.option.then.T),
                "U": self.option.then.U,
                "B": self.option.then.B,
            },
            "violated": {name: _rounded(value) for name, value in self.option.broken.items()},
            "sentence": self.sentence(),
        }

    def sentence(self) -> str:
        """Why, for people."""
        seen, failure = self.assessment, self.assessment.failure
        others = ", ".join(
            f"{option.action}: {option.held_cost:,.0f}"
            for option in seen.options.values()
            if option.action is not self.action
        )
        parts = [
            f"{failure.agent} {_condition(failure)} with {_tasks(len(failure.tasks))}: "
            f"{self.action}, expected to cost {self.option.cost:,.0f} task-seconds"
            + (f" ({others})" if others else ""),
            self._chances(),
        ]
        if self.give_away and self.action is not Action.MIGRATE:
            given = len(self.give_away)
            parts.append(f"{_tasks(given)} {'is' if given == 1 else 'are'} given away at once")
        parts += [f"no {action}: {why}" for action, why in seen.excluded.items()]
        parts += [
            f"no {option.action}: {_bounds_said(option)}"
            for option in seen.options.values()
            if option.broken and option.action is not self.action
        ]
        if self.option.broken:
            every = all(option.broken for option in seen.options.values())
            why = "every action breaks a bound; " if every else f"{self.policy} heeds no bound; "
            parts.append(f"{why}this one does: {_bounds_said(self.option)}")
        return "; ".join(parts) + "."

    def _chances(self) -> str:
        seen = self.assessment
        back = (
            f"it comes back by itself within {SAID_AHEAD_S} s with {seen.back_soon:.0%} chance "
            f"(its returns seen: {seen.back_seen:.0f})"
        )
        if seen.restart is None:
            return back
        works = (
            f"a restart works with {seen.restart.mean:.0%} chance "
            f"(its restarts seen: {seen.restart.seen:.0f})"
        )
        return works if seen.failure.tried or seen.back_soon < 0.05 else f"{works}, {back}"


def _condition(failure: Failure) -> str:
    away = failure.silent_s + failure.epoch
    if failure.restarting_s is not None:
        return f"({failure.kind}) has been restarting for {failure.restarting_s} s"
    return {
        "died": f"died {away:.0f} s ago",
        "hung": f"has been hung for {away:.0f} s",
        "unreachable": f"has been unreachable for {away:.0f} s",
    }[failure.kind]


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def _bounds_said(option: Option) -> str:
    said = {
        "T": f"T would be {option.then.T:,.0f} s, {option.broken.get('T', 0):.0%} over its bound",
        "U": f"U would be {option.then.U:.2f}, {option.broken.get('U', 0):.2f} under its bound",
        "B": f"B would be {option.then.B:.2f}, {option.broken.get('B', 0):.2f} over its bound",
    }
    return " and ".join(said[name] for name in option.broken)


def _rounded(value: float) -> float:
    return round(value, 3)
