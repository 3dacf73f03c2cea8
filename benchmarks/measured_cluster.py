"""A real `muster up` for measurements: starts, stops, says what it runs on and what it costs."""

from __future__ import annotations

import http.client
import json
import os
import platform
import select
import signal
import subprocess
import sys
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import redis

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
MIB = 2**20
# What tells a part by its command line; the first that is found counts.
_MARKS = {
    "agents: zygote and runners": "muster.agent.zygote",
    "agents: runtime": "muster.agent.runtime_process",
    "agents: supervisor": "muster.agent",
    "gateway": "muster_gateway",
    "scheduler": "muster_scheduler",
    "storage": "muster_storage",
    "registry": "muster_registry",
    "monitor": "muster_monitor",
    "redis": "redis-server",
    "etcd": "/etcd ",
}


class MeasuredCluster:
    """An embedded cluster on `state_dir`; `ready_s` is of the last start.

    `up_args` are further words of the `muster up` command line.
    """

    def __init__(self, state_dir: Path, *, agents: int, up_args: tuple[str, ...] = ()) -> None:
        self.state_dir = state_dir
        self.agents = agents
        self.up_args = up_args
        self.ready_s = 0.0
        self.url = ""
        self.api_key = ""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when `muster up` says that it is ready."""
        began = time.perf_counter()
        with (self.state_dir.parent / "up.stderr").open("ab") as stderr:
            self._process = subprocess.Popen(
                [
                    str(Path(sys.executable).with_name("muster")),
                    *("up", "--json", "--agents", str(self.agents)),
                    *("--state-dir", str(self.state_dir)),
                    *self.up_args,
                ],
                env=os.environ | {"MUSTER_PROFILE": str(self.state_dir.parent / "profile.json")},
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], START_TIMEOUT_S)[0]:
            self.stop()
            raise SystemExit(f"muster up was not ready after {START_TIMEOUT_S:g} s")
        line = self._process.stdout.readline()
        self.ready_s = time.perf_counter() - began
        if not line:
            raise SystemExit(
                "muster up ended: " + (self.state_dir.parent / "up.stderr").read_text()[-2000:]
            )
        answer = json.loads(line)
        self.url, self.api_key = answer["url"], answer["api_key"]

    def stop(self) -> None:
        """Ends all of its processes."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def processes(self) -> list[psutil.Process]:
        """`muster up` and everything below it."""
        assert self._process is not None
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]

    def supervisors(self) -> list[psutil.Process]:
        """Of the agents, one each; an agent is its supervisor and everything below it."""
        return [each for each in self.processes() if _part_of(each) == "agents: supervisor"]

    def pss_mib(self) -> float:
        """Proportional set size of all processes: shared pages count once."""
        total = 0
        for process in self.processes():
            try:
                total += process.memory_full_info().pss
            except psutil.NoSuchProcess:
                continue
        return total / MIB

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds, user and system, used so far by each part; all agents count as one."""
        used: dict[str, float] = defaultdict(float)
        for process in self.processes():
            try:
                times, part = process.cpu_times(), _part_of(process)
            except psutil.NoSuchProcess:
                continue
            used[part] += times.user + times.system
        return used

    def redis_facts(self) -> dict[str, str]:
        """Version and `appendfsync`, as the running server itself says; empty if unreachable."""
        remembered = self._remembered()
        socket = self.state_dir / "run" / "redis.sock"
        try:
            client = redis.Redis(
                password=remembered.get("redis_password"),
                decode_responses=True,
                socket_timeout=5,
                **(
                    {"unix_socket_path": str(socket)}
                    if socket.exists()
                    else {"host": "127.0.0.1", "port": remembered["ports"]["redis"]}
                ),
            )
            with client:
                said: Any = client.config_get("appendfsync")
                info: Any = client.info("server")
        except (redis.RedisError, OSError, KeyError):
            return {}
        return {"appendfsync": str(said["appendfsync"]), "version": str(info["redis_version"])}

    def etcd_version(self) -> str:
        """As the running etcd says; empty if unreachable."""
        port = self._remembered().get("ports", {}).get("etcd")
        if port is None:
            return ""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/version")
            return str(json.loads(connection.getresponse().read())["etcdserver"])
        except (OSError, ValueError, KeyError):
            return ""
        finally:
            connection.close()

    def _remembered(self) -> dict[str, Any]:
        try:
            loaded: dict[str, Any] = json.loads((self.state_dir / "cluster.json").read_text())
        except (OSError, ValueError):
            return {}
        return loaded


def _part_of(process: psutil.Process) -> str:
    """The name of what a process of the cluster is there for."""
    line = " ".join(process.cmdline())
    for part, mark in _MARKS.items():
        if mark in line:
            return part
    return "muster up"


def describe_machine(folder: Path) -> dict[str, Any]:
    """What a reader must know to compare: processor, memory, kernel, and the disk of `folder`."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "file_system": _file_system(folder),
        "fsync_ms": round(_fsync_ms(folder), 3),
    }


def describe_versions(cluster: MeasuredCluster) -> dict[str, str]:
    """Of Muster, Python and the parts that carry the load."""
    return {
        "muster": version("muster-cluster"),
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "redis": cluster.redis_facts().get("version", "unknown"),
        "etcd": cluster.etcd_version() or "unknown",
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _file_system(folder: Path) -> str:
    mounts = sorted(psutil.disk_partitions(all=True), key=lambda m: len(m.mountpoint))
    kinds = [m.fstype for m in mounts if folder.resolve().is_relative_to(m.mountpoint)]
    return kinds[-1] if kinds else "unknown"


def _fsync_ms(folder: Path) -> float:
    """Median of 50 appends of 4 KiB, each synced: what `appendfsync always` pays at least."""
    probe = folder / "fsync-probe"
    taken: list[float] = []
    with probe.open("wb", buffering=0) as file:
        for _ in range(50):
            began = time.perf_counter()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - began)
    probe.unlink()
    return sorted(taken)[len(taken) // 2] * 1000
