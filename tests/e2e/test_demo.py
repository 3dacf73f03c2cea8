"""The demo ends with every image read exactly once, also when one of its processes is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# A loaded machine with two cores needs a minute; the demo gives up by itself after that.
TIMEOUT_S = 240
# Each process of the cluster, by what is in its command line on the way down from `muster up`.
PROCESSES = {
    "up": (),
    "etcd": ("etcd",),
    "redis": ("redis",),
    "gateway": ("muster_gateway",),
    "scheduler": ("muster_scheduler",),
    "monitor": ("muster_monitor",),
    "registry": ("muster_registry",),
    "storage": ("muster_storage",),
    "supervisor": ("muster.agent",),
    "runtime": ("muster.agent", "muster.agent.runtime_process"),
    "zygote": ("muster.agent", "muster.agent.runtime_process", "muster.agent.zygote"),
    "runner": ("muster.agent", "muster.agent.runtime_process", "muster.agent.zygote", ""),
}
# These in every run of the tests, the others where time does not matter.
ALWAYS = ("up", "scheduler", "storage")


def the_cluster(demo: subprocess.Popen[str]) -> psutil.Process:
    """The demo's `muster up`."""
    (cluster,) = psutil.Process(demo.pid).children()
    return cluster


def find(demo: subprocess.Popen[str], part: str) -> psutil.Process:
    """The first process of that kind."""
    process = the_cluster(demo)
    for word in PROCESSES[part]:
        process = next(c for c in process.children() if is_named(c, word))
    return process


def is_named(process: psutil.Process, word: str) -> bool:
    """Whether a word of the command line, or its program's name, begins with `word`."""
    try:
        words = process.cmdline()
    except psutil.Error:
        # An orphan that `muster up` has taken in may end while it is looked at.
        return False
    return any(text.rpartition("/")[2].startswith(word) for text in words)


@pytest.mark.timeout(TIMEOUT_S + 30)
@pytest.mark.parametrize(
    "part",
    [pytest.param(part, marks=() if part in ALWAYS else (pytest.mark.slow,)) for part in PROCESSES],
)
def test_no_image_is_lost_when_a_process_is_killed(part: str, tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "examples.smart_manufacturing.demo"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert demo.stdout is not None
    watchdog = threading.Timer(TIMEOUT_S, demo.kill)
    watchdog.start()
    children: list[psutil.Process] = []
    said: list[str] = []
    try:
        for line in demo.stdout:
            said.append(line)
            if line.startswith("Submitted"):
                children = the_cluster(demo).children(recursive=True)
                find(demo, part).kill()
        code = demo.wait()
    finally:
        watchdog.cancel()
        demo.kill()
        demo.wait()
    text = "".join(said)
    assert code == 0, text
    assert children, text
    assert "1,797 of 1,797 images have exactly one result." in text
    # All that was begun has ended, and nothing lies about.
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive, f"{alive} outlived the demo"
    assert list(tmp_path.iterdir()) == []
