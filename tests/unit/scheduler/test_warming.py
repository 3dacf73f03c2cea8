"""The compiled loops become ready beside a working loop when they are worth it, and not before."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs
from tests.polling import eventually

from muster.domain.resources import ResourceVector
from muster_scheduler import warming
from muster_scheduler.placement import (
    AgentTable,
    ClassTable,
    Policy,
    TaskBatch,
    TaskClass,
    fast,
    readiness,
)
from muster_scheduler.placement.strategy import get

CAPACITY = ResourceVector.of({"cpu": 10**9, "slots": 10**6})


@pytest.fixture(autouse=True)
def _cold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_kernels", None)
    monkeypatch.setattr(fast, "_is_left_to_shell", False)
    monkeypatch.setattr(fast, "_missed_tasks", 0)
    readiness.forget()


def place(tasks: int, agents: int) -> list[int]:
    table, classes = AgentTable(), ClassTable()
    for index in range(agents):
        table.upsert(f"agent-{index}", CAPACITY, frozenset({"work"}), {}, placeable=True)
    kinds = [TaskClass("work", ResourceVector.of({"cpu": 1 + k, "slots": 1})) for k in range(3)]
    ids = [classes.intern(kind) for kind in kinds]
    batch = TaskBatch.of(classes, [ids[index % 3] for index in range(tasks)])
    rng = np.random.default_rng(0)
    plan = get("worst_fit").plan(table.view(), batch, Policy(), 0.0, rng, lambda: False, 0)
    rows: list[int] = plan.assignment.tolist()
    return rows


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Strategies that were made ready, none of them in fact."""
    calls: list[str] = []

    async def make_ready(strategy: str) -> bool:
        calls.append(strategy)
        return False

    monkeypatch.setattr(warming, "_LOOK_S", 0.001)
    monkeypatch.setattr(warming, "_make_ready", make_ready)
    return calls


async def test_large_batches_on_many_agents_are_worth_loading_once(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def missed_tasks() -> int:
        nonlocal looks
        looks += 1
        return fast._missed_tasks

    monkeypatch.setattr(fast, "missed_tasks", missed_tasks)
    watch = asyncio.create_task(warming.Warming().watch())
    await eventually(lambda: looks >= 2)
    assert not calls
    for _ in range(2):
        place(warming._WORTH_TASKS, agents=100)
        seen = looks
        await eventually(lambda seen=seen: looks >= seen + 3)  # type: ignore[misc]
        assert calls == ["worst_fit"]
    watch.cancel()


async def test_the_default_stands_in_until_a_strategy_is_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_end = asyncio.Event()

    async def make_ready(strategy: str) -> bool:
        await may_end.wait()
        return strategy == "fragmentation"

    def rehearse(strategy: str) -> None:
        raise ImportError(f"{strategy} needs what is not installed")

    monkeypatch.setattr(warming, "_LOOK_S", 0.001)
    monkeypatch.setattr(warming, "_make_ready", make_ready)
    monkeypatch.setattr(warming, "rehearse", rehearse)
    assert readiness.live("fragmentation") == "fragmentation", "no scheduler runs here yet"
    watch = asyncio.create_task(warming.Warming().watch())
    await asyncio.sleep(0)
    with capture_logs() as logs:
        for name in ("greedy", "learned"):
            assert readiness.live(name) == name
        for name in ("fragmentation", "exact"):
            assert readiness.live(name) == "worst_fit"
        may_end.set()
        await eventually(lambda: readiness.live("fragmentation") == "fragmentation")
        await eventually(lambda: bool(logs))
        assert readiness.live("exact") == "worst_fit"
        await eventually(lambda: not readiness.wanted())
    watch.cancel()
    assert [entry["strategy"] for entry in logs] == ["exact"]


@pytest.mark.parametrize(("tasks", "agents"), [(6_000, 99), (63, 100)])
def test_what_is_quick_by_the_plain_pass_is_not_worth_it(tasks: int, agents: int) -> None:
    fast.leave_loading_to_shell()
    place(tasks, agents)
    assert fast.missed_tasks() == 0


def test_no_plan_of_a_scheduler_loads_by_itself() -> None:
    fast.leave_loading_to_shell()
    by_plain_pass = place(5_000, agents=120)
    assert not fast.is_loaded()
    fast.load()
    assert place(5_000, agents=120) == by_plain_pass


async def test_kernels_are_loaded_once_their_code_is_on_disk() -> None:
    with capture_logs() as logs:
        assert await warming.Warming().make_ready("worst_fit")
    assert fast.is_loaded()
    assert [entry["log_level"] for entry in logs] == ["info"]


async def test_code_that_cannot_be_kept_is_not_loaded_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MUSTER_KERNEL_CACHE", str(tmp_path / "file"))
    with capture_logs() as logs:
        shell = warming.Warming()
        assert not await shell.make_ready("worst_fit")
        assert not await shell.make_ready("worst_fit")
    assert not fast.is_loaded()
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert "compiled code cannot be kept" in logs[0]["reason"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('no numba here')", "ImportError: no numba here"),
        ("import os; os.kill(os.getpid(), 9)", "exit code -9"),
        ("import time; time.sleep(60)", "TimeoutError: "),
    ],
)
async def test_a_compilation_that_fails_leaves_the_plain_pass(
    code: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warming, "_COMPILE", code)
    monkeypatch.setattr(warming, "_COMPILE_TIMEOUT_S", 1.0)
    with capture_logs() as logs:
        await warming.Warming().make_ready("worst_fit")
    assert not fast.is_loaded()
    assert logs[0]["reason"] == reason
