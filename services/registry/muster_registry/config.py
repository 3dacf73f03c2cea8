"""What a registry is told at its start, from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from muster.rpc.settings import address, addresses, flag, number
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
    etcd_embedded: bool = False

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Config:
        """Raises ConfigurationError naming key, value and what is accepted."""
        usual = HeartbeatPolicy()
        interval_ms = number(
            environ, "MUSTER_HEARTBEAT_INTERVAL_MS", usual.min_interval_ms, 200, 300_000
        )
        rate = number(
            environ, "MUSTER_REGISTRY_MAX_RENEWALS_PER_S", usual.max_renewals_per_s, 1, 100_000
        )
        return cls(
            listen=address(environ, "MUSTER_LISTEN", "127.0.0.1:7103"),
            metrics_listen=address(environ, "MUSTER_METRICS_LISTEN", "127.0.0.1:0"),
            secret=environ.get("MUSTER_JOIN_SECRET", ""),
            etcd=addresses(environ, "MUSTER_ETCD_ENDPOINTS"),
            storage=addresses(environ, "MUSTER_STORAGE"),
            monitors=addresses(environ, "MUSTER_MONITORS", optional=True),
            policy=HeartbeatPolicy(int(interval_ms), rate),
            etcd_embedded=flag(environ, "MUSTER_ETCD_EMBEDDED"),
        )
