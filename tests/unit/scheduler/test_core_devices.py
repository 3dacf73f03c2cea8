"""Devices in the leader's books: each task has its own from its placement to its end."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.scheduler.core_bench import A, Bench, record

from muster.api.v1 import task_pb2
from muster.domain.agent import AgentRecord, AgentSpec
from muster.domain.resources import GivenDevices, ResourceVector
from muster.domain.task import Outcome, OutcomeKind, TaskStatus
from muster.domain.task_lifecycle import TaskState
from muster_scheduler.core import agents
from muster_scheduler.core.commands import Push
from muster_scheduler.core.records import OpenTask
from muster_scheduler.placement import explain
from muster_scheduler.sessions import Session


def register(bench: Bench, amount: int) -> None:
    known = record(A)
    capacity = known.spec.capacity + ResourceVector.of({"gpu": amount})
    spec = AgentSpec(A, capacity, known.spec.skills, known.spec.labels)
    agents.registered(bench.state, AgentRecord(spec, 1), bench.now)


def bench_with_gpus(amount: int) -> Bench:
    bench = Bench()
    agents.registry_snapshot(bench.state, [], bench.now)
    register(bench, amount)
    bench.connect(A)
    return bench


def on(bench: Bench, gpu: int) -> OpenTask:
    return bench.admit(resources=ResourceVector.of({"cpu": 100, "gpu": gpu}))


def free(bench: Bench) -> list[int]:
    view = bench.state.table.view()
    grid = view.device_free[view.columns["gpu"]]
    return [int(left) for left in grid[bench.state.table.row_of(A)]]


def test_tasks_hold_devices_of_their_own_until_they_end() -> None:
    bench = bench_with_gpus(3000)
    shares = [on(bench, 400), on(bench, 500)]
    whole = on(bench, 2000)
    bench.settle()
    assert [task.devices for task in shares] == [{"gpu": (0,)}, {"gpu": (0,)}]
    assert whole.devices == {"gpu": (1, 2)}
    assert free(bench) == [100, 0, 0]
    bench.start(whole)
    bench.end(whole)
    bench.settle()
    assert free(bench) == [100, 1000, 1000]
    assert not whole.devices


def test_what_no_device_has_left_waits_though_the_sum_would_do() -> None:
    bench = bench_with_gpus(2000)
    first = [on(bench, 600), on(bench, 600)]
    late = on(bench, 700)  # 800 are free, 400 on each
    bench.settle()
    assert all(task.status.state is TaskState.ASSIGNED for task in first)
    assert free(bench) == [400, 400]
    assert late.status.state is TaskState.PENDING
    view, classes = bench.state.table.view(), bench.state.classes
    assert explain(view, classes[late.class_id]).reasons == {
        "gpu free but not as a share of one device": 1
    }


def test_the_record_and_the_push_name_the_devices() -> None:
    bench = bench_with_gpus(3000)
    half, pair, plain = on(bench, 500), on(bench, 2000), bench.admit()
    bench.settle()
    assert half.status.devices == (("gpu", (0,)),)
    assert pair.status.devices == (("gpu", (1, 2)),)
    assert plain.status.devices == ()
    for task in (half, pair, plain):
        task.wire = task_pb2.TaskSpec(id=task.id)
    session = Session(A, 1, supervisor=False)
    session.push(Push(assign=[half, pair, plain]), bench.now.clock_ms)
    sent = asyncio.run(session.next(1))
    assert sent is not None
    assert [
        [(d.resource, tuple(d.indices)) for d in assignment.devices] for assignment in sent.assign
    ] == [[("gpu", (0,))], [("gpu", (1, 2))], []]


def test_the_next_attempt_has_devices_of_its_own() -> None:
    bench = bench_with_gpus(1000)
    task = on(bench, 1000)
    bench.settle()
    bench.start(task)
    bench.end(task, Outcome(OutcomeKind.RETURNED))
    assert task.status.state is TaskState.PENDING
    assert task.status.devices == ()
    assert free(bench) == [1000]


def test_a_leader_that_takes_over_charges_the_devices_of_the_records() -> None:
    bench = bench_with_gpus(3000)
    held = TaskStatus(
        state=TaskState.ASSIGNED, agent=A, incarnation=1, attempt=1, devices=(("gpu", (2,)),)
    )
    first = bench.load(held, resources=ResourceVector.of({"gpu": 600}))
    second = bench.load(held, resources=ResourceVector.of({"gpu": 400}))
    assert first.devices == second.devices == {"gpu": (2,)}
    assert free(bench) == [1000, 1000, 0]
    third = on(bench, 300)
    bench.settle()
    assert third.status.devices == (("gpu", (0,)),)


def test_tasks_met_before_their_agent_are_charged_with_their_own_devices() -> None:
    bench = Bench()
    status = TaskStatus(
        state=TaskState.RUNNING, agent=A, incarnation=1, attempt=1, devices=(("gpu", (1,)),)
    )
    task = bench.load(status, resources=ResourceVector.of({"gpu": 1000}))
    register(bench, 2000)
    assert task.devices == {"gpu": (1,)}
    assert free(bench) == [1000, 0]


@pytest.mark.parametrize(
    "devices", [(("gpu", (7,)),), (("gpu", (0, 1)),), (("gpu", ()),), (("gpu.a100", (0,)),)]
)
def test_devices_that_the_agent_has_not_are_not_believed(devices: GivenDevices) -> None:
    bench = bench_with_gpus(2000)
    status = TaskStatus(
        state=TaskState.ASSIGNED, agent=A, incarnation=1, attempt=1, devices=devices
    )
    task = bench.load(status, resources=ResourceVector.of({"gpu": 1000}))
    assert task.devices == {"gpu": (0,)}


def test_a_plan_whose_devices_are_taken_is_not_believed() -> None:
    bench = bench_with_gpus(2000)
    task = on(bench, 600)
    bench.settle()
    other = OpenTask(task.spec, TaskStatus(), None, stored=True)
    bench.state.classify(other)
    given = bench.state.devices_on(other, A, {"gpu": (0,)})
    assert given == {"gpu": (1,)}
    on(bench, 600)
    bench.settle()
    assert bench.state.devices_on(other, A, {"gpu": (0,)}) is None


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from([250, 500, 700, 1000, 2000]), st.booleans()), max_size=40)
)
def test_no_device_ever_holds_more_than_one(steps: list[tuple[int, bool]]) -> None:
    bench = bench_with_gpus(4000)
    tasks: list[tuple[OpenTask, int]] = []
    for amount, end_one in steps:
        held = [t for t, _ in tasks if t.status.state is TaskState.ASSIGNED]
        if end_one and held:
            bench.start(held[0])
            bench.end(held[0])
        tasks.append((on(bench, amount), amount))
        bench.settle()
        load = [0] * 4
        for task, size in tasks:
            if task.status.state is TaskState.ASSIGNED:
                ((_, indices),) = task.status.devices
                assert len(indices) == max(1, size // 1000)
                for index in indices:
                    load[index] += min(size, 1000)
        assert max(load) <= 1000
        assert free(bench) == [1000 - on_it for on_it in load]


def test_a_leader_that_takes_over_gives_running_tasks_devices_again() -> None:
    bench = bench_with_gpus(2000)
    status = TaskStatus(state=TaskState.ASSIGNED, agent=A, incarnation=1, attempt=1)
    task = bench.load(status, resources=ResourceVector.of({"gpu": 1000}))
    assert task.devices == {"gpu": (0,)}
    assert free(bench) == [0, 1000]
