"""Ranges, endpoints and the client's first checks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.domain.errors import InvalidInput, Unavailable
from muster.etcd.client import EtcdClient
from muster.etcd.keys import AGENTS_PREFIX, LEADER_KEY, agent_key
from muster.etcd.wire import open_channel, prefix_end

short_bytes = st.lists(st.sampled_from([0, 1, 0x61, 0xFE, 0xFF]), max_size=4).map(bytes)


@given(prefix=short_bytes.filter(lambda p: p.strip(b"\xff") != b""), key=short_bytes)
def test_a_prefix_range_holds_exactly_the_keys_with_the_prefix(prefix: bytes, key: bytes) -> None:
    assert (prefix <= key < prefix_end(prefix)) == key.startswith(prefix)


def test_a_prefix_without_successor_means_every_key() -> None:
    assert prefix_end(b"") == b"\x00"
    assert prefix_end(b"\xff\xff") == b"\x00"


@pytest.mark.parametrize("endpoint", ["", "localhost", "ftp://h:1", "unix:///tmp/s"])
async def test_refuses_what_is_no_endpoint(endpoint: str) -> None:
    with pytest.raises(InvalidInput, match="etcd endpoint"):
        open_channel(endpoint)


@pytest.mark.parametrize("endpoint", ["h:1", "http://h:1", "http://h:1/", "https://h:1"])
async def test_accepts_urls_and_plain_addresses(endpoint: str) -> None:
    await open_channel(endpoint).close()


@pytest.mark.parametrize("endpoints", [(), "127.0.0.1:2379"])
def test_wants_a_list_of_endpoints(endpoints: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput, match="etcd endpoints"):
        EtcdClient(endpoints)


async def test_an_unopened_client_says_so() -> None:
    with pytest.raises(Unavailable, match="not open"):
        await EtcdClient(["127.0.0.1:1"]).get("k")


def test_the_keys_of_agents_and_leader_do_not_overlap() -> None:
    assert agent_key("a1").startswith(AGENTS_PREFIX)
    assert not LEADER_KEY.startswith(AGENTS_PREFIX)
