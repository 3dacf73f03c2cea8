"""What watching costs: one monitor with many simulated agents, and one busy agent's own share.

    python benchmarks/monitor_load.py [--agents 2000] [--seconds 30] [--json]
    python benchmarks/monitor_load.py --flood            # one more agent prints without a pause
    python benchmarks/monitor_load.py --agent            # the cost at a busy agent instead

The monitor is a real process, the agents are streams of this process over real gRPC, each with a
connection of its own, as agents have. There is no storage service and no scheduler; the registry
is a stand-in that knows all agents. Every agent reports 25 figures and one log line each second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.service_process import SECRET, ServiceProcess

from benchmarks.monitor_load_agent import agent_share
from muster.api.v1 import monitor_pb2 as pb
from muster.api.v1 import monitor_pb2_grpc, registry_pb2, registry_pb2_grpc
from muster.domain.errors import MusterError
from muster.rpc.channels import ServiceChannel
from muster.rpc.clock import wall_ms
from muster.rpc.server import RpcServer
from muster.rpc.status import rpc_errors

_STUB = monitor_pb2_grpc.MonitorServiceStub
_HEARTBEAT_S = 1.0
_CONNECT_AT_ONCE = 50
_SETTLE_S = 5.0
_ZONES = 8
FIGURES = (
    *("agent_cpu_cores", "agent_memory_bytes", "agent_processes", "agent_slots"),
    *("agent_slots_used", "agent_running", "agent_queued", "agent_outbox", "agent_runners"),
    *("agent_log_lines_dropped", "host_cpu_ratio", "host_load_1m", "host_memory_used_bytes"),
    *("host_memory_ratio", "host_disk_ratio", "host_network_received_bytes_per_s"),
    *("host_network_sent_bytes_per_s", "host_disk_read_bytes_per_s"),
    *("host_disk_written_bytes_per_s",),
    *(f"agent_other_{i}" for i in range(6)),
)


@dataclass(frozen=True)
class Result:
    """What is printed. `cpu` is in cores; suspicions of agents that beat are false."""

    agents: int
    seconds: float
    reports: int
    monitor_cpu: float
    monitor_rss_mib: float
    load_cpu: float
    false_suspicions: int
    widest_gap_s: float
    monitor_stalled_s: float
    monitor_late_ms: float
    flood_lines: int
    lines_analysed: int
    lines_left_out: int


class Registry(registry_pb2_grpc.RegistryServiceServicer):
    """Knows the simulated agents and says so once."""

    def __init__(self, agents: int) -> None:
        self._agents = agents

    async def WatchAgents(  # noqa: N802
        self,
        request: registry_pb2.WatchAgentsRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[registry_pb2.WatchAgentsResponse]:
        message = registry_pb2.WatchAgentsResponse(snapshot=True, revision=1)
        for number in range(self._agents):
            record = message.agents.add(incarnation=1)
            record.spec.id = f"agent-{number}"
            record.spec.labels["zone"] = f"zone-{number % _ZONES}"
            record.spec.skills.add(name="ocr")
        yield message
        await asyncio.Event().wait()


class Agent:
    """One stream that reports each second; `widest_s` is the longest it was kept from it."""

    def __init__(self, number: int, address: str, chance: random.Random) -> None:
        self.name = f"agent-{number}"
        self._channel = ServiceChannel((address,), secret=SECRET, what="the monitor")
        self._chance = chance
        self.reports = 0
        self.answers = 0
        self.widest_s = 0.0
        self._sent_s = math.inf

    async def connect(self) -> None:
        """Opens the stream with a first report."""
        self._stream = self._channel.stream(_STUB, "Report")
        await self._say()
        self._reading = asyncio.create_task(self._read())

    async def beat(self, until_s: float) -> None:
        """Reports each second until then."""
        next_s = time.monotonic() + self._chance.uniform(0, _HEARTBEAT_S)
        while next_s < until_s:
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
            await self._say()
            next_s += _HEARTBEAT_S

    async def flood(self, until_s: float) -> int:
        """Prints without a pause; returns how many lines were sent."""
        line = pb.LogLine(stream=pb.LOG_STREAM_AGENT, text="an error that nobody asked for " * 4)
        batch, sent = [line] * 2_000, 0
        while time.monotonic() < until_s:
            self.reports += 1
            await self._stream.write(
                pb.ReportRequest(
                    agent=self.name, incarnation=1, seq=self.reports, at_ms=wall_ms(), lines=batch
                )
            )
            sent += len(batch)
            # 100,000 lines a second, as far as the monitor takes them.
            await asyncio.sleep(0.02)
        return sent

    async def close(self) -> None:
        self._stream.cancel()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._channel.close()

    async def _say(self) -> None:
        self.reports += 1
        now_s = time.monotonic()
        if self._sent_s < math.inf:
            self.widest_s = max(self.widest_s, now_s - self._sent_s)
        value = self._chance.random()
        request = pb.ReportRequest(
            agent=self.name, incarnation=1, seq=self.reports, at_ms=wall_ms()
        )
        for name in FIGURES:
            request.metrics[name] = value * 0.5
        request.lines.add(stream=pb.LOG_STREAM_AGENT, level="info", text=f"turn {self.reports}")
        await self._stream.write(request)
        self._sent_s = time.monotonic()

    async def _read(self) -> None:
        while isinstance(await self._stream.read(), pb.ReportResponse):
            self.answers += 1


class Watcher:
    """Follows the monitor's suspicions."""

    def __init__(self, address: str) -> None:
        self._channel = ServiceChannel((address,), secret=SECRET, what="the monitor")
        self.suspected: list[str] = []

    async def run(self) -> None:
        request = pb.WatchFailuresRequest()
        call = self._channel.stream(_STUB, "WatchFailures", request)
        try:
            with rpc_errors("the monitor"):
                async for message in call:
                    self.suspected += [
                        f"{s.agent}: {s.why}" for s in message.suspicions if s.suspected
                    ]
        except MusterError as error:
            print(f"the watch ended: {error}", file=sys.stderr)
        finally:
            call.cancel()
            await self._channel.close()


