"""What the leading scheduler has raised an alarm about: log, metric, event, and the status."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from muster.api.v1 import storage_pb2
from muster.domain.alarms import ALARMS
from muster.rpc.clock import wall_ms
from muster_scheduler import metrics

_LOG = structlog.get_logger("muster.scheduler")


class Alarms:
    """Alarms by name, one of each at most. They end with the term under which they are told."""

    def __init__(self) -> None:
        self.standing: dict[str, str] = {}
        self._publish: Callable[[storage_pb2.Event], None] | None = None
        for name in ALARMS:
            metrics.ALARM.labels(name).set(0)

    def publish_by(self, publish: Callable[[storage_pb2.Event], None] | None) -> None:
        """None: the term is over. The next leader tells its own."""
        self._publish = publish
        if publish is None:
            for name in self.standing:
                metrics.ALARM.labels(name).set(0)
            self.standing.clear()

    def start(self, name: str, why: str) -> None:
        """Once for each `why`."""
        if self.standing.get(name) == why:
            return
        self.standing[name] = why
        metrics.ALARM.labels(name).set(1)
        _LOG.error("alarm", alarm=name, why=why)
        self._tell(name, why)

    def end(self, name: str) -> None:
        """It is over; nothing happens when it never began."""
        if self.standing.pop(name, None) is None:
            return
        metrics.ALARM.labels(name).set(0)
        _LOG.warning("the alarm is over", alarm=name)
        self._tell(name, "")

    def _tell(self, name: str, why: str) -> None:
        if self._publish is not None:
            self._publish(
                storage_pb2.Event(
                    kind=storage_pb2.EVENT_KIND_CLUSTER_ALARM, at_ms=wall_ms(), note=name, why=why
                )
            )
