"""Each task to the agent whose free devices stay most useful to the tasks that are expected.

FGD (Weng et al., "Beware of Fragmentation", USENIX ATC'23) counts as fragments what is free on an
agent and of no use to a type of tasks, in expectation over the types, and places each task where
that grows least. It looks at devices alone: an agent whose cores run out strands its devices, and
an agent whose devices run out strands its cores, long before FGD can see it. So the cores (or what
else is scarcest) that are free beyond what the expected tasks use with the devices that are free
count too. On clusters without devices the scarcest resource takes their part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from muster_scheduler.placement.by_agent import place_by_agent
from muster_scheduler.placement.classes import TaskBatch
from muster_scheduler.placement.devices import Devices
from muster_scheduler.placement.explain import LazyReasons
from muster_scheduler.placement.field import Scene, Taste, sequence_parts
from muster_scheduler.placement.objective import evaluate
from muster_scheduler.placement.plan import Plan, Policy
from muster_scheduler.placement.shares import free_shares_after
from muster_scheduler.placement.snapshot import IntArray, Snapshot
from muster_scheduler.placement.strategy import register

if TYPE_CHECKING:
    from muster_scheduler.placement.compiled.fragments import Field, Rows

# Tasks between two questions to `stop`: tens of milliseconds on the largest clusters.
_TASKS_PER_STOP = 32

# As published: scores are whole hundredths of a sigmoid, which is 40 wide at its middle.
FGD = Taste(step=40.0)
# Found by random search on lists that were made from the public one with other shares of tasks.
BALANCED = Taste(
    size_power=-1.33,
    plain_weight=3.0,
    strand=0.34,
    strand_other=0.04,
    lack=0.03,
    yield_=0.94,
    open_row=6.0,
    open_device=10.0,
    leftover=15.0,
    idle_device=-1.7,
    order=5.0,
)


@register("fragmentation")
class Fragmentation:
    """Tasks in order; told of the future only the batch's `mix`, and without it the batch.

    Given a mix, a task's place does not depend on the tasks after it. Ties go to the lower row.
    Health does not count.
    """

    name: ClassVar[str] = "fragmentation"

    def __init__(self, taste: Taste = BALANCED) -> None:
        self._taste = taste

    def plan(
        self,
        snapshot: Snapshot,
        tasks: TaskBatch,
        policy: Policy,
        now_s: float,  # noqa: ARG002
        rng: Generator,  # noqa: ARG002
        stop: Callable[[], bool],
        max_steps: int,  # noqa: ARG002
    ) -> Plan:
        """See Strategy; draws nothing from `rng`."""
        assert snapshot.is_current(), "the agent table changed after this view was taken"
        if tasks.demand_by_agent is not None:
            return place_by_row(self.name, snapshot, tasks, policy, stop)
        scene = Scene(snapshot, tasks)
        return plan_in_order(self.name, scene, scene.field(self._taste), scene.rows(), policy, stop)


def plan_in_order(
    name: str,
    scene: Scene,
    field: Field,
    rows: Rows,
    policy: Policy,
    stop: Callable[[], bool],
) -> Plan:
    """The batch's tasks in their order over `rows`, which are changed in place."""
    from muster_scheduler.placement.compiled.fragments import place_all  # noqa: PLC0415 - heavy

    tasks, memo = scene.tasks, scene.memo()
    assignment = np.full(len(tasks), -1, np.int32)
    devices: dict[int, Devices] = {}
    considered = 0
    for part in sequence_parts(len(tasks), _TASKS_PER_STOP):
        if part.start and stop():
            break
        given = np.zeros((part.stop - part.start, rows.devices.shape[1]), np.bool_)
        place_all(field, rows, memo, scene.sequence[part], assignment[part], given)
        devices.update(scene.devices_of(given, part.start))
        considered = part.stop
    free = partial(scene.free_after, rows)
    return _finish(name, scene.snapshot, tasks, assignment, considered, free, devices, policy)


def place_by_row(
    name: str, snapshot: Snapshot, tasks: TaskBatch, policy: Policy, stop: Callable[[], bool]
) -> Plan:
    """Where demands differ by agent no type has fragments; tasks go as `best_fit` has them."""
    placed, left = place_by_agent(snapshot, tasks, free_shares_after, stop)
    assignment = np.full(len(tasks), -1, np.int32)
    assignment[: len(placed)] = placed
    free = partial(np.asarray, left)
    return _finish(name, snapshot, tasks, assignment, len(placed), free, {}, policy)


def _finish(
    name: str,
    snapshot: Snapshot,
    tasks: TaskBatch,
    assignment: NDArray[np.int32],
    considered: int,
    free: Callable[[], IntArray],
    devices: Mapping[int, Devices],
    policy: Policy,
) -> Plan:
    unplaced = np.flatnonzero(assignment[:considered] < 0).tolist()
    class_of = {index: int(tasks.class_id[index]) for index in unplaced}
    reasons = LazyReasons(snapshot, tasks.classes, class_of, free)
    score = evaluate(snapshot, tasks, assignment, policy) if policy.measured else None
    if score is None:
        return Plan(assignment, reasons, name, considered, devices=devices)
    return Plan(
        assignment,
        reasons,
        name,
        considered,
        T=score.T,
        U=score.U,
        B=score.B,
        J=score.J,
        devices=devices,
    )
