"""The gateway's configuration, parsed once from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from muster.domain.errors import ConfigurationError

DEFAULT_HTTP_LISTEN = "127.0.0.1:8080"


def _address(key: str, text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdecimal() and int(port) <= 65_535):
        raise ConfigurationError(key, text, "must be host:port with a port from 0 to 65535")
    return text


def _addresses(environ: Mapping[str, str], key: str, *, needed: bool) -> tuple[str, ...]:
    parts = tuple(p.strip() for p in environ.get(key, "").split(",") if p.strip())
    if needed and not parts:
        raise ConfigurationError(key, environ.get(key), "must be a comma list of host:port")
    return tuple(_address(key, part) for part in parts)


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
            http_listen=_address(
                "MUSTER_HTTP_LISTEN", environ.get("MUSTER_HTTP_LISTEN", DEFAULT_HTTP_LISTEN)
            ),
            metrics_listen=_address("MUSTER_METRICS_LISTEN", metrics) if metrics else "",
            join_secret=secret,
            storage=_addresses(environ, "MUSTER_STORAGE", needed=True),
            schedulers=_addresses(environ, "MUSTER_SCHEDULERS", needed=True),
            registry=_addresses(environ, "MUSTER_REGISTRY", needed=False),
            monitors=_addresses(environ, "MUSTER_MONITORS", needed=False),
            bootstrap_key_file=Path(key_file) if key_file else None,
        )
