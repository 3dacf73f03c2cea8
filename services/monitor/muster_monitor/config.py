"""What a monitor is told at its start, from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from muster.domain.errors import ConfigurationError
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

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Config:
        """Raises ConfigurationError naming key, value and what is accepted."""
        usual = DetectorSettings()
        detector = DetectorSettings(
            heartbeat_ms=int(
                _number(environ, "MUSTER_PHI_HEARTBEAT_MS", usual.heartbeat_ms, 100, 60_000)
            ),
            threshold=_number(environ, "MUSTER_PHI_THRESHOLD", usual.threshold, 1, 100),
            min_deviation_ms=_number(
                environ, "MUSTER_PHI_MIN_DEVIATION_MS", usual.min_deviation_ms, 1, 60_000
            ),
            acceptable_pause_ms=_number(
                environ, "MUSTER_PHI_ACCEPTABLE_PAUSE_MS", usual.acceptable_pause_ms, 0, 600_000
            ),
            window=int(_number(environ, "MUSTER_PHI_WINDOW", usual.window, 10, 100_000)),
        )
        log_memory_bytes = _number(
            environ, "MUSTER_MONITOR_LOG_MEMORY_BYTES", DEFAULT_MEMORY_BYTES, _MIB, 1024 * _MIB
        )
        return cls(
            listen=_address(environ, "MUSTER_LISTEN", "127.0.0.1:7105"),
            metrics_listen=_address(environ, "MUSTER_METRICS_LISTEN", "127.0.0.1:0"),
            secret=environ.get("MUSTER_JOIN_SECRET", ""),
            storage=_addresses(environ, "MUSTER_STORAGE"),
            registry=_addresses(environ, "MUSTER_REGISTRY"),
            detector=detector,
            log_memory_bytes=int(log_memory_bytes),
        )


def _number(
    environ: Mapping[str, str], key: str, default: float, least: float, most: float
) -> float:
    text = environ.get(key, "")
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    # NaN fails the comparison too.
    if not least <= number <= most:
        raise ConfigurationError(key, text, f"a number from {least:g} to {most:g}")
    return number


def _address(environ: Mapping[str, str], key: str, default: str) -> str:
    text = environ.get(key) or default
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise ConfigurationError(key, text, "host:port, port 0 = any free one")
    return text


def _addresses(environ: Mapping[str, str], key: str) -> tuple[str, ...]:
    text = environ.get(key, "")
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for part in found:
        host, _, port = part.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) <= 65_535:
            raise ConfigurationError(key, text, "host:port, several separated by commas")
    if not found:
        raise ConfigurationError(key, text, "at least one host:port")
    return found
