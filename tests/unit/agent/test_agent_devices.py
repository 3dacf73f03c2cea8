"""Devices on an agent: their names for programs, and attempts that wait for theirs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.agent import events as ev
from muster.agent.conversion import events_from_proto
from muster.agent.core import AgentCore
from muster.agent.device_books import DeviceBooks
from muster.agent.devices import DeviceNames
from muster.agent.events import AttemptKey, AttemptSpec, DeviceShare
from muster.api.v1 import scheduler_pb2, task_pb2
from muster.domain.errors import ConfigurationError
from muster.domain.ids import DEFAULT_TENANT, TaskId
from muster.domain.resources import ResourceVector
from muster.domain.task import Outcome, OutcomeKind

DONE = Outcome(OutcomeKind.SUCCEEDED, output_json=b"1")


def gpus(**amounts: int) -> ResourceVector:
    return ResourceVector.of({name.replace("_", "."): a for name, a in amounts.items()})


def test_devices_are_called_as_cuda_counts_them() -> None:
    names = DeviceNames(gpus(gpu=4000), {})
    assert names.visible({"gpu": (0, 3)}) == "0,3"
    assert names.hidden() == {"CUDA_VISIBLE_DEVICES": ""}
    assert DeviceNames(gpus(cpu=4000), {}).hidden() == {}


def test_an_agent_that_sees_some_devices_gives_names_from_those() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "4, GPU-8932f937,6"}
    names = DeviceNames(gpus(gpu_a=1000, gpu_b=2000), environ)
    assert names.visible({"gpu.a": (0,), "gpu.b": (1,)}) == "4,6"
    assert names.visible({"gpu.b": (0,)}) == "GPU-8932f937"
    with pytest.raises(ConfigurationError, match="lets this agent see 3 devices only"):
        DeviceNames(gpus(gpu=4000), environ)
    with pytest.raises(ConfigurationError, match="at most 128 devices"):
        DeviceNames(gpus(gpu=129_000), {})


def test_only_devices_of_the_agent_are_its_own() -> None:
    names = DeviceNames(gpus(gpu=2000), {})
    assert names.has_all([DeviceShare("gpu", 500, (1,))])
    assert not names.has_all([DeviceShare("gpu", 1000, (2,))])
    assert not names.has_all([DeviceShare("gpu.a100", 1000, (0,))])


def test_an_assignment_says_how_much_of_which_device() -> None:
    assignment = scheduler_pb2.Assignment(
        spec=task_pb2.TaskSpec(id="t", resources={"gpu": 500, "gpu.a100": 2000}),
        attempt=1,
        devices=[
            task_pb2.GivenDevices(resource="gpu", indices=[3]),
            task_pb2.GivenDevices(resource="gpu.a100", indices=[0, 1]),
        ],
    )
    (event,) = events_from_proto(scheduler_pb2.SessionResponse(assign=[assignment]))
    assert isinstance(event, ev.Assigned)
    assert event.attempts[0].devices == (
        DeviceShare("gpu", 500, (3,)),
        DeviceShare("gpu.a100", 1000, (0, 1)),
    )


def spec(n: int, millis: int, *indices: int, attempt: int = 1) -> AttemptSpec:
    shares = (DeviceShare("gpu", millis, indices),)
    key = AttemptKey(TaskId(f"t{n}"), attempt)
    return AttemptSpec(key, DEFAULT_TENANT, "echo", b"", 1, devices=shares)


class Runtime:
    def __init__(self) -> None:
        self.core = AgentCore(slots=8)
        self.handle(ev.Registered(1), ev.SessionOpened(), ev.Welcomed(1))

    def handle(self, *events: ev.Event) -> list[ev.Command]:
        return self.core.handle(events, 1000)

    def started(self, *events: ev.Event) -> list[str]:
        commands = self.handle(*events)
        return [c.spec.key.task_id for c in commands if isinstance(c, ev.Start)]


def test_an_attempt_waits_for_the_one_that_is_still_ending_on_its_device() -> None:
    runtime = Runtime()
    first, second, third = spec(1, 1000, 0), spec(2, 500, 0), spec(3, 1000, 1)
    assert runtime.started(ev.Assigned(1, (first,))) == ["t1"]
    runtime.handle(ev.Dropped(1, (first.key,)))
    assert runtime.started(ev.Assigned(1, (second, third))) == ["t3"]
    assert runtime.started(ev.AttemptEnded(first.key, DONE)) == ["t2"]


def test_an_attempt_that_waits_for_a_device_ends_at_once() -> None:
    runtime = Runtime()
    first, second = spec(1, 1000, 0), spec(2, 1000, 0)
    runtime.handle(ev.Assigned(1, (first, second)))
    commands = runtime.handle(ev.Dropped(1, (second.key,)))
    assert commands == [ev.Forget(second.key)]
    assert runtime.started(ev.AttemptEnded(first.key, DONE)) == []
    assert runtime.started(ev.Assigned(1, (spec(3, 1000, 0),))) == ["t3"]


def test_the_next_attempt_of_a_task_waits_for_its_task_and_then_for_its_device() -> None:
    runtime = Runtime()
    old, other, new = spec(1, 1000, 0), spec(2, 1000, 1), spec(1, 1000, 1, attempt=2)
    runtime.handle(ev.Assigned(1, (old, other)))
    assert runtime.started(ev.Assigned(1, (new,))) == []
    assert runtime.started(ev.AttemptEnded(old.key, DONE)) == []
    assert runtime.started(ev.AttemptEnded(other.key, DONE)) == ["t1"]


_SHARES = st.tuples(st.sampled_from([250, 500, 1000]), st.sets(st.integers(0, 3), min_size=1))


@given(st.lists(_SHARES | st.none(), max_size=60))
def test_books_never_pass_a_whole_device_and_forget_nobody(
    steps: list[tuple[int, set[int]] | None],
) -> None:
    books = DeviceBooks()
    running: dict[AttemptKey, DeviceShare] = {}
    waiting: dict[AttemptKey, DeviceShare] = {}
    for number, step in enumerate([*steps, *[None] * len(steps)]):
        if step is not None:
            key = AttemptKey(TaskId(f"t{number}"), 1)
            share = DeviceShare("gpu", step[0], tuple(sorted(step[1])))
            (running if books.take(key, (share,)) else waiting)[key] = share
        elif running:
            gone = next(iter(running))
            del running[gone]
            for key in books.leave(gone):
                running[key] = waiting.pop(key)
        for index in range(4):
            assert sum(s.millis for s in running.values() if index in s.indices) <= 1000
    assert not waiting
