"""The demo's own cluster: `muster up` as a child process, started again if it dies."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO

import psutil

# A first start makes the etcd and Redis folders; on a loaded laptop that takes a while.
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
_PR_SET_PDEATHSIG = 1


class ClusterFailed(Exception):
    """`muster up` did not come up; the text says why and where its logs are."""


class DemoCluster:
    """One `muster up` on a fresh state directory. `restarts` counts how often it was revived."""

    def __init__(self, *, agents: int, skills: str, work_dir: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="muster-demo-"))
        self.url = ""
        self.api_key = ""
        self.restarts = 0
        self._command = [
            str(Path(sys.executable).with_name("muster")),
            *("up", "--json"),
            *("--agents", str(agents)),
            *("--skills", skills),
            *("--state-dir", str(self.state_dir)),
        ]
        self._work_dir = work_dir
        self._process: subprocess.Popen[str] | None = None

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    @property
    def log_dir(self) -> Path:
        return self.state_dir / "logs"

    def start(self) -> None:
        """Returns once the cluster is ready; raises ClusterFailed."""
        errors = self.folder / "up.stderr"
        with errors.open("a") as stderr:
            process = subprocess.Popen(
                self._command,
                cwd=self._work_dir,
                # The operator's own profile keeps naming the operator's own cluster.
                env=os.environ | {"MUSTER_PROFILE": str(self.folder / "profile.json")},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - no thread runs yet that holds a lock
            )
        self._process = process
        assert process.stdout is not None
        line = _first_line(process.stdout, START_TIMEOUT_S)
        try:
            answer = json.loads(line)
            self.url, self.api_key = answer["url"], answer["api_key"]
        except (ValueError, KeyError, TypeError):
            self.stop()
            said = errors.read_text().strip() or "it said nothing"
            raise ClusterFailed(f"muster up did not start: {said[-2000:]}") from None

    def revive(self) -> bool:
        """Starts `muster up` again on the same state directory if it has died."""
        if self._process is None or self._process.poll() is None:
            return False
        self.restarts += 1
        self.start()
        return True

    def kill_agent(self, agent: str) -> list[int]:
        """SIGKILL for the agent's supervisor, its runtime and runners; their pids."""
        killed: list[int] = []
        for child in self._children():
            if _agent_of(child) != agent:
                continue
            # The supervisor first, or it would report the death of its runtime.
            for victim in (child, *child.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
                    killed.append(victim.pid)
        return killed

    def _children(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        try:
            return psutil.Process(self._process.pid).children()
        except psutil.NoSuchProcess:
            return []

    def stop(self) -> None:
        """Ends the cluster in order; harmless when it does not run."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def remove(self) -> None:
        """Deletes the state directory."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _end_with_parent() -> None:
    """Ends the cluster, in order, when the demo itself is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _first_line(stream: IO[str], timeout_s: float) -> str:
    """The first line that comes; empty when the stream ends or stays silent."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def drain() -> None:
        for line in stream:
            lines.put(line)
        lines.put("")

    threading.Thread(target=drain, daemon=True).start()
    try:
        return lines.get(timeout=timeout_s)
    except queue.Empty:
        return ""


def _agent_of(process: psutil.Process) -> str:
    try:
        return process.environ().get("MUSTER_AGENT_ID", "")
    except psutil.Error:
        return ""
