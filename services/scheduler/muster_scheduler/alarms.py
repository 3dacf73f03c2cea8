"""What the leading scheduler has raised an alarm about: log, metric, event, and the status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from muster.api.v1 import storage_pb2
from muster.rpc.clock import wall_ms
from muster_scheduler import metrics

_LOG = structlog.get_logger("muster.scheduler")

STORE_ROLLED_BACK: Final = "store_rolled_back"
STORE_LOST_WRITES: Final = "store_lost_writes"
ETCD_REFUSES: Final = "etcd_refuses_writes"
MASS_FAILURE: Final = "mass_failure"
NAMES: Final = (STORE_ROLLED_BACK, STORE_LOST_WRITES, ETCD_REFUSES, MASS_FAILURE)


class Alarms:
    """Alarms by name, one of each at most. `publish` is set while there is a term to publish
    under; what stands then is told again."""

    def __init__(self) -> None:
        self.standing: dict[str, str] = {}
        self._publish: Callable[[storage_pb2.Event], None] | None = None
        for name in NAMES:
            metrics.ALARM.labels(name).set(0)

    def publish_by(self, publish: Callable[[storage_pb2.Event], None] | None) -> None:
        """None: the term is over."""
        self._publish = publish
        for name, why in self.standing.items():
            self._tell(name, why)

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

    def begin_anew(self, name: str) -> None:
        """A leader judges for itself: what one before it, in whatever process, said is over."""
        self.end(name)
        self._tell(name, "")

    def _tell(self, name: str, why: str) -> None:
        if self._publish is not None:
            self._publish(
                storage_pb2.Event(
                    kind=storage_pb2.EVENT_KIND_CLUSTER_ALARM, at_ms=wall_ms(), note=name, why=why
                )
            )
