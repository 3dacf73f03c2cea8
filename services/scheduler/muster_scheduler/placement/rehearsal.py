"""A plan of next to nothing: what the strategy imports and compiles is there afterwards."""

from __future__ import annotations

import numpy as np

from muster.domain.resources import ResourceVector
from muster_scheduler.placement import fast
from muster_scheduler.placement.classes import ClassTable, TaskBatch, TaskClass
from muster_scheduler.placement.constructive import ConstructiveStrategy
from muster_scheduler.placement.plan import Policy
from muster_scheduler.placement.snapshot import AgentTable
from muster_scheduler.placement.strategy import get

# Enough that an improving strategy does all that it ever does.
_STEPS = 200
_AGENTS = 3
_TASKS = 8
# What one draws from plans by these.
_PARTS = {"auto": ("worst_fit", "fragmentation", "search")}


def rehearse(name: str) -> None:
    """Seconds where nothing is compiled yet, less than one otherwise. Raises InvalidInput."""
    for part in _PARTS.get(name, ()):
        rehearse(part)
    strategy = get(name)
    if isinstance(strategy, ConstructiveStrategy):
        fast.load()
        return
    table, classes = AgentTable(), ClassTable()
    room = ResourceVector.of({"cpu": 8_000, "memory": 2**30, "slots": 8, "gpu": 2_000})
    for index in range(_AGENTS):
        table.upsert(f"agent-{index}", room, frozenset({"work"}), {}, placeable=True)
    demands = ({"cpu": 1_000, "slots": 1}, {"cpu": 500, "slots": 1, "gpu": 500})
    ids = [classes.intern(TaskClass("work", ResourceVector.of(demand))) for demand in demands]
    for objective in ("J", "makespan"):
        batch = TaskBatch.of(classes, [ids[index % len(ids)] for index in range(_TASKS)])
        policy = Policy(strategy=name, objective=objective)
        rng = np.random.default_rng(0)
        strategy.plan(table.view(), batch, policy, 0.0, rng, lambda: False, _STEPS)
