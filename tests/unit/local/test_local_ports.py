"""Which ports a cluster takes."""

from __future__ import annotations

import socket
from collections.abc import Callable
from itertools import count

import pytest

from muster.domain.errors import ConfigurationError
from muster.local.ports import PORT_NAMES, PORTS, choose_ports, is_free


def always(_: int) -> bool:
    return True


def counter(start: int = PORTS.start) -> Callable[[], int]:
    numbers = count(start)
    return lambda: next(numbers)


def test_every_name_gets_a_port_of_its_own() -> None:
    chosen = choose_ports({}, http=None, free=always, pick=counter())
    assert set(chosen) == set(PORT_NAMES)
    assert len(set(chosen.values())) == len(PORT_NAMES)


def test_stored_ports_are_kept_while_free() -> None:
    stored = choose_ports({}, http=None, free=always, pick=counter())
    again = choose_ports(stored, http=None, free=always, pick=counter(20_000))
    assert again == stored


def test_a_stored_port_that_is_taken_is_replaced_alone() -> None:
    stored = choose_ports({}, http=None, free=always, pick=counter())
    taken = stored["storage"]
    again = choose_ports(stored, http=None, free=lambda p: p != taken, pick=counter(20_000))
    assert again == stored | {"storage": again["storage"]}
    assert again["storage"] >= 20_000


def test_the_operators_port_wins_over_all_stored_ones() -> None:
    stored = {"http": 13_000, "etcd": 14_000}
    chosen = choose_ports(stored, http=14_000, free=always, pick=counter(20_000))
    assert chosen["http"] == 14_000
    assert chosen["etcd"] != 14_000


def test_the_operators_port_must_be_free() -> None:
    with pytest.raises(ConfigurationError, match="--port=8080") as raised:
        choose_ports({}, http=8080, free=lambda p: p != 8080, pick=counter())
    assert "127.0.0.1:8080" in str(raised.value)


def test_gives_up_when_all_are_taken() -> None:
    with pytest.raises(ConfigurationError, match="taken"):
        choose_ports({}, http=None, free=lambda _: False, pick=counter())


def test_a_port_that_is_listened_on_is_not_free() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert not is_free(port)
    assert is_free(port)
