"""Fragmentation and quota: FGD's measure, choices against a plain search, nothing foreseen."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from muster.domain.resources import ResourceVector
from muster.domain.task import Constraint
from muster_scheduler.placement import (
    AgentTable,
    ClassTable,
    Plan,
    Policy,
    Snapshot,
    Strategy,
    TaskBatch,
    TaskClass,
    TaskMix,
    get,
)
from muster_scheduler.placement.field import MAX_TYPES, Scene, Taste
from muster_scheduler.placement.fluid import fluid_quotas
from muster_scheduler.placement.fragmentation import FGD, Fragmentation

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SKILLS = frozenset({"echo"})


def plan(
    strategy: Strategy, view: Snapshot, batch: TaskBatch, seed: int = 0, steps: int = 0
) -> Plan:
    rng = np.random.default_rng(seed)
    return strategy.plan(view, batch, Policy(), 0.0, rng, lambda: False, steps)


def gpu_cluster(rng: np.random.Generator, agents: int) -> AgentTable:
    table = AgentTable()
    for index in range(agents):
        amounts = {
            "cpu": int(rng.integers(1, 9)) * 1000,
            "gpu": int(rng.choice([0, 1000, 2000, 4000])),
        }
        labels = {"model": str(rng.choice(["a", "b"]))}
        table.upsert(f"a{index}", ResourceVector.of(amounts), SKILLS, labels, placeable=True)
    return table


def gpu_batch(rng: np.random.Generator, kinds: int, count: int) -> TaskBatch:
    classes = ClassTable()
    ids = []
    for _ in range(kinds):
        amounts = {
            "cpu": int(rng.integers(0, 6)) * 250,
            "gpu": int(rng.choice([0, 200, 460, 810, 1000, 2000])),
        }
        constraints = (Constraint("model", "in", ("a",)),) if rng.random() < 0.3 else ()
        ids.append(classes.intern(TaskClass("echo", ResourceVector.of(amounts), constraints)))
    batch = TaskBatch.of(classes, [ids[k] for k in rng.integers(0, kinds, count).tolist()])
    known = np.unique(np.array(ids, np.int32)).astype(np.int32)
    return replace(batch, mix=TaskMix(known, rng.uniform(0.1, 5.0, len(known))))


class PlainFgd:
    """FGD in plain Python, from the paper: one resource of devices, and cores."""

    def __init__(self, view: Snapshot, batch: TaskBatch) -> None:
        assert batch.mix is not None
        self.view, self.classes = view, batch.classes
        gpu = view.columns["gpu"]
        grid = view.device_free.get(gpu)
        self.cpu = view.free[:, view.columns["cpu"]].tolist()
        self.gpus = [[] for _ in self.cpu] if grid is None else grid.tolist()
        total = float(batch.mix.weight.sum())
        ids = batch.mix.class_id.tolist()
        self.mix = list(zip(ids, (batch.mix.weight / total).tolist(), strict=True))

    def demand(self, class_id: int) -> tuple[int, int]:
        demand = self.classes[class_id].demand
        return demand.get("cpu"), demand.get("gpu")

    def expected(self, row: int, cpu: int, gpus: list[int]) -> float:
        total = 0.0
        for class_id, weight in self.mix:
            need, ask = self.demand(class_id)
            each = min(ask, 1000)
            fits = (
                ask > 0
                and bool(self.classes.eligible(class_id, self.view)[row])
                and need <= cpu
                and sum(left >= each for left in gpus) >= -(-ask // 1000)
            )
            useless = [left for left in gpus if not fits or left < each]
            total += weight * sum(useless)
        return total

    def options(self, gpus: list[int], ask: int) -> list[list[int]]:
        """The devices after each way to place a demand on them."""
        if ask == 0:
            return [gpus]
        if ask < 1000:
            return [
                [left - ask * (index == chosen) for index, left in enumerate(gpus)]
                for chosen, free in enumerate(gpus)
                if free >= ask
            ]
        idle = [index for index, left in enumerate(gpus) if left >= 1000]
        if len(idle) < ask // 1000:
            return []
        taken = idle[: ask // 1000]
        return [[left - 1000 * (index in taken) for index, left in enumerate(gpus)]]

    def place(self, class_id: int) -> int:
        need, ask = self.demand(class_id)
        best: tuple[float, int, list[int]] | None = None
        for row, (cpu, gpus) in enumerate(zip(self.cpu, self.gpus, strict=True)):
            if need > cpu or not self.classes.eligible(class_id, self.view)[row]:
                continue
            before = self.expected(row, cpu, gpus)
            for after in self.options(gpus, ask):
                growth = self.expected(row, cpu - need, after) - before
                growth = math.ceil(growth / 40 - 1e-9) * 40
                if best is None or growth < best[0] - 1e-9:
                    best = growth, row, after
        if best is None:
            return -1
        self.cpu[best[1]] -= need
        self.gpus[best[1]] = best[2]
        return best[1]


@few
@given(seed=st.integers(0, 2**32 - 1), agents=st.integers(1, 8), kinds=st.integers(1, 7))
@example(seed=338, agents=4, kinds=5)
def test_without_the_additions_it_is_fgd(seed: int, agents: int, kinds: int) -> None:
    rng = np.random.default_rng(seed)
    table, batch = gpu_cluster(rng, agents), gpu_batch(rng, kinds, 25)
    if not any(batch.classes[c].demand.get("gpu") for c in range(len(batch.classes))):
        return  # FGD is about devices alone
    view = table.view()
    if "gpu" not in view.columns:
        return
    plain = PlainFgd(view, batch)
    expected = [plain.place(class_id) for class_id in batch.class_id.tolist()]
    assert plan(Fragmentation(FGD), view, batch).assignment.tolist() == expected


@pytest.mark.parametrize("name", ["fragmentation", "quota"])
@few
@given(seed=st.integers(0, 2**32 - 1), agents=st.integers(1, 12), cut=st.integers(0, 40))
def test_a_place_does_not_depend_on_later_tasks(
    name: str, seed: int, agents: int, cut: int
) -> None:
    rng = np.random.default_rng(seed)
    table, batch = gpu_cluster(rng, agents), gpu_batch(rng, 6, 40)
    whole = plan(get(name), table.view(), batch, seed, steps=20)
    start = replace(
        batch,
        class_id=batch.class_id[:cut],
        priority=batch.priority[:cut],
        estimate_s=batch.estimate_s[:cut],
    )
    part = plan(get(name), table.view(), start, seed, steps=20)
    assert part.assignment.tolist() == whole.assignment[:cut].tolist()
    assert dict(part.devices) == {i: d for i, d in whole.devices.items() if i < cut}


@few
@given(seed=st.integers(0, 2**32 - 1), agents=st.integers(1, 12))
def test_a_task_that_fits_somewhere_is_placed(seed: int, agents: int) -> None:
    """Quotas and prices only choose among places; they never refuse one."""
    rng = np.random.default_rng(seed)
    table, batch = gpu_cluster(rng, agents), gpu_batch(rng, 5, 30)
    view = table.view()
    made = plan(get("quota"), view, batch, seed, steps=20)
    free = view.free.copy()
    grids = {k: grid.copy() for k, grid in view.device_free.items()}
    for index, row in enumerate(made.assignment.tolist()):
        class_id = int(batch.class_id[index])
        demand = batch.classes.demand(class_id, view)
        if row < 0:
            for other in np.flatnonzero(batch.classes.eligible(class_id, view)).tolist():
                fits = not demand.missing and all(free[other, k] >= a for k, a in demand.columns)
                for k, amount in demand.columns:
                    if k in grids:
                        enough = (grids[k][other] >= min(amount, 1000)).sum()
                        fits = fits and enough >= -(-amount // 1000)
                assert not fits, f"task {index} would fit on row {other}"
            continue
        for k, amount in demand.columns:
            free[row, k] -= amount
            if k in grids:
                indices = list(made.devices[index][view.names[k]])
                grids[k][row, indices] -= min(amount, 1000)
        assert (free[row] >= 0).all()


def test_a_fraction_is_put_where_it_completes_a_device() -> None:
    table, classes = AgentTable(), ClassTable()
    capacity = ResourceVector.of({"cpu": 8000, "gpu": 2000})
    row = table.upsert("a", capacity, SKILLS, {}, placeable=True)
    held = table.demand_row(ResourceVector.of({"gpu": 600}))
    table.take(row, held, {"gpu": (1,)})
    ids = [
        classes.intern(TaskClass("echo", ResourceVector.of({"cpu": 100, "gpu": amount})))
        for amount in (400, 1000)
    ]
    batch = TaskBatch.of(classes, ids)
    made = plan(get("fragmentation"), table.view(), batch)
    assert made.devices == {0: {"gpu": (1,)}, 1: {"gpu": (0,)}}


def test_without_devices_a_small_task_leaves_the_large_hole_alone() -> None:
    table, classes = AgentTable(), ClassTable()
    for name, cpu in (("large", 8000), ("small", 2000)):
        capacity = ResourceVector.of({"cpu": cpu, "slots": 10})
        table.upsert(name, capacity, SKILLS, {}, placeable=True)
    small, large = (
        classes.intern(TaskClass("echo", ResourceVector.of({"cpu": cpu, "slots": 1})))
        for cpu in (2000, 8000)
    )
    made = plan(get("fragmentation"), table.view(), TaskBatch.of(classes, [small, large]))
    assert made.assignment.tolist() == [1, 0]


def test_quotas_stay_within_what_a_kind_of_agents_has() -> None:
    rng = np.random.default_rng(5)
    table, batch = gpu_cluster(rng, 30), gpu_batch(rng, 8, 10)
    scene = Scene(table.view(), batch)
    quotas = fluid_quotas(scene, 1.3 * scene.free_value())
    assert quotas is not None
    assert (quotas.left >= 0).all()
    kinds = quotas.left.shape[1]
    used = quotas.left.T @ scene.held
    room = np.zeros((kinds, len(scene.columns)))
    np.add.at(room, quotas.kind, scene.snapshot.free[:, scene.columns])
    # Rounded to whole tasks: half a task of each class at most.
    assert (used <= room + 0.5 * scene.held.sum(axis=0) + 1e-6).all()
    assert used.sum() > 0


def test_only_the_most_frequent_types_are_weighed() -> None:
    table, classes = AgentTable(), ClassTable()
    table.upsert("a", ResourceVector.of({"cpu": 10**6}), SKILLS, {}, placeable=True)
    ids = [
        classes.intern(TaskClass("echo", ResourceVector.of({"cpu": 1 + index})))
        for index in range(MAX_TYPES + 40)
    ]
    scene = Scene(table.view(), TaskBatch.of(classes, [*ids, ids[-1]]))
    assert len(scene.types) == MAX_TYPES
    assert scene.class_ids[int(scene.types[0])] == ids[-1]
    assert scene.field(Taste()).weight.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["fragmentation", "quota", "dot_product"])
def test_nothing_to_do_is_done(name: str) -> None:
    table, classes = AgentTable(), ClassTable()
    empty = TaskBatch.of(classes, [])
    assert plan(get(name), table.view(), empty, steps=5).assignment.tolist() == []
    task = classes.intern(TaskClass("echo", ResourceVector.of({"gpu": 1000})))
    made = plan(get(name), table.view(), TaskBatch.of(classes, [task]), steps=5)
    assert made.assignment.tolist() == [-1]
    assert str(made.reasons[0]) == "there is no agent"
