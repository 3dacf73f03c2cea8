"""Children: started, restarted, ended, none left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from tests.polling import HANG_S, eventually

from muster.local.nursery import Nursery, StartFailed, describe_exit
from muster.local.parts import Part, Stage

SLEEP = "import time; time.sleep(600)"
# Appends its pid and ends with the code in its second argument, or sleeps.
COUNT = """
import os, sys, time
with open(sys.argv[1], "a") as out:
    print(os.getpid(), file=out)
if len(sys.argv) > 2:
    print("my last words", file=sys.stderr)
    sys.exit(int(sys.argv[2]))
time.sleep(600)
"""
STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""
# A parent with one child that has a child in a session of its own.
FAMILY = """
import asyncio, os, pathlib, sys
from muster.local.nursery import Nursery
from muster.local.parts import Part, Stage
GRANDPARENT = '''
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(90)"],
                         start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
'''
folder = pathlib.Path(sys.argv[1])
async def main():
    nursery = Nursery(folder, lambda sentence: print(sentence, flush=True), adopt=True)
    nursery.started = True
    part = Part("family", (sys.executable, "-c", GRANDPARENT), os.environ, folder, Stage.AGENT)
    nursery.start([part])
    print(nursery.children["family"].pid, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await nursery.close()
    print("closed", flush=True)
asyncio.run(main())
"""


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
async def nursery(tmp_path: Path, said: list[str]) -> AsyncIterator[Nursery]:
    nursery = Nursery(tmp_path, said.append, adopt=False)
    try:
        yield nursery
    finally:
        await nursery.close()


def part(folder: Path, code: str, *args: str, may_leave: bool = False) -> Part:
    argv = (sys.executable, "-S", "-c", code, *args)
    return Part("child", argv, os.environ, folder, Stage.SERVICE, may_leave=may_leave)


def pids_in(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


async def test_a_killed_child_is_started_again_at_once(
    nursery: Nursery, tmp_path: Path, said: list[str]
) -> None:
    nursery.started = True
    nursery.start([part(tmp_path, COUNT, str(tmp_path / "pids"))])
    child = nursery.children["child"]
    await eventually(lambda: len(pids_in(tmp_path / "pids")) == 1)
    os.kill(child.pid, signal.SIGKILL)
    await eventually(lambda: len(pids_in(tmp_path / "pids")) == 2)
    assert said == ["child was killed by SIGKILL; it is started again now"]
    assert pids_in(tmp_path / "pids")[1] == child.pid


async def test_one_that_dies_at_start_again_and_again_fails_with_its_last_words(
    nursery: Nursery, tmp_path: Path
) -> None:
    nursery.start([part(tmp_path, COUNT, str(tmp_path / "pids"), "3")])
    with pytest.raises(StartFailed, match="child cannot start: my last words"):
        async with asyncio.timeout(HANG_S):
            await nursery.failed
    assert len(pids_in(tmp_path / "pids")) == 4


async def test_what_can_be_put_right_is_before_the_next_start(
    nursery: Nursery, tmp_path: Path, said: list[str]
) -> None:
    pids = tmp_path / "pids"

    def put_right(last_words: str, stamp: str) -> str:
        assert stamp.startswith("before-")
        return f"mended: {last_words} after {len(pids_in(pids))}"

    nursery.started = True
    nursery.start([replace(part(tmp_path, COUNT, str(pids), "3"), mend=put_right)])
    await eventually(lambda: len(pids_in(pids)) == 2)
    assert said[:2] == [
        "child: mended: my last words after 1",
        "child ended with exit code 3; it is started again now",
    ]


async def test_exit_78_at_start_fails_at_once(nursery: Nursery, tmp_path: Path) -> None:
    nursery.start([part(tmp_path, COUNT, str(tmp_path / "pids"), "78")])
    with pytest.raises(StartFailed, match="my last words"):
        async with asyncio.timeout(HANG_S):
            await nursery.failed
    assert len(pids_in(tmp_path / "pids")) == 1


async def test_exit_78_later_keeps_it_away(
    nursery: Nursery, tmp_path: Path, said: list[str]
) -> None:
    nursery.started = True
    nursery.start([part(tmp_path, COUNT, str(tmp_path / "pids"), "78")])
    await eventually(lambda: bool(said))
    assert said == ["child ended with exit code 78 and stays away: my last words"]
    assert nursery.children["child"].ended.is_set()


async def test_an_agent_that_leaves_stays_away(
    nursery: Nursery, tmp_path: Path, said: list[str]
) -> None:
    nursery.started = True
    nursery.start([part(tmp_path, COUNT, str(tmp_path / "pids"), "0", may_leave=True)])
    await eventually(lambda: bool(said))
    assert said == ["child ended with exit code 0 and stays away"]


async def test_a_program_that_is_missing_fails_the_start(nursery: Nursery, tmp_path: Path) -> None:
    missing = Part("child", ("/no/such/program",), {}, tmp_path, Stage.REDIS)
    nursery.start([missing])
    with pytest.raises(StartFailed, match="/no/such/program"):
        await nursery.failed


async def test_end_is_obeyed_by_sigterm(nursery: Nursery, tmp_path: Path, said: list[str]) -> None:
    nursery.start([part(tmp_path, SLEEP)])
    child = nursery.children["child"]
    assert await nursery.end([child], HANG_S) == []
    assert child.ended.is_set()
    assert not psutil.pid_exists(child.pid)
    assert said == []


async def test_end_reaches_a_child_that_is_stopped(nursery: Nursery, tmp_path: Path) -> None:
    nursery.start([part(tmp_path, SLEEP)])
    child = nursery.children["child"]
    os.kill(child.pid, signal.SIGSTOP)
    assert await nursery.end([child], HANG_S) == []


async def test_a_stubborn_child_is_killed(nursery: Nursery, tmp_path: Path) -> None:
    nursery.start([part(tmp_path, STUBBORN)])
    child = nursery.children["child"]
    await eventually(lambda: "deaf" in child.log.read_text())
    assert await nursery.end([child], 0.1) == ["child"]
    assert not psutil.pid_exists(child.pid)


async def test_hurry_cuts_the_grace_short(nursery: Nursery, tmp_path: Path) -> None:
    nursery.start([part(tmp_path, STUBBORN)])
    child = nursery.children["child"]
    await eventually(lambda: "deaf" in child.log.read_text())
    hurry = asyncio.Event()
    hurry.set()
    async with asyncio.timeout(HANG_S):
        assert await nursery.end([child], 600.0, hurry) == ["child"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_die_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    with family(tmp_path) as parent:
        child = psutil.Process(int(readline(parent)))
        parent.send_signal(number)
        parent.wait()
        asyncio.run(eventually(lambda: is_dead(child)))


def test_what_a_dead_child_leaves_behind_is_killed(tmp_path: Path) -> None:
    with family(tmp_path) as parent:
        child = int(readline(parent))
        log = tmp_path / "family.log"
        asyncio.run(eventually(lambda: log.exists() and bool(log.read_text())))
        grandchild = psutil.Process(int(log.read_text()))
        assert grandchild.ppid() == child
        os.kill(child, signal.SIGKILL)
        assert "family was killed by SIGKILL" in readline(parent)
        # Killed and asked for: even the zombie is gone.
        _, left = psutil.wait_procs([grandchild], timeout=HANG_S)
        assert left == []
        assert parent.stdin is not None
        second = [p.pid for p in psutil.Process(parent.pid).children()]
        parent.stdin.close()
        assert readline(parent) == "closed"
        assert not any(psutil.pid_exists(pid) for pid in second)


def family(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FAMILY, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def is_dead(process: psutil.Process) -> bool:
    """A zombie whom nobody asks for is dead all the same."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def readline(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_exits_are_told_in_words() -> None:
    assert describe_exit(0) == "ended with exit code 0"
    assert describe_exit(-9) == "was killed by SIGKILL"
    assert describe_exit(-63) == "was killed by signal 63"
