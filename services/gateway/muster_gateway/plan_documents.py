"""The JSON bodies of plans as pydantic models, for the OpenAPI document; see `documents`."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from muster.domain.task import MAX_PLAN_TASKS
from muster_gateway.documents import AGENT, Bounds, Duration, NewTask, Strict, Weights


class NewPlan(Strict):
    """Tasks to be planned; fields of a policy that are left out are as in the policy in force."""

    tasks: list[NewTask] = Field(min_length=1, max_length=MAX_PLAN_TASKS)
    strategy: str | None = Field(None, examples=["search"])
    weights: Weights | None = None
    penalty: float | None = None
    objective: str | None = Field(None, description="J, T or makespan.")
    bounds: Bounds | None = None
    budget: Duration = Field("5s", description="What planning may take, at most 10m.")
    seed: int = Field(0, ge=0)
    max_steps: int = Field(0, ge=0, description="Of improvement; 0 = as the budget lets.")
    front: bool = Field(False, description="The Pareto front of T and B as well.")


class Placement(BaseModel):
    """Where one task would go."""

    agent: str | None = Field(description="null = it has no place.", examples=[AGENT])
    reason: int | None = Field(
        None, description="Without a place: the number in `reasons`, from 0."
    )
    devices: dict[str, list[int]] | None = Field(None, examples=[{"gpu": [0]}])


class PlanReason(BaseModel):
    """Why tasks have no place."""

    text: str
    tasks: int = Field(description="How many.")
    agents: int
    excluded: dict[str, int] = Field(description="Reason → number of agents excluded by it.")


class PlanPoint(BaseModel):
    """A plan that no other found is better than in both T and B."""

    T: float
    U: float
    B: float
    J: float
    unplaced: int
    agents: list[str | None] = Field(description="In the order of the tasks.")


class PlanDocument(BaseModel):
    """Where tasks would go, and what that is worth."""

    strategy: str
    objective: str
    seed: int
    budget: str
    elapsed_s: float
    T: float = Field(description="Sum of the placed tasks' run times, seconds.")
    U: float = Field(description="Mean over resources of used / capacity, with what runs.")
    B: float = Field(description="Standard deviation of the agents' dominant shares.")
    J: float = Field(description="The weighted sum; smaller is better.")
    unplaced: int
    lower_bound: float | None = Field(description="Of the objective, where the strategy has one.")
    run_times: Literal["learned", "declared"] = Field(
        description="By which T and J were worked out."
    )
    queued: int = Field(description="Tasks that wait now; the plan takes no account of them.")
    placements: list[Placement] = Field(description="In the order of the tasks.")
    reasons: list[PlanReason]
    front: list[PlanPoint] | None = Field(description="By growing T; null if not asked for.")


EXAMPLE: Final[dict[str, Any]] = {
    "strategy": "worst_fit",
    "objective": "J",
    "seed": 0,
    "budget": "5s",
    "elapsed_s": 0.0004,
    "T": 2.0,
    "U": 0.25,
    "B": 0.0,
    "J": 0.625,
    "unplaced": 1,
    "lower_bound": None,
    "run_times": "declared",
    "queued": 0,
    "placements": [{"agent": AGENT}, {"agent": None, "reason": 0}],
    "reasons": [
        {
            "text": "0 of 1 agents fit (gpu short by 1 even when empty: 1)",
            "tasks": 1,
            "agents": 1,
            "excluded": {"gpu short by 1 even when empty": 1},
        }
    ],
    "front": None,
}