async def measure(agents: int, seconds: float, seed: int, *, flood: bool) -> Result:
    """Connects all, lets them settle, and measures from then on."""
    known = agents + 1
    registry = RpcServer("127.0.0.1:0", secret=SECRET, service="registry")
    registry.add(registry_pb2_grpc.add_RegistryServiceServicer_to_server, Registry(known))  # type: ignore[abstract]
    port = await registry.start()
    try:
        with _monitor(f"127.0.0.1:{port}") as monitor:
            return await _measure(monitor, agents, seconds, seed, flood=flood)
    finally:
        await registry.stop()


async def _measure(
    monitor: ServiceProcess, agents: int, seconds: float, seed: int, *, flood: bool
) -> Result:
    watcher = Watcher(monitor.endpoint)
    watching = asyncio.create_task(watcher.run())
    everybody = [Agent(n, monitor.endpoint, random.Random(seed + n)) for n in range(agents)]
    for first in range(0, agents, _CONNECT_AT_ONCE):
        await asyncio.gather(*(a.connect() for a in everybody[first : first + _CONNECT_AT_ONCE]))
    until_s = time.monotonic() + _SETTLE_S + seconds
    beating = [asyncio.create_task(agent.beat(until_s)) for agent in everybody]
    await asyncio.sleep(_SETTLE_S)
    process, own = psutil.Process(monitor.pid), psutil.Process()
    for agent in everybody:
        agent.widest_s = 0.0
    before, own_before = _cpu_s(process), _cpu_s(own)
    began_s, reports = time.monotonic(), sum(a.reports for a in everybody)
    flooder = Agent(agents, monitor.endpoint, random.Random(seed))
    flooded = 0
    if flood:
        await flooder.connect()
        flooded = await flooder.flood(until_s)
    await asyncio.gather(*beating)
    elapsed_s = time.monotonic() - began_s
    cpu, load = _cpu_s(process) - before, _cpu_s(own) - own_before
    page = await asyncio.to_thread(_page, monitor)
    result = Result(
        agents=agents,
        seconds=round(elapsed_s, 2),
        reports=sum(a.reports for a in everybody) - reports,
        monitor_cpu=round(cpu / elapsed_s, 3),
        monitor_rss_mib=round(process.memory_info().rss / 2**20, 1),
        load_cpu=round(load / elapsed_s, 3),
        false_suspicions=len(watcher.suspected),
        widest_gap_s=round(max(a.widest_s for a in everybody), 3),
        monitor_stalled_s=_figure(page, "muster_monitor_stalled_seconds_total"),
        monitor_late_ms=_figure(page, "muster_monitor_lag_ms"),
        flood_lines=flooded,
        lines_analysed=int(_figure(page, "muster_monitor_lines_analysed_total")),
        lines_left_out=int(_figure(page, "muster_monitor_lines_left_out_total")),
    )
    for sentence in watcher.suspected[:5]:
        print(f"suspected: {sentence}", file=sys.stderr)
    watching.cancel()
    for agent in [*everybody, *([flooder] if flood else [])]:
        await agent.close()
    await asyncio.gather(watching, return_exceptions=True)
    return result


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _page(monitor: ServiceProcess) -> str:
    return monitor.get("/metrics")[1]


def _figure(page: str, name: str) -> float:
    """The sum over all series of that name."""
    values = [
        float(line.rpartition(" ")[2])
        for line in page.splitlines()
        if line.startswith((f"{name} ", f"{name}{{"))
    ]
    return round(sum(values), 3)


@contextmanager
def _monitor(registry: str) -> Iterator[ServiceProcess]:
    # Nobody listens at port 1: storage is away.
    env = {"MUSTER_REGISTRY": registry, "MUSTER_STORAGE": "127.0.0.1:1"}
    with TemporaryDirectory(prefix="muster-monitor-load-") as folder:
        monitor = ServiceProcess("monitor", Path(folder), env)
        try:
            monitor.start()
            yield monitor
        finally:
            monitor.stop()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--agents", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--flood", action="store_true")
    parser.add_argument("--agent", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.agent:
        with_registry = asyncio.run(_agent(args.seconds))
        figures: dict[str, Any] = with_registry
    else:
        result = asyncio.run(measure(args.agents, args.seconds, args.seed, flood=args.flood))
        figures = {**asdict(result), "seed": args.seed}
    if args.json:
        print(json.dumps(figures))
    else:
        width = max(map(len, figures))
        for name, value in figures.items():
            print(f"{name:{width}}  {value}")
    return 1 if figures.get("false_suspicions") else 0


async def _agent(seconds: float) -> dict[str, Any]:
    registry = RpcServer("127.0.0.1:0", secret=SECRET, service="registry")
    registry.add(registry_pb2_grpc.add_RegistryServiceServicer_to_server, Registry(1))  # type: ignore[abstract]
    port = await registry.start()
    try:
        with _monitor(f"127.0.0.1:{port}") as monitor:
            return await asyncio.to_thread(agent_share, monitor.endpoint, SECRET, seconds)
    finally:
        await registry.stop()


if __name__ == "__main__":
    sys.exit(main())
