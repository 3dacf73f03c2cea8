"""What a monitor is told at its start, from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from muster.rpc.settings import address, addresses, number
from muster_monitor.failure_detector import DetectorSettings
from muster_monitor.task_logs import DEFAULT_MEMORY_BYTES

_MIB = 1024 * 1024


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
        return cls(
            listen=address(environ, "MUSTER_LISTEN", "127.0.0.1:7105"),
            metrics_listen=address(environ, "MUSTER_METRICS_LISTEN", "127.0.0.1:0"),
            secret=environ.get("MUSTER_JOIN_SECRET", ""),
            storage=addresses(environ, "MUSTER_STORAGE"),
            registry=addresses(environ, "MUSTER_REGISTRY"),
            detector=detector,
            log_memory_bytes=int(log_memory_bytes),
            alerting=environ.get("MUSTER_MONITOR_ALERTING", ""),
        )
