"""The gateway's configuration, parsed once from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from muster.domain.errors import ConfigurationError
from muster.rpc.settings import address, addresses

DEFAULT_HTTP_LISTEN = "127.0.0.1:8080"


@dataclass(frozen=True, slots=True)
class Config:
    """`http_listen` is host:port of the REST interface (port 0 = any free one).

    `metrics_listen` may be empty: then only the REST interface shows the metrics. Without
    `registry` inputs are not checked against skills' schemas; without `monitors` there are no
    logs and no agents' metrics.
    """

    http_listen: str
    metrics_listen: str
    join_secret: str
    storage: tuple[str, ...]
    schedulers: tuple[str, ...]
    registry: tuple[str, ...] = ()
    monitors: tuple[str, ...] = ()
    bootstrap_key_file: Path | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Config:
        """Raises ConfigurationError naming the key, its value and what is accepted."""
        secret = environ.get("MUSTER_JOIN_SECRET", "")
        if len(secret) < 16:
            raise ConfigurationError(
                "MUSTER_JOIN_SECRET", "…" if secret else None, "at least 16 characters are needed"
            )
        metrics = environ.get("MUSTER_METRICS_LISTEN", "")
        key_file = environ.get("MUSTER_BOOTSTRAP_KEY_FILE", "")
        return cls(
            http_listen=address(environ, "MUSTER_HTTP_LISTEN", DEFAULT_HTTP_LISTEN),
            metrics_listen=address(environ, "MUSTER_METRICS_LISTEN", "") if metrics else "",
            join_secret=secret,
            storage=addresses(environ, "MUSTER_STORAGE"),
            schedulers=addresses(environ, "MUSTER_SCHEDULERS"),
            registry=addresses(environ, "MUSTER_REGISTRY", optional=True),
            monitors=addresses(environ, "MUSTER_MONITORS", optional=True),
            bootstrap_key_file=Path(key_file) if key_file else None,
        )
