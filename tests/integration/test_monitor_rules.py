"""Rules and log templates in the running monitor: alerts of them, hot reload, restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.test_monitor_service import Reporter, registry_stand_in
from tests.polling import HANG_S, eventually
from tests.real_servers import RedisServer
from tests.service_process import SECRET, ServiceProcess

from muster.api.v1 import monitor_pb2 as pb
from muster.api.v1 import monitor_pb2_grpc
from muster.domain.errors import Unavailable
from muster.rpc.channels import ServiceChannel

RULES = "builtin: false\nrules: [{name: %s, metric: agent_queued, above: 5, recover: 2}]\n"


class Watched:
    """A monitor with a rules file, a storage, and an agent that reports."""

    def __init__(self, monitor: ServiceProcess, rules: Path) -> None:
        self.monitor, self.rules = monitor, rules
        self.channel = ServiceChannel([monitor.endpoint], secret=SECRET, what="monitor")
        self.firing: list[str] = []

    async def look(self) -> list[str]:
        """Rules that fire, as operators see them; what they were before while nobody answers."""
        request = pb.ListAlertsRequest(tenant="default", state="firing")
        try:
            answer = await self.channel.call(
                monitor_pb2_grpc.MonitorServiceStub, "ListAlerts", request, timeout_s=HANG_S
            )
        except Unavailable:
            return self.firing
        self.firing = sorted(alert.rule for alert in answer.alerts)
        return self.firing

    async def until_firing(self, *rules: str) -> None:
        async with asyncio.timeout(HANG_S):
            while await self.look() != sorted(rules):  # noqa: ASYNC110  another process brings it about
                await asyncio.sleep(0.05)

    def figure(self, name: str) -> float:
        page = self.monitor.get("/metrics")[1]
        lines = [line for line in page.splitlines() if line.startswith(f"{name} ")]
        return float(lines[0].split(" ")[1]) if lines else -1.0


@pytest.fixture
async def watched(tmp_path: Path, redis_server: RedisServer) -> AsyncIterator[Watched]:
    env = {"MUSTER_REDIS_URL": redis_server.url, "MUSTER_BLOB_DIR": str(tmp_path / "blobs")}
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES % "first")
    storage = ServiceProcess("storage", tmp_path / "storage", env)
    async with registry_stand_in() as registry:
        given = {"MUSTER_REGISTRY": registry, "MUSTER_MONITOR_RULES": str(rules)}
        monitor = ServiceProcess("monitor", tmp_path / "monitor", given)
        try:
            await asyncio.to_thread(storage.start)
            monitor._env["MUSTER_STORAGE"] = storage.endpoint
            await asyncio.to_thread(monitor.start)
            watched = Watched(monitor, rules)
            try:
                yield watched
            finally:
                await watched.channel.close()
        finally:
            monitor.stop()
            storage.stop()


async def test_rules_make_alerts_and_may_change_while_it_runs(watched: Watched) -> None:
    agent = Reporter(watched.channel, "a")
    try:
        agent.send(metrics={"agent_queued": 9.0})
        await watched.until_firing("first")
        # Between the two levels nothing changes; at the lower one it ends.
        agent.send(metrics={"agent_queued": 3.0})
        agent.send(metrics={"agent_queued": 1.0})
        await watched.until_firing()
        agent.send(metrics={"agent_queued": 9.0})
        await watched.until_firing("first")
        # A broken file changes nothing, and is told.
        watched.rules.write_text("rules: [{name: x, metric: m, above: .nan}]")
        await watched.until_firing("first", "rules_invalid")
        # A sound one is in force at once; what the old rule has said ends.
        watched.rules.write_text(RULES % "second")
        await watched.until_firing()
        agent.send(metrics={"agent_queued": 9.0})
        await watched.until_firing("second")
    finally:
        await agent.close()


async def test_kinds_of_errors_outlive_a_restart(watched: Watched) -> None:
    lines = [
        pb.LogLine(stream=pb.LOG_STREAM_AGENT, level="error", text=text)
        for text in ("disk 5 of rack 7 failed", "the weather service does not answer")
    ]
    agent = Reporter(watched.channel, "a")
    try:
        agent.send(lines=lines)
        await eventually(lambda: watched.figure("muster_monitor_log_templates") == 2)
    finally:
        await agent.close()
    await asyncio.to_thread(watched.monitor.restart_orderly)
    await eventually(lambda: watched.figure("muster_monitor_log_templates") == 2)
    agent = Reporter(watched.channel, "a")
    try:
        # It has learnt before, so a kind that it does not know is news, and the others are not.
        agent.send(lines=[*lines, pb.LogLine(stream=pb.LOG_STREAM_AGENT, text="Error: on fire")])
        await watched.until_firing("log_new_error")
        assert watched.figure("muster_monitor_log_templates") == 3
    finally:
        await agent.close()
