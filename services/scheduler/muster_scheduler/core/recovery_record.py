"""A recovery as it is kept and shown: plain values, and one sentence for operators."""

from __future__ import annotations

from typing import Any, Final

from muster_scheduler.core.recoveries import Recovery

_KINDS: Final = {
    "died": "its runtime died",
    "hung": "its runtime did not answer, its supervisor did",
    "unreachable": "neither its runtime nor its supervisor was heard",
}
_ACTIONS: Final = {
    "wait": "its tasks waited for it to come back",
    "restart": "its tasks waited for its restart",
    "migrate": "its tasks were given to other agents",
}
OPEN: Final = "open"


def plain_record(recovery: Recovery, tenant: str, term: int) -> dict[str, Any]:
    """Everything about the recovery; the newest action stands last. `tenant` is its agent's."""
    began = recovery.began
    back_ms = recovery.back_boot_ms
    ended = recovery.ended
    waiting = len(recovery.awaited)
    return {
        "id": recovery.id,
        "agent": recovery.agent,
        "tenant": tenant,
        "incarnation": recovery.incarnation,
        "term": term,
        "kind": str(recovery.kind),
        "evidence": recovery.why,
        "policy": recovery.policy,
        "began_at_ms": began.wall_ms,
        "silent_s": _s(began.boot_ms - recovery.heard_boot_ms),
        "tasks": recovery.tasks,
        "moved": recovery.moved,
        "rerun": recovery.rerun,
        "kept": recovery.kept,
        "waiting": waiting,
        "action": str(recovery.actions[0]["action"]) if recovery.actions else "migrate",
        "actions": recovery.actions,
        "restarts": recovery.tried,
        "restart_took_s": None
        if recovery.restart_took_ms is None
        else _s(recovery.restart_took_ms),
        "back_after_s": None if back_ms is None else _s(back_ms - began.boot_ms),
        "longest_wait_s": _s(recovery.longest_wait_ms),
        "expected_cost_task_s": round(recovery.expected_cost_s, 3),
        "realised_cost_task_s": None if ended is None else _s(recovery.cost_ms),
        "outcome": outcome_of(recovery),
        "ended_at_ms": None if ended is None else ended.wall_ms,
        "sentence": sentence(recovery),
    }


def outcome_of(recovery: Recovery) -> str:
    """`open`, or what became of the tasks in one word; `moved` when some were."""
    if recovery.is_open:
        return OPEN
    if recovery.moved:
        return "moved"
    if recovery.rerun:
        return "rerun"
    if recovery.kept:
        return "kept"
    return "no tasks"


def sentence(recovery: Recovery) -> str:
    """What happened, what was done and what came of it."""
    parts = [
        f"{recovery.agent} was down with {_tasks(recovery.tasks)}: {_KINDS[str(recovery.kind)]}"
    ]
    if recovery.tasks:
        done = dict.fromkeys(str(action["action"]) for action in recovery.actions)
        said = [_ACTIONS[action] for action in done] or [_ACTIONS["migrate"]]
        parts.append(", then ".join(said))
    fates = [
        (recovery.kept, "went on"),
        (recovery.rerun, "began again when it was back"),
        (recovery.moved, "moved"),
    ]
    told = [f"{_tasks(count)} {what}" for count, what in fates if count]
    if told:
        parts.append(", ".join(told))
    if recovery.awaited:
        parts.append(f"{_tasks(len(recovery.awaited))} not running again yet")
    if recovery.back_boot_ms is not None:
        after_s = _s(recovery.back_boot_ms - recovery.began.boot_ms)
        took_ms = recovery.restart_took_ms
        how = "" if took_ms is None else f", {_s(took_ms):g} s of it its restart"
        parts.append(f"the agent was back after {after_s:g} s{how}")
    elif not recovery.is_open:
        parts.append("the agent did not come back")
    if not recovery.is_open:
        cost_s = _s(recovery.cost_ms)
        parts.append(f"{recovery.expected_cost_s:,.1f} task-seconds expected, {cost_s:,.1f} lost")
    return "; ".join(parts) + "."


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def _s(ms: int) -> float:
    return round(ms / 1000, 3)
