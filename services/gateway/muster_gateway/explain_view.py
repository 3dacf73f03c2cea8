"""An explanation as the JSON that clients see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from muster.api.v1 import scheduler_pb2
from muster_gateway.views import resources_text, rfc3339, state_name

_CHANGES: Final[Mapping[int, str]] = {
    scheduler_pb2.CHANGE_KIND_CUT: "cut",
    scheduler_pb2.CHANGE_KIND_RAISE_MAX: "raise_max",
    scheduler_pb2.CHANGE_KIND_LIFT_CONSTRAINT: "lift_constraint",
    scheduler_pb2.CHANGE_KIND_DROP_AVOID: "drop_avoid",
    scheduler_pb2.CHANGE_KIND_UNCORDON: "uncordon",
    scheduler_pb2.CHANGE_KIND_ADD_AGENT: "add_agent",
}


def explain_out(ident: str, answer: scheduler_pb2.ExplainResponse, now_ms: int) -> dict[str, Any]:
    """Why a task waits, or why it is where it is. `now_ms` is wall time."""
    start = rfc3339(now_ms + answer.eta_ms) if answer.HasField("eta_ms") else None
    return {
        "id": ident,
        "state": state_name(answer.state),
        "summary": answer.summary,
        "queue_position": answer.queue_position or None,
        "queue_length": answer.queue_length,
        "agents": answer.agents,
        "excluded": dict(sorted(answer.excluded.items())),
        "strategy": answer.strategy or None,
        "candidates": [
            {
                "agent": one.agent,
                "rank": one.rank,
                "fits": one.fits,
                "terms": dict(sorted(one.terms.items())),
            }
            for one in answer.candidates
        ],
        "expected_start": start,
        "expected_start_why": answer.eta_why or None,
        "expected_end": rfc3339(answer.expected_end_ms) if answer.expected_end_ms else None,
        "change": _change_out(answer.change) if answer.HasField("change") else None,
        "smallest_change": answer.smallest_change or None,
    }


def _change_out(change: scheduler_pb2.PlacingChange) -> dict[str, Any]:
    """Only what belongs to its kind; amounts as a task's body takes them."""
    kind = _CHANGES.get(change.kind, "unknown")
    out: dict[str, Any] = {"kind": kind}
    if kind == "cut":
        name = change.resource
        out |= {
            "resource": name,
            "from": resources_text({name: change.from_amount})[name],
            "to": resources_text({name: change.to_amount})[name],
        }
    elif kind == "raise_max":
        out |= {"from": change.from_amount, "to": change.to_amount}
    elif kind == "add_agent":
        out |= {
            "skill": change.skill,
            "labels": dict(sorted(change.labels.items())),
            "capacity": resources_text(change.capacity),
        }
    if change.HasField("constraint"):
        one = change.constraint
        out["constraint"] = {"key": one.key, "op": one.op, "values": list(one.values)}
    if change.agent:
        out["agent"] = change.agent
    return out
