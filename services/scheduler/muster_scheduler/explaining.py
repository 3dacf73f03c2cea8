"""An explanation as the message that it travels in."""

from __future__ import annotations

from muster.api.v1 import scheduler_pb2, task_pb2
from muster.rpc.conversion import TASK_STATE_TO_PROTO
from muster_scheduler.core.explain import Explanation
from muster_scheduler.placement.change import Change, ChangeKind

_KINDS = {kind: scheduler_pb2.ChangeKind.Value(f"CHANGE_KIND_{kind.name}") for kind in ChangeKind}


def explained(found: Explanation, summary: str, strategy: str) -> scheduler_pb2.ExplainResponse:
    """`strategy` is what the candidates were scored by."""
    response = scheduler_pb2.ExplainResponse(
        found=True,
        state=TASK_STATE_TO_PROTO[found.state],
        summary=summary,
        queue_position=found.queue_position,
        queue_length=found.queue_length,
        excluded=dict(found.excluded),
        agents=found.agents,
        smallest_change=found.smallest_change,
        strategy=strategy,
        candidates=[
            scheduler_pb2.CandidateScore(
                agent=agent, rank=one.rank, fits=one.fits, terms=dict(one.terms)
            )
            for agent, one in found.candidates
        ],
    )
    if found.start is not None:
        response.eta_why = found.start.why
        if found.start.in_s is not None:
            response.eta_ms = round(1000 * found.start.in_s)
    if found.change is not None:
        response.change.CopyFrom(_change(found.change))
    return response


def _change(change: Change) -> scheduler_pb2.PlacingChange:
    message = scheduler_pb2.PlacingChange(
        kind=_KINDS[change.kind],
        resource=change.resource,
        from_amount=change.from_amount,
        to_amount=change.to_amount,
        agent=change.agent,
        skill=change.skill,
        labels=dict(change.labels),
        capacity=dict(change.capacity),
    )
    one = change.constraint
    if one is not None:
        message.constraint.CopyFrom(task_pb2.Constraint(key=one.key, op=one.op, values=one.values))
    return message
