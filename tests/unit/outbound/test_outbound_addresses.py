"""Which addresses outbound calls may reach."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.domain.errors import ConfigurationError
from muster.outbound.addresses import AllowList, blocked_reason, parse_address

PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001::200e"]
BLOCKED = {
    "0.0.0.0": "this network",
    "10.1.2.3": "private",
    "100.64.0.1": "private",
    "100.100.100.200": "metadata",
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "168.63.129.16": "metadata",
    "169.254.169.254": "metadata",
    "169.254.170.2": "metadata",
    "169.254.1.1": "link-local",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.0.0.192": "metadata",
    "192.0.0.8": "reserved",
    "192.0.2.1": "documentation",
    "192.88.99.1": "6to4",
    "192.168.1.1": "private",
    "198.18.0.1": "benchmarking",
    "198.51.100.7": "documentation",
    "203.0.113.7": "documentation",
    "224.0.0.1": "multicast",
    "239.255.255.255": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "reserved",
    "::": "unspecified",
    "::1": "loopback",
    "::127.0.0.1": "reserved",
    "::ffff:127.0.0.1": "IPv4-mapped",
    "::ffff:8.8.8.8": "IPv4-mapped",
    "64:ff9b::7f00:1": "NAT64",
    "64:ff9b:1::1": "NAT64",
    "2001:0:1::1": "Teredo",
    "2001:10::1": "reserved",
    "2001:db8::1": "documentation",
    "2002:7f00:1::1": "6to4",
    "3fff::1": "documentation",
    "4000::1": "reserved",
    "fc00::1": "private",
    "fd00:ec2::254": "metadata",
    "fe80::1": "link-local",
    "fec0::1": "site-local",
    "ff02::1": "multicast",
}


@pytest.mark.parametrize("text", PUBLIC)
def test_the_internet_may_be_called(text: str) -> None:
    assert AllowList().refusal("any.test", ip_address(text)) == ""


@pytest.mark.parametrize(("text", "reason"), BLOCKED.items())
def test_all_else_is_refused_and_named(text: str, reason: str) -> None:
    refusal = AllowList().refusal("any.test", ip_address(text))
    assert reason in refusal
    assert str(ip_address(text)) in refusal


@given(st.ip_addresses())
def test_nothing_is_called_that_the_registries_do_not_call_global(address: object) -> None:
    found = ip_address(str(address))
    if not blocked_reason(found):
        assert found.is_global
        assert not found.is_multicast


def test_networks_hosts_and_suffixes_allow() -> None:
    allow = AllowList.parse(" 10.0.0.0/8, fd00::/8,127.0.0.1 , llm.internal, *.Corp.test ")
    for host, address in (
        ("x.test", "10.9.9.9"),
        ("x.test", "127.0.0.1"),
        ("x.test", "fd00::1"),
        ("llm.internal", "192.168.0.1"),
        ("a.b.corp.test", "::1"),
    ):
        assert allow.refusal(host, ip_address(address)) == "", (host, address)
    for host, address in (
        ("x.test", "127.0.0.2"),
        ("x.test", "::ffff:10.0.0.1"),
        ("corp.test", "192.168.0.1"),
        ("evilcorp.test", "192.168.0.1"),
        ("llm.internal.evil.test", "192.168.0.1"),
        ("my.llm.internal", "192.168.0.1"),
    ):
        assert allow.refusal(host, ip_address(address)), (host, address)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "*", "a b", "http://x", "*.*.test"])
def test_a_bad_entry_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match="MUSTER_OUTBOUND_ALLOW") as caught:
        AllowList.parse(f"10.0.0.0/8,{text}")
    assert caught.value.value == text


def test_the_list_is_bounded() -> None:
    with pytest.raises(ConfigurationError, match="at most 256"):
        AllowList.parse(",".join(["a.test"] * 257))


@pytest.mark.parametrize("text", ["fe80::1%eth0", "127.1", "2130706433", "0x7f.1", "010.0.0.1", ""])
def test_only_plain_addresses_are_addresses(text: str) -> None:
    assert parse_address(text) is None
