"""Which loopback ports an embedded cluster listens on."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping

from muster.domain.errors import ConfigurationError

LOOPBACK = "127.0.0.1"
# Below Linux's range for outgoing connections (32768…), so that none of those takes the port
# of a service that is being started again.
PORTS = range(12_000, 32_000)
# Each try hits a taken port with the odds of taken / 20,000.
_TRIES = 1000

SERVICES = ("gateway", "scheduler", "monitor", "registry", "storage")


def replica_names(service: str, replicas: int) -> tuple[str, ...]:
    """The processes of one service: `storage`, `storage-2`, …"""
    return (service, *(f"{service}-{number}" for number in range(2, replicas + 1)))


def http_port_name(gateway: str) -> str:
    """The name of a gateway's REST port: `http`, `http-2`, …"""
    return gateway.replace("gateway", "http", 1)


def port_names(replicas: int = 1) -> tuple[str, ...]:
    """What an embedded cluster with so many processes of each service listens on."""
    services = [name for service in SERVICES for name in replica_names(service, replicas)]
    gateways = replica_names("gateway", replicas)
    return (
        *(http_port_name(name) for name in gateways),
        "etcd",
        "etcd_peer",
        "redis",
        *(name for name in services if name not in gateways),
        *(f"{name}_metrics" for name in services),
    )


PORT_NAMES = port_names()


def is_free(port: int) -> bool:
    """Whether nobody listens on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        # As servers do: connections of a former holder that linger are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def choose_ports(
    stored: Mapping[str, int],
    *,
    http: int | None,
    free: Callable[[int], bool],
    pick: Callable[[], int],
    names: Iterable[str] = PORT_NAMES,
) -> dict[str, int]:
    """A port per name: the stored one while it is free, else a new one from `pick`.

    `http` is the operator's choice for the gateway. Raises ConfigurationError naming it when
    it is taken, or when no free port is found.
    """
    if http is not None and not free(http):
        raise ConfigurationError("--port", http, f"another program listens on {LOOPBACK}:{http}")
    chosen: dict[str, int] = {} if http is None else {"http": http}
    for name in names:
        if name not in chosen:
            chosen[name] = _port_for(stored.get(name), set(chosen.values()), free, pick)
    return chosen


def _port_for(
    stored: int | None, used: set[int], free: Callable[[int], bool], pick: Callable[[], int]
) -> int:
    if stored is not None and stored not in used and free(stored):
        return stored
    for _ in range(_TRIES):
        port = pick()
        if port not in used and free(port):
            return port
    raise ConfigurationError("--port", None, f"{_TRIES} ports of {LOOPBACK} were tried, all taken")
