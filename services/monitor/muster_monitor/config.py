"""What a monitor is told at its start, from the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from muster.domain.errors import ConfigurationError
from muster.rpc.settings import address, addresses, number
from muster_monitor.failure_detector import DetectorSettings
from muster_monitor.service_figures import MAX_SCRAPE_TARGETS, Target
from muster_monitor.task_logs import DEFAULT_MEMORY_BYTES

_MIB = 1024 * 1024
_SERVICE = re.compile(r"[a-z][a-z0-9-]{0,31}")


@dataclass(frozen=True, slots=True)
class Config:
    """See services/monitor/README.md for what each variable means."""

    listen: str
    metrics_listen: str
    secret: str
    storage: tuple[str, ...]
    registry: tuple[str, ...]
    detector: DetectorSettings
    log_memory_bytes: int = DEFAULT_MEMORY_BYTES
    rules: Path | None = None
    scrape: tuple[Target, ...] = ()
    # The others; its own address is left out.
    monitors: tuple[str, ...] = ()
    # The document of receivers; "" = nobody is told of alerts.
    alerting: str = ""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Config:
        """Raises ConfigurationError naming key, value and what is accepted."""
        usual = DetectorSettings()
        detector = DetectorSettings(
            heartbeat_ms=int(
                number(environ, "MUSTER_PHI_HEARTBEAT_MS", usual.heartbeat_ms, 100, 60_000)
            ),
            threshold=number(environ, "MUSTER_PHI_THRESHOLD", usual.threshold, 1, 100),
            min_deviation_ms=number(
                environ, "MUSTER_PHI_MIN_DEVIATION_MS", usual.min_deviation_ms, 1, 60_000
            ),
            acceptable_pause_ms=number(
                environ, "MUSTER_PHI_ACCEPTABLE_PAUSE_MS", usual.acceptable_pause_ms, 0, 600_000
            ),
            window=int(number(environ, "MUSTER_PHI_WINDOW", usual.window, 10, 100_000)),
        )
        log_memory_bytes = number(
            environ, "MUSTER_MONITOR_LOG_MEMORY_BYTES", DEFAULT_MEMORY_BYTES, _MIB, 1024 * _MIB
        )
        monitors = addresses(environ, "MUSTER_MONITORS", optional=True)
        listen = address(environ, "MUSTER_LISTEN", "127.0.0.1:7105")
        return cls(
            listen=listen,
            metrics_listen=address(environ, "MUSTER_METRICS_LISTEN", "127.0.0.1:0"),
            secret=environ.get("MUSTER_JOIN_SECRET", ""),
            storage=addresses(environ, "MUSTER_STORAGE"),
            registry=addresses(environ, "MUSTER_REGISTRY"),
            detector=detector,
            log_memory_bytes=int(log_memory_bytes),
            rules=Path(path) if (path := environ.get("MUSTER_MONITOR_RULES", "")) else None,
            monitors=tuple(other for other in monitors if other != listen),
            scrape=_targets(environ, "MUSTER_MONITOR_SCRAPE"),
            alerting=environ.get("MUSTER_MONITOR_ALERTING", ""),
        )


def _targets(environ: Mapping[str, str], key: str) -> tuple[Target, ...]:
    """`service=host:port`, several separated by commas."""
    text = environ.get(key, "")
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        service, _, at = part.partition("=")
        limit = "SERVICE=host:port, several separated by commas"
        if _SERVICE.fullmatch(service) is None:
            raise ConfigurationError(key, text, limit)
        try:
            places = addresses({key: at}, key)
        except ConfigurationError:
            raise ConfigurationError(key, text, limit) from None
        found.append(Target(service, places[0]))
    if len(found) > MAX_SCRAPE_TARGETS:
        raise ConfigurationError(key, f"{len(found)} pages", f"at most {MAX_SCRAPE_TARGETS}")
    return tuple(dict.fromkeys(found))
