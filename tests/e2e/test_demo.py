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


def the_cluster(demo: subprocess.Popen[str]) -> psutil.Process:
    """The demo's `muster up`."""
    (cluster,) = psutil.Process(demo.pid).children()
    return cluster


def find(demo: subprocess.Popen[str], part: str) -> psutil.Process:
    """`up`, or the child of it with `part` in its command line."""
    cluster = the_cluster(demo)
    if part == "up":
        return cluster
    return next(c for c in cluster.children() if part in c.cmdline())


@pytest.mark.timeout(TIMEOUT_S + 30)
@pytest.mark.parametrize("part", ["up", "muster_scheduler", "muster_storage"])
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
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, f"{alive} outlived the demo"
    assert list(tmp_path.iterdir()) == []
