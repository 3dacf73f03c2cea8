"""Two monitors as processes, one is killed: no alert is forgotten or told twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.test_monitor_alerting import Hook
from tests.integration.test_monitor_service import SILENT_S, Failures, Reporter, registry_stand_in
from tests.polling import eventually
from tests.real_servers import RedisServer
from tests.service_process import SECRET, ServiceProcess

from muster.rpc.channels import ServiceChannel
from muster.rpc.clock import boot_s

RULES = "builtin: false\nrules: [{name: queue, metric: agent_queued, above: 5, recover: 2}]\n"
_SPEAKS = "muster_monitor_speaking 1.0"


class Pair:
    """Two monitors, the webhook that they tell, and a channel to each."""

    def __init__(self, monitors: list[ServiceProcess], hook: Hook) -> None:
        self.monitors, self.hook = monitors, hook
        self.channels = [
            ServiceChannel([monitor.endpoint], secret=SECRET, what="monitor")
            for monitor in monitors
        ]
        self.reporters: list[Reporter] = []

    def reporter(self, number: int, agent: str) -> Reporter:
        made = Reporter(self.channels[number], agent)
        self.reporters.append(made)
        return made

    def speaker(self) -> int | None:
        found = [n for n, m in enumerate(self.monitors) if _SPEAKS in m.get("/metrics")[1]]
        return found[0] if found else None

    def told(self, rule: str) -> list[tuple[str, str]]:
        """State and agent of each alert of the rule, message by message."""
        return [
            (alert["state"], alert["labels"]["agent"])
            for body in self.hook.bodies
            for alert in body["alerts"]
            if alert["rule"] == rule
        ]


@pytest.fixture
async def pair(tmp_path: Path, redis_server: RedisServer) -> AsyncIterator[Pair]:
    hook = Hook()
    await hook.start()
    (tmp_path / "rules.yaml").write_text(RULES)
    receiver = {"name": "pager", "webhook": {"url": hook.url}}
    document = {"group_by": ["..."], "group_wait": 0, "group_interval": "1s"}
    document |= {"allow": ["127.0.0.1"], "receivers": [receiver]}
    (tmp_path / "alerting.yaml").write_text(json.dumps(document))
    env = {"MUSTER_REDIS_URL": redis_server.url, "MUSTER_BLOB_DIR": str(tmp_path / "blobs")}
    storage = ServiceProcess("storage", tmp_path / "storage", env)
    async with registry_stand_in() as registry:
        given = {
            "MUSTER_REGISTRY": registry,
            "MUSTER_MONITOR_RULES": str(tmp_path / "rules.yaml"),
            "MUSTER_MONITOR_ALERTING": str(tmp_path / "alerting.yaml"),
        }
        monitors = [ServiceProcess("monitor", tmp_path / f"m{n}", given) for n in (1, 2)]
        try:
            await asyncio.to_thread(storage.start)
            for monitor in monitors:
                monitor._env["MUSTER_STORAGE"] = storage.endpoint
                await asyncio.to_thread(monitor.start)
            made = Pair(monitors, hook)
            try:
                yield made
            finally:
                for reporter in made.reporters:
                    await reporter.close()
                for channel in made.channels:
                    await channel.close()
        finally:
            for server in (*monitors, storage):
                server.stop()
            await hook.stop()


async def test_after_kill_9_of_the_speaker_nothing_is_forgotten_or_told_twice(pair: Pair) -> None:
    await eventually(lambda: pair.speaker() is not None)
    dies = pair.speaker()
    assert dies is not None
    lives = 1 - dies
    pair.reporter(dies, "a").send(metrics={"agent_queued": 9.0})
    await eventually(lambda: pair.told("queue") == [("firing", "a")])

    pair.monitors[dies].kill()
    watcher = Failures(pair.channels[lives])
    # Agents turn to the one that is left, where `a` is still as it was, and `b` falls silent.
    busy, silent = (pair.reporter(lives, agent) for agent in ("a", "b"))
    busy.send(metrics={"agent_queued": 9.0})
    busy.beat()
    beats = silent.beat()
    await eventually(lambda: silent.acked >= 4)
    beats.cancel()
    await eventually(lambda: watcher.of("b")[-1:] == [True])
    assert boot_s() - silent.sent_boot_s > SILENT_S or silent.widest_s > SILENT_S

    await eventually(lambda: pair.speaker() == lives)
    await eventually(lambda: ("firing", "b") in pair.told("agent_suspected"))
    # It has told what is new; what the other one had told is known to it.
    assert pair.told("queue") == [("firing", "a")]
    busy.send(metrics={"agent_queued": 1.0})
    await eventually(lambda: len(pair.told("queue")) > 1)
    assert pair.told("queue") == [("firing", "a"), ("resolved", "a")]
    await watcher.close()
