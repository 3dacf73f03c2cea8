"""The scheduler's configuration, read once from its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from muster.domain.errors import ConfigurationError, InvalidInput
from muster_scheduler.placement import strategy
from muster_scheduler.placement.plan import DEFAULT_STRATEGY

DEFAULT_LISTEN = "127.0.0.1:7701"
DEFAULT_METRICS_LISTEN = "127.0.0.1:7711"


@dataclass(frozen=True, slots=True)
class Config:
    """Addresses are host:port. `advertise` is what agents and gateways are told to dial."""

    listen: str
    metrics_listen: str
    advertise: str
    join_secret: str
    etcd: tuple[str, ...]
    storage: tuple[str, ...]
    registry: tuple[str, ...]
    monitors: tuple[str, ...]
    strategy: str = DEFAULT_STRATEGY
    leader_ttl_s: int = 3

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Config:
        """Raises ConfigurationError naming key, value and what is accepted."""
        listen = environ.get("MUSTER_LISTEN", DEFAULT_LISTEN)
        chosen = environ.get("MUSTER_STRATEGY", DEFAULT_STRATEGY)
        try:
            strategy.get(chosen)
        except InvalidInput as error:
            raise ConfigurationError("MUSTER_STRATEGY", chosen, error.limit) from error
        ttl = environ.get("MUSTER_LEADER_TTL_S", "3")
        if not (ttl.isascii() and ttl.isdigit()) or not 2 <= int(ttl) <= 60:
            raise ConfigurationError("MUSTER_LEADER_TTL_S", ttl, "whole seconds, 2 to 60")
        return cls(
            listen=_checked("MUSTER_LISTEN", listen, least_port=0),
            metrics_listen=_checked(
                "MUSTER_METRICS_LISTEN",
                environ.get("MUSTER_METRICS_LISTEN", DEFAULT_METRICS_LISTEN),
                least_port=0,
            ),
            advertise=_checked(
                "MUSTER_ADVERTISE", environ.get("MUSTER_ADVERTISE", listen), least_port=0
            ),
            join_secret=_needed(environ, "MUSTER_JOIN_SECRET", "the cluster's join secret"),
            etcd=_addresses(environ, "MUSTER_ETCD_ENDPOINTS"),
            storage=_addresses(environ, "MUSTER_STORAGE"),
            registry=_addresses(environ, "MUSTER_REGISTRY"),
            monitors=_addresses(environ, "MUSTER_MONITORS", optional=True),
            strategy=chosen,
            leader_ttl_s=int(ttl),
        )


def _needed(environ: Mapping[str, str], key: str, what: str) -> str:
    value = environ.get(key, "")
    if not value:
        raise ConfigurationError(key, value, f"{what} is needed")
    return value


def _addresses(environ: Mapping[str, str], key: str, *, optional: bool = False) -> tuple[str, ...]:
    given = environ.get(key, "")
    out = tuple(a.strip() for a in given.split(",") if a.strip())
    if not out and not optional:
        raise ConfigurationError(key, given, "a comma-separated list of host:port is needed")
    return tuple(_checked(key, address, least_port=1) for address in out)


def _checked(key: str, address: str, *, least_port: int) -> str:
    host, _, port = address.rpartition(":")
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1
    if not host or not least_port <= number < 65536:
        accepted = f"host:port is needed, with a port of {least_port} to 65535"
        raise ConfigurationError(key, address, accepted)
    return address
