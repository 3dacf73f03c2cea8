"""All of alerting in one monitor: the desk, the events, a courier for each receiver; its document.

The document is looked at every few seconds. A new one takes the place of the old one as a whole;
one with mistakes changes nothing, is logged, and raises the alert `alerting_config_invalid`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from muster.domain.errors import ConfigurationError
from muster.outbound.exchange import Outbound
from muster.rpc.channels import ServiceChannel
from muster_monitor.alerting.desk import AlertDesk
from muster_monitor.alerting.keeping import AlertArchive
from muster_monitor.alerting.sending import Courier
from muster_monitor.alerting.settings import (
    MAX_DOCUMENT_BYTES,
    AlertingSettings,
    check,
    parse,
    secret_files,
)
from muster_monitor.alerting.tailing import follow_events
from muster_monitor.findings import Finding, Severity
from muster_monitor.state import MonitorState

_LOG = structlog.get_logger("muster.monitor")

VARIABLE: Final = "MUSTER_MONITOR_ALERTING"
_LOOK_EVERY_S: Final = 2.0
_ALLOW_HINT: Final = "`allow` in the document of MUSTER_MONITOR_ALERTING can allow it"
_Stamp = tuple[tuple[str, int, int, int], ...]


def read_document(path: str) -> str:
    """Raises ConfigurationError."""
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_DOCUMENT_BYTES + 1).decode()
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigurationError(VARIABLE, path, f"a file that can be read ({why})") from None
    except UnicodeDecodeError:
        raise ConfigurationError(VARIABLE, path, "a file in UTF-8") from None


def read_settings(path: str) -> AlertingSettings:
    """Raises ConfigurationError; "" = nobody is told."""
    return parse(read_document(path), VARIABLE) if path else AlertingSettings()


class AlertOffice:
    """Owned by the monitor's process; `desk` answers its RPCs."""

    def __init__(
        self,
        state: MonitorState,
        storage: ServiceChannel,
        events: ServiceChannel,
        path: str,
        name: str,
        boot_ms: Callable[[], int],
        wall_ms: Callable[[], int],
    ) -> None:
        self._state, self._events, self._path = state, events, path
        self._wall_ms = wall_ms
        self._settings = read_settings(path)
        self._stamp = self._stamped()
        self.desk = AlertDesk(state, AlertArchive(storage), name, boot_ms, wall_ms)
        self._couriers: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._employ(group)
            group.create_task(self.desk.run(), name="alert desk")
            group.create_task(follow_events(self._events, self.desk), name="leader's events")
            while True:
                await asyncio.sleep(_LOOK_EVERY_S)
                if self._path:
                    self._look_at_document(group)

    def _employ(self, group: asyncio.TaskGroup) -> None:
        """Couriers for the receivers of the settings, in place of those before."""
        for task in self._couriers:
            task.cancel()
        settings, desk = self._settings, self.desk
        desk.set_receivers(receiver.name for receiver in settings.receivers)
        outbound = Outbound(settings.allow, allow_hint=_ALLOW_HINT)
        self._couriers = [
            group.create_task(
                Courier(
                    receiver,
                    outbound,
                    due=desk.due,
                    keep=desk.keep_ledger,
                    failing=desk.receiver_failing,
                    now_ms=desk.now_ms,
                    wall_ms=self._wall_ms,
                ).run(),
                name=f"courier of {receiver.name}",
            )
            for receiver in settings.receivers
        ]

    def _look_at_document(self, group: asyncio.TaskGroup) -> None:
        stamp = self._stamped()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            settings, mistakes = check(read_document(self._path))
        except ConfigurationError as error:
            settings, mistakes = None, [str(error)]
        self._tell_of(mistakes)
        if settings is None:
            _LOG.error("the alerting document is not taken", path=self._path, mistakes=mistakes)
            return
        self._settings = settings
        self._stamp = self._stamped()
        self._employ(group)
        _LOG.info("the alerting document is taken", receivers=len(settings.receivers))

    def _tell_of(self, mistakes: list[str]) -> None:
        text = f"the alerting document is not taken: {mistakes[0]}" if mistakes else "it is taken"
        finding = Finding(
            "alerting_config_invalid",
            {"service": "monitor"},
            Severity.WARNING,
            bool(mistakes),
            text,
            self._wall_ms(),
        )
        self._state.findings.post([finding])

    def _stamped(self) -> _Stamp:
        """What tells a changed file from the one before, also of the secrets that it names."""
        found = []
        for path in (self._path, *secret_files(self._settings)):
            try:
                status = os.stat(path)
            except OSError:
                found.append((path, 0, 0, 0))
            else:
                found.append((path, status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(found)


def monitor_name(listen: str) -> str:
    """The same after a restart, and another for each monitor of a cluster."""
    host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:100]
    return f"{host}-{listen.replace(':', '-').replace('/', '-')}"
