"""Devices in the leader's books: each task has its own from its placement to its end."""

from __future__ import annotations

from tests.unit.scheduler.core_bench import A, Bench, record

from muster.domain.agent import AgentRecord, AgentSpec
from muster.domain.resources import ResourceVector
from muster.domain.task import TaskStatus
from muster.domain.task_lifecycle import TaskState
from muster_scheduler.core import agents
from muster_scheduler.core.records import OpenTask
from muster_scheduler.placement import explain


def bench_with_gpus(amount: int) -> Bench:
    bench = Bench()
    known = record(A)
    capacity = known.spec.capacity + ResourceVector.of({"gpu": amount})
    agents.registry_snapshot(bench.state, [], bench.now)
    spec = AgentSpec(A, capacity, known.spec.skills, known.spec.labels)
    agents.registered(bench.state, AgentRecord(spec, 1), bench.now)
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


def test_a_leader_that_takes_over_gives_running_tasks_devices_again() -> None:
    bench = bench_with_gpus(2000)
    status = TaskStatus(state=TaskState.ASSIGNED, agent=A, incarnation=1, attempt=1)
    task = bench.load(status, resources=ResourceVector.of({"gpu": 1000}))
    assert task.devices == {"gpu": (0,)}
    assert free(bench) == [0, 1000]
