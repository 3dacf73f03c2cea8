"""What a registry is told at its start, from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from muster.domain.errors import ConfigurationError
from muster_registry.heartbeat_policy import HeartbeatPolicy


@dataclass(frozen=True, slots=True)
class Config:
    """See services/registry/README.md for what each variable means."""

    listen: str
    metrics_listen: str
    secret: str
    etcd: tuple[str, ...]
    storage: tuple[str, ...]
    monitors: tuple[str, ...]
    policy: HeartbeatPolicy

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Config:
        """Raises ConfigurationError naming key, value and what is accepted."""
        usual = HeartbeatPolicy()
        interval_ms = _number(
            environ, "MUSTER_HEARTBEAT_INTERVAL_MS", usual.min_interval_ms, 200, 300_000
        )
        rate = _number(
            environ, "MUSTER_REGISTRY_MAX_RENEWALS_PER_S", usual.max_renewals_per_s, 1, 100_000
        )
        return cls(
            listen=_address(environ, "MUSTER_LISTEN", "127.0.0.1:7103"),
            metrics_listen=_address(environ, "MUSTER_METRICS_LISTEN", "127.0.0.1:0"),
            secret=environ.get("MUSTER_JOIN_SECRET", ""),
            etcd=_addresses(environ, "MUSTER_ETCD_ENDPOINTS"),
            storage=_addresses(environ, "MUSTER_STORAGE"),
            monitors=_addresses(environ, "MUSTER_MONITORS", optional=True),
            policy=HeartbeatPolicy(int(interval_ms), rate),
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


def _addresses(environ: Mapping[str, str], key: str, *, optional: bool = False) -> tuple[str, ...]:
    text = environ.get(key, "")
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for part in found:
        host, _, port = part.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) <= 65_535:
            raise ConfigurationError(key, text, "host:port, several separated by commas")
    if not found and not optional:
        raise ConfigurationError(key, text, "at least one host:port")
    return found
