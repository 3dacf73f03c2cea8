"""The monitor process: detectors, rings and logs in one event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

import structlog
from prometheus_client import REGISTRY, CollectorRegistry

from muster.api.v1.monitor_pb2_grpc import add_MonitorServiceServicer_to_server
from muster.rpc.agent_watch import follow_agents
from muster.rpc.channels import ServiceChannel
from muster.rpc.clock import boot_ms, wall_ms
from muster.rpc.metrics_http import serve_metrics
from muster.rpc.process import run
from muster.rpc.server import RpcServer
from muster_monitor.alerting.office import AlertOffice, monitor_name
from muster_monitor.config import Config
from muster_monitor.judge import judge
from muster_monitor.log_reader import LogReader
from muster_monitor.log_store import LogStore
from muster_monitor.log_watch import read_lines
from muster_monitor.metrics import AgentCollector, register
from muster_monitor.other_monitors import follow_monitor
from muster_monitor.roster import apply
from muster_monitor.rules.file import RulesFile
from muster_monitor.scrape import watch_services
from muster_monitor.service import MonitorService
from muster_monitor.state import MonitorState
from muster_monitor.task_ends import TaskEnds
from muster_monitor.template_store import TemplateStore

_LOG = structlog.get_logger("muster.monitor")

# Logs that storage has not taken by then stay with their agents, which send them again.
_DRAIN_S = 2.0


class Ports(NamedTuple):
    rpc: int
    metrics: int


@asynccontextmanager
async def serving(config: Config, figures: CollectorRegistry = REGISTRY) -> AsyncIterator[Ports]:
    """Serves while the block runs; registry and storage may come later, and go."""
    state = MonitorState(config.detector, config.log_memory_bytes, config.scrape, config.listen)
    storage = ServiceChannel(config.storage, secret=config.secret, what="storage")
    registry = ServiceChannel(config.registry, secret=config.secret, what="registry")
    # The tail of events rotates through the addresses on its own.
    events = ServiceChannel(config.storage, secret=config.secret, what="storage")
    name = monitor_name(config.listen)
    office = AlertOffice(state, storage, events, config.alerting, name, boot_ms, wall_ms)
    store, ends = LogStore(state, storage, boot_ms), TaskEnds(storage)
    reader = LogReader(state, store, ends, boot_ms, wall_ms)
    server = RpcServer(config.listen, secret=config.secret, service="monitor")
    server.add(
        add_MonitorServiceServicer_to_server,
        MonitorService(state, reader, office.desk, boot_ms, wall_ms),
    )
    senses, take = state.senses, partial(apply, state, wall_ms)
    templates = TemplateStore(senses.lines, storage)
    rules: RulesFile | None = None
    if config.rules is not None:
        took, refused = senses.new_rules(wall_ms), senses.broken_rules(wall_ms)
        rules = RulesFile(config.rules, took, refused)
        # Before anything is judged, so that nothing is told by rules that were replaced.
        await rules.look()
    collector = AgentCollector(state, boot_ms, wall_ms)

    def why_not_ready() -> str | None:
        """Only until the first word: later outages of the registry are no reason to go away."""
        return None if state.registry_seen else "the registry has not answered yet"

    metrics = serve_metrics(config.metrics_listen, why_not_ready, figures)
    async with asyncio.TaskGroup() as group:
        work = [
            group.create_task(judge(state, boot_ms, wall_ms), name="judge"),
            group.create_task(follow_agents(registry, take), name="roster"),
            group.create_task(store.run(), name="log store"),
            group.create_task(ends.run(), name="task ends"),
            group.create_task(read_lines(senses, boot_ms, wall_ms), name="log analysis"),
            group.create_task(templates.run(), name="log templates"),
            group.create_task(
                watch_services(config.scrape, senses, boot_ms, wall_ms), name="services"
            ),
            group.create_task(office.run(), name="alerts"),
        ]
        for other in config.monitors:
            following = follow_monitor(other, config.secret, state.overruled)
            work.append(group.create_task(following, name=f"monitor {other}"))
        if rules is not None:
            work.append(group.create_task(rules.run(), name="rules"))
        register(collector, figures)
        try:
            ports = Ports(await server.start(), await metrics.start())
            _LOG.info("listening", port=ports.rpc, metrics_port=ports.metrics)
            yield ports
        finally:
            await server.stop()
            await metrics.stop()
            for task in work:
                task.cancel()
            await store.drain(_DRAIN_S)
            await templates.drain(_DRAIN_S)
            # The alert desk hands over before its channel is closed.
            await asyncio.wait(work, timeout=_DRAIN_S)
            figures.unregister(collector)
            await storage.close()
            await events.close()
            await registry.close()


async def serve(stop: asyncio.Event) -> None:
    """Serves as the environment says until `stop` is set."""
    async with serving(Config.from_env(os.environ)):
        await stop.wait()


def main() -> None:
    """Entry point of `muster service monitor`."""
    run(serve, service="monitor")


if __name__ == "__main__":
    main()
