"""A plan as the JSON that clients see."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from muster.api.v1 import scheduler_pb2
from muster.domain.durations import format_duration


def plan_out(answer: scheduler_pb2.PlanResponse, *, with_front: bool) -> dict[str, Any]:
    """Placements in the order of the tasks; a task without a place names its reason's number."""
    agents: list[str | None] = [None, *answer.agents]
    devices: dict[int, dict[str, list[int]]] = defaultdict(dict)
    for given in answer.devices:
        devices[given.task][given.resource] = list(given.indices)
    placements: list[dict[str, Any]] = []
    for index, (place, reason) in enumerate(zip(answer.places, answer.reason_of, strict=True)):
        placement: dict[str, Any] = {"agent": agents[place]}
        if not place:
            placement["reason"] = reason - 1
        elif index in devices:
            placement["devices"] = devices[index]
        placements.append(placement)
    counts = Counter(answer.reason_of)
    return {
        "strategy": answer.strategy,
        "objective": answer.objective,
        "seed": answer.seed,
        "budget": format_duration(max(1, round(answer.budget_s * 1000))),
        "elapsed_s": answer.elapsed_s,
        **_score_out(answer.score),
        "lower_bound": answer.lower_bound if answer.HasField("lower_bound") else None,
        "run_times": "learned" if answer.learned else "declared",
        "queued": answer.queued,
        "placements": placements,
        "reasons": [
            {
                "text": reason.text,
                "tasks": counts[number],
                "agents": reason.agents,
                "excluded": dict(sorted(reason.excluded.items())),
            }
            for number, reason in enumerate(answer.reasons, 1)
        ],
        "front": [_point_out(point, agents) for point in answer.front] if with_front else None,
    }


def _score_out(score: scheduler_pb2.PlanScore) -> dict[str, Any]:
    return {"T": score.t, "U": score.u, "B": score.b, "J": score.j, "unplaced": score.unplaced}


def _point_out(point: scheduler_pb2.PlanPoint, agents: Sequence[str | None]) -> dict[str, Any]:
    return {**_score_out(point.score), "agents": _named(point.places, agents)}


def _named(places: Iterable[int], agents: Sequence[str | None]) -> list[str | None]:
    return [agents[place] for place in places]
