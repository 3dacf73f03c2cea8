"""Runs of the oracle tidy up when they are told to end, and after those that could not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.polling import HANG_S

from benchmarks.oracle.leftovers import clear, own_folder, sweep

_ROOT = Path(__file__).resolve().parents[3]
_RUN = """
import subprocess, sys, time
from pathlib import Path
from benchmarks.oracle.leftovers import end_in_order, leave_if_told, own_folder
end_in_order()
with own_folder("chaos", Path(sys.argv[1])) as folder:
    child = subprocess.Popen(["sleep", "600"], cwd=folder)
    try:
        # From here on the test may send its signal.
        print(child.pid, flush=True)
        time.sleep(600)
    except BaseException:
        print("told", flush=True)
        # A second signal comes while this is tidied up.
        time.sleep(0.5)
        try:
            raise OSError("in the place of SystemExit")
        except OSError:
            leave_if_told()
print("went on")
"""


def _sleeper(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"], cwd=folder)


@pytest.fixture
def dead_pid() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_leaves_nothing(tmp_path: Path, number: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _RUN, str(tmp_path)], stdout=subprocess.PIPE, cwd=_ROOT
    ) as run:
        assert run.stdout is not None
        child = psutil.Process(int(run.stdout.readline()))
        run.send_signal(number)
        assert run.stdout.readline() == b"told\n"
        run.send_signal(signal.SIGTERM)
        run.send_signal(signal.SIGINT)
        assert run.wait(HANG_S) == 128 + number
        assert run.stdout.read() == b""
    psutil.wait_procs([child], timeout=HANG_S)
    assert not child.is_running()
    assert not list(tmp_path.iterdir())


def test_only_what_the_dead_have_left_is_removed(
    tmp_path: Path, dead_pid: int, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    dead = tmp_path / f"muster-chaos-{dead_pid}-abc_1234"
    others = [tmp_path / "muster-chaos-abcd1234", tmp_path / f"muster-up-{dead_pid}-x"]
    for folder in (dead, *others):
        (folder / "state").mkdir(parents=True)
        sleepers.append(_sleeper(folder / "state"))
    with own_folder("disk", tmp_path) as own:
        sleepers.append(_sleeper(own))
        assert sweep(tmp_path) == [dead]
        assert sleepers[0].wait(HANG_S) == -signal.SIGKILL
        assert [process.poll() for process in sleepers[1:]] == [None] * 3
        assert own.is_dir()
    assert sleepers[3].wait(HANG_S) == -signal.SIGKILL
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_a_process_that_got_the_number_later_owns_nothing(tmp_path: Path) -> None:
    folder = tmp_path / f"muster-disk-{os.getpid()}-abcd"
    folder.mkdir()
    assert sweep(tmp_path) == []
    os.utime(folder, (0, 0))
    assert sweep(tmp_path) == [folder]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_what_is_mounted_goes_with_its_folder(tmp_path: Path) -> None:
    inside = tmp_path / "run" / "a b"
    inside.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "none", str(inside)], check=False)
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount")
    (inside / "file").touch()
    clear(tmp_path / "run")
    assert str(inside).replace(" ", "\\040") not in Path("/proc/self/mountinfo").read_text()
    assert not (tmp_path / "run").exists()
