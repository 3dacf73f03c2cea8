"""A cluster of real processes whose every part can be killed, paused, kept away and asked."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import psutil

from benchmarks.oracle.books import Change
from benchmarks.oracle.cluster_process import STANDBY
from benchmarks.oracle.far_network import FarNetwork, Wire
from benchmarks.oracle.power_disk import PowerDisk
from benchmarks.oracle.reply_cutter import ReplyCutter
from benchmarks.oracle.rest import Refused, Rest
from benchmarks.oracle.store_ground import EtcdTalk, RedisTalk, Stores
from benchmarks.oracle.store_taps import EtcdTap, RedisTap, Tap
from benchmarks.oracle.wall_clock import WallClock
from muster.api.v1 import agent_pb2, storage_pb2, storage_pb2_grpc, task_pb2
from muster.rpc.channels import CHANNEL_OPTIONS, SECRET_KEY

SCHEDULERS = ("scheduler", STANDBY)
SERVICES = ("gateway", *SCHEDULERS, "monitor", "registry", "storage")
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 60.0
# A part that is killed is back within a second on an idle machine.
BACK_WITHIN_S = 60.0
_POLL_S = 0.01
_START_ATTEMPTS = 3
_ROOT = Path(__file__).resolve().parents[2]
_TAIL_S = 30.0


class Cluster:
    """As `muster up`, with a second scheduler. `proxied`: its links can be cut, and replies on
    them lost; `wired`: each agent is a host of its own, whose wire can be spoiled; `clocked`: its
    wall clock can be set; `stores`: what Redis and etcd stand on."""

    def __init__(
        self,
        folder: Path,
        *,
        agents: int = 3,
        proxied: bool = False,
        wired: bool = False,
        clocked: bool = False,
        stores: Stores = Stores(),  # noqa: B008 -- frozen
    ) -> None:
        self.folder, self.agents = folder, agents
        told = (*SERVICES, *self.agent_ids)
        self.clock = WallClock(folder / "clocks", told) if clocked else None
        self.state_dir, self.holds = folder / "state", folder / "holds"
        self.url = self.api_key = ""
        self.facts: dict[str, Any] = {}
        self.proxies: dict[str, ReplyCutter] = {}
        if proxied:
            names = ("gateway", "storage", *SCHEDULERS, *(f"etcd@{name}" for name in SCHEDULERS))
            self.proxies = {name: ReplyCutter(name) for name in names}
        self.network = FarNetwork(self.agent_ids) if wired else None
        self.stores = stores
        self.taps: dict[str, Tap] = {}
        if stores.tapped:
            self.taps = {"redis": RedisTap(), "etcd": EtcdTap()}
        self.disks: dict[str, PowerDisk] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._extra: list[subprocess.Popen[bytes]] = []

    # --- life -------------------------------------------------------------------------------

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            # What interrupts a start gets no `__exit__`.
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when all of it is ready. Another program may take a port: tried again."""
        self.holds.mkdir(parents=True, exist_ok=True)
        for proxy in self.proxies.values():
            proxy.start()
        for tap in self.taps.values():
            tap.start()
        self.stores.mount(self.folder, self.state_dir, self.disks)
        for attempt in range(1, _START_ATTEMPTS + 1):
            line = self._launch()
            if line:
                break
            if attempt == _START_ATTEMPTS:
                raise SystemExit("the cluster cannot start: " + self.log("up")[-3000:])
        self.facts = json.loads(line)
        self.url, self.api_key = self.facts["url"], self.facts["api_key"]
        if "gateway" in self.proxies:
            self.proxies["gateway"].target = self.url.partition("//")[2]
            self.url = f"http://{self.proxies['gateway'].address}"

    def _launch(self) -> bytes:
        """The line that says it is ready; empty when it ended."""
        behind = {name: p.address for name, p in self.proxies.items() if name != "gateway"}
        spec = {
            "parent": os.getpid(),
            "state_dir": str(self.state_dir),
            "agents": self.agents,
            "skills": str(Path(__file__).with_name("skills.py")),
            "work_dir": str(self.folder),
            "holds": str(self.holds),
            "proxies": behind,
            "namespaces": {wire.name: wire.namespace for wire in self.wires},
            "clocks": str(self.clock.folder) if self.clock is not None else "",
            "etcd_args": self.stores.etcd_args(),
            "weak": self.stores.special,
            "taps": {name: tap.address for name, tap in self.taps.items()},
        }
        path = self.folder / "spec.json"
        path.write_text(json.dumps(spec))
        with (self.folder / "up.log").open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.oracle.cluster_process", str(path)],
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=_ROOT,
            )
        assert self._process.stdout is not None
        give_up_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < give_up_s:
            self._aim_proxies()
            if select.select([self._process.stdout], [], [], 0.05)[0]:
                return self._process.stdout.readline()
        self.stop()
        raise SystemExit(f"the cluster was not ready after {START_TIMEOUT_S:g} s")

    def _aim_proxies(self) -> None:
        """The ports are chosen by the cluster, and written down before anything dials."""
        with suppress(OSError, ValueError, KeyError):
            ports = json.loads((self.state_dir / "cluster.json").read_text())["ports"]
            for name, proxy in self.proxies.items():
                if name != "gateway":
                    proxy.target = f"127.0.0.1:{ports[name.partition('@')[0]]}"
            for name, tap in self.taps.items():
                tap.target = f"127.0.0.1:{ports[name]}"

    def stop(self) -> None:
        """Ends all of its processes, stopped ones too. What fails keeps nothing else from ending;
        it is raised then."""
        disks, self.disks = self.disks, {}
        extras, self._extra = self._extra, []
        # The last comes first.
        ends: list[Callable[[], None]] = []
        if self.network is not None:
            ends.append(self.network.close)
        ends += [disk.close for disk in disks.values()]
        ends += [tap.stop for tap in self.taps.values()]
        ends += [proxy.stop for proxy in self.proxies.values()]
        ends += [self._stop_parts, *(partial(_end, extra) for extra in extras)]
        with ExitStack() as stack:
            for end in ends:
                stack.callback(end)

    def _stop_parts(self) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        with suppress(psutil.Error):
            for child in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    child.resume()
        _end(process)

    @property
    def wires(self) -> list[Wire]:
        """Of all agents; empty when they are not hosts of their own."""
        return list(self.network.wires.values()) if self.network is not None else []

    def wire(self, agent: str) -> Wire:
        assert self.network is not None, "the cluster is not wired"
        return self.network.wires[agent]

    # --- processes --------------------------------------------------------------------------

    @property
    def agent_ids(self) -> tuple[str, ...]:
        return tuple(f"agent-{number}" for number in range(1, self.agents + 1))

    def process(self, name: str) -> psutil.Process | None:
        """The present process of a part (of an agent: its supervisor); None while it has none."""
        assert self._process is not None
        for child in psutil.Process(self._process.pid).children():
            try:
                command = child.cmdline()
                if not command or command[0].endswith("sh"):
                    continue
                if name in ("etcd", "redis"):
                    if any(name in Path(word).name for word in command[:1]):
                        return child
                elif Path(child.cwd()).name == name:
                    return child
            except psutil.Error:
                continue
        return None

    def pid(self, name: str) -> int:
        """As `process`; waits for one."""
        found = until(lambda: self.process(name), f"a process of {name}", BACK_WITHIN_S)
        return int(found.pid)

    def processes(self) -> list[psutil.Process]:
        """All of the cluster."""
        assert self._process is not None
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]

    def tree(self, name: str) -> list[psutil.Process]:
        """A part's process and all below it, parents first."""
        root = psutil.Process(self.pid(name))
        return [root, *root.children(recursive=True)]

    def runtime(self, agent: str) -> psutil.Process:
        """The runtime of an agent; waits for one."""

        def find() -> psutil.Process | None:
            for process in self.tree(agent):
                with suppress(psutil.Error):
                    if "muster.agent.runtime_process" in process.cmdline():
                        return process
            return None

        found: psutil.Process = until(find, f"the runtime of {agent}", BACK_WITHIN_S)
        return found

    def kill(self, *names: str) -> float:
        """kill -9 of these parts at once; the moment, in CLOCK_MONOTONIC seconds."""
        pids = [self.pid(name) for name in names]
        at_s = time.monotonic()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return at_s

    def hold(self, name: str) -> None:
        """From its next death on, the part stays away until `release`."""
        (self.holds / name).touch()

    def release(self, name: str) -> None:
        (self.holds / name).unlink(missing_ok=True)

    def pause(self, name: str) -> list[psutil.Process]:
        """SIGSTOP of the part and all below it; resume what is returned."""
        stopped = self.tree(name)
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        return stopped

    def start_agent_like(
        self, name: str, ident: str, settings: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """One more agent, with the environment of agent `name` but for `settings`, that nobody
        restarts."""
        folder = self.state_dir / "agents" / ident
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        environ = psutil.Process(self.pid(name)).environ()
        environ |= {"MUSTER_AGENT_ID": ident, "MUSTER_STATE_DIR": str(folder), **settings}
        with (self.folder / f"{ident}.log").open("ab") as log:
            agent = subprocess.Popen(
                [sys.executable, "-P", "-m", "muster.agent"],
                env=environ,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._extra.append(agent)
        return agent

    # --- questions --------------------------------------------------------------------------

    def rest(self, *, timeout_s: float = 10.0) -> Rest:
        return Rest(self.url, self.api_key, timeout_s=timeout_s)

    def log(self, name: str) -> str:
        """What a part has written; `up` is the parent."""
        inside = self.state_dir / "logs" / f"{name}.log"
        path = self.folder / "up.log" if name == "up" else inside
        return path.read_text(errors="replace") if path.exists() else ""

    def metrics(self, name: str) -> dict[str, float]:
        """The figures of a service by name and labels; empty when it does not answer."""
        status, body = _http(self.facts["ports"][f"{name}_metrics"], "/metrics")
        figures = {}
        for line in body.splitlines() if status == 200 else ():
            key, _, value = line.rpartition(" ")
            if key and not line.startswith("#"):
                figures[key] = float(value)
        return figures

    def redis(self) -> RedisTalk:
        return RedisTalk(self.facts["ports"]["redis"], self.facts["redis_password"])

    def etcd(self) -> EtcdTalk:
        return EtcdTalk(self.facts["ports"]["etcd"])

    def is_ready(self, name: str) -> bool:
        port = self.facts["ports"]["http" if name == "gateway" else f"{name}_metrics"]
        return _http(port, "/readyz")[0] == 200

    def leader(self) -> str:
        """The name of the scheduler that leads; empty while none says so."""
        for name in SCHEDULERS:
            if self.metrics(name).get("muster_scheduler_leader") == 1.0:
                return name
        return ""

    def agent_states(self) -> dict[str, str]:
        """State by agent; empty while nobody can say."""
        rest = self.rest(timeout_s=3.0)
        try:
            items = json.loads(rest.call("GET", "/v1/agents?limit=1000"))["items"]
        except (Refused, ValueError):
            return {}
        finally:
            rest.close()
        return {item["id"]: item["state"] for item in items}

    def why_not_healthy(self) -> str:
        """Empty when every service and every agent of its own is ready."""
        for name in SERVICES:
            if not self.is_ready(name):
                return f"{name} is not ready"
        states = self.agent_states()
        for ident in self.agent_ids:
            if states.get(ident) != "READY":
                return f"{ident} is {states.get(ident, 'not shown')}"
        return ""

    def await_healthy(self, within_s: float = BACK_WITHIN_S) -> None:
        give_up_s = time.monotonic() + within_s
        while why := self.why_not_healthy():
            if time.monotonic() > give_up_s:
                raise TimeoutError(f"after {within_s:g} s {why}")
            time.sleep(0.05)

    # --- the log ----------------------------------------------------------------------------

    def log_position(self) -> str:
        """The end of the event log now."""
        position: str = next(iter(self._tail("")))[0]
        return position

    def events(self, after: str, upto: str) -> list[Change]:
        """What the log holds after one position up to another."""
        wall_minus_boot_s = time.time() - time.monotonic()
        changes: list[Change] = []
        for last, batch in self._tail(after or "0"):
            changes += [_change(event, wall_minus_boot_s) for event in batch]
            if int(last) >= int(upto):
                break
        return changes

    def _tail(self, after: str) -> Any:
        address = f"127.0.0.1:{self.facts['ports']['storage']}"
        with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            stub = storage_pb2_grpc.StorageServiceStub(channel)
            stream = stub.Tail(
                storage_pb2.TailRequest(from_id=after),
                timeout=_TAIL_S,
                metadata=((SECRET_KEY, self.facts["join_secret"]),),
                wait_for_ready=True,
            )
            for answer in stream:
                if answer.gap:
                    raise AssertionError("the log no longer holds the whole run")
                yield answer.last_id, answer.events


def _change(event: storage_pb2.Event, wall_minus_boot_s: float) -> Change:
    changed = event.kind in (
        storage_pb2.EVENT_KIND_TASK_CREATED,
        storage_pb2.EVENT_KIND_TASK_CHANGED,
    )
    agent_state = ""
    if event.kind == storage_pb2.EVENT_KIND_AGENT_CHANGED:
        agent_state = agent_pb2.AgentState.Name(event.agent_state).removeprefix("AGENT_STATE_")
    return Change(
        at_s=event.at_ms / 1000 - wall_minus_boot_s,
        task=event.task_id if changed else "",
        state=task_pb2.TaskState.Name(event.state).removeprefix("TASK_STATE_") if changed else "",
        attempt=event.attempt,
        agent=event.agent,
        agent_state=agent_state,
        incarnation=event.incarnation,
        term=event.term,
        why=event.why,
        leader=event.kind == storage_pb2.EVENT_KIND_LEADER_CHANGED,
        alarm=event.kind == storage_pb2.EVENT_KIND_CLUSTER_ALARM,
        recovery=event.note if event.kind == storage_pb2.EVENT_KIND_AGENT_RECOVERY else "",
    )


def until(condition: Callable[[], Any], what: str, within_s: float) -> Any:
    """Waits until the condition is truthy and gives its value; raises TimeoutError."""
    give_up_s = time.monotonic() + within_s
    while not (value := condition()):
        if time.monotonic() > give_up_s:
            raise TimeoutError(f"{what} did not come within {within_s:g} s")
        time.sleep(_POLL_S)
    return value


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; a zombie does not."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def fenced(cluster: Cluster) -> Mapping[str, tuple[int, float]]:
    """By scheduler: its pid and how many stale outcomes it has refused."""
    found = {}
    for name in SCHEDULERS:
        process = cluster.process(name)
        count = cluster.metrics(name).get("muster_outcomes_fenced_total", 0.0)
        found[name] = (process.pid if process is not None else 0, count)
    return found


def _http(port: int, path: str) -> tuple[int, str]:
    rest = Rest(f"http://127.0.0.1:{port}", "none", timeout_s=2.0)
    try:
        return 200, rest.call("GET", path).decode()
    except Refused as refused:
        return refused.status, refused.why
    finally:
        rest.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
