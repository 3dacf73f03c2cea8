"""Which addresses an outbound call may reach: the public Internet, and what is allowed. Pure.

Sources: IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890 and later), and the
metadata addresses that cloud providers document.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final, Self

from muster.domain.errors import ConfigurationError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

ALLOW_VARIABLE: Final = "MUSTER_OUTBOUND_ALLOW"
# A list that somebody still reads; each address is compared with each entry.
MAX_ENTRIES: Final = 256
_ACCEPTED: Final = (
    "a comma list of networks (10.0.0.0/8, fd00::/8), addresses, and host names "
    "(llm.internal, *.example.com)"
)
HOST_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?(\.[a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?)*"
)

# The first match names the reason, so the narrow ones stand before the wide ones.
_BLOCKED: Final[tuple[tuple[Network, str], ...]] = tuple(
    (ip_network(network), reason)
    for network, reason in (
        # Hosts learn secrets there: AWS, Google, Azure and most others; ECS; Alibaba; Azure's
        # wire server (in public space); Oracle; AWS over IPv6.
        ("169.254.169.254/32", "a metadata address"),
        ("169.254.170.2/32", "a metadata address"),
        ("100.100.100.200/32", "a metadata address"),
        ("168.63.129.16/32", "a metadata address"),
        ("192.0.0.192/32", "a metadata address"),
        ("fd00:ec2::254/128", "a metadata address"),
        ("0.0.0.0/8", "an address of this network"),
        ("10.0.0.0/8", "a private address"),
        ("100.64.0.0/10", "a carrier's private address"),
        ("127.0.0.0/8", "a loopback address"),
        ("169.254.0.0/16", "a link-local address"),
        ("172.16.0.0/12", "a private address"),
        ("192.0.0.0/24", "a reserved address"),
        ("192.0.2.0/24", "a documentation address"),
        ("192.88.99.0/24", "a 6to4 relay"),
        ("192.168.0.0/16", "a private address"),
        ("198.18.0.0/15", "a benchmarking address"),
        ("198.51.100.0/24", "a documentation address"),
        ("203.0.113.0/24", "a documentation address"),
        ("224.0.0.0/4", "a multicast address"),
        ("240.0.0.0/4", "a reserved address"),
        ("::/128", "the unspecified address"),
        ("::1/128", "a loopback address"),
        ("::ffff:0:0/96", "an IPv4-mapped address"),
        ("64:ff9b::/96", "a NAT64 address"),
        ("64:ff9b:1::/48", "a NAT64 address"),
        ("2001::/32", "a Teredo address"),
        ("2001::/23", "a reserved address"),
        ("2001:db8::/32", "a documentation address"),
        ("2002::/16", "a 6to4 address"),
        ("3fff::/20", "a documentation address"),
        ("fc00::/7", "a private address"),
        ("fe80::/10", "a link-local address"),
        ("fec0::/10", "a site-local address"),
        ("ff00::/8", "a multicast address"),
    )
)
# All of IPv6 that is handed out to the Internet.
_IPV6_GLOBAL: Final = IPv6Network("2000::/3")


def parse_address(text: str) -> Address | None:
    """The address, or None when the text is none. Scoped addresses (fe80::1%eth0) are none."""
    try:
        return None if "%" in text else ip_address(text)
    except ValueError:
        return None


def blocked_reason(address: Address) -> str:
    """What kind of address it is that nobody may call unless it is allowed; "" = it is public."""
    for network, reason in _BLOCKED:
        if address.version == network.version and address in network:
            return reason
    if isinstance(address, IPv6Address) and address not in _IPV6_GLOBAL:
        return "a reserved address"
    return ""


@dataclass(frozen=True, slots=True)
class AllowList:
    """What may be called although it is not public: networks, host names, `*.` suffixes."""

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()
    suffixes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, key: str = ALLOW_VARIABLE) -> Self:
        """From a comma list; raises ConfigurationError naming `key` and the entry."""
        networks: list[Network] = []
        hosts: set[str] = set()
        suffixes: list[str] = []
        entries = [entry for part in text.split(",") if (entry := part.strip().lower())]
        if len(entries) > MAX_ENTRIES:
            raise ConfigurationError(key, len(entries), f"at most {MAX_ENTRIES} entries")
        for entry in entries:
            if "/" in entry or parse_address(entry):
                try:
                    networks.append(ip_network(entry))
                except ValueError as error:
                    raise ConfigurationError(key, entry, f"{_ACCEPTED} ({error})") from None
            elif entry.startswith("*.") and HOST_NAME.fullmatch(entry[2:]):
                suffixes.append(entry[1:])
            elif HOST_NAME.fullmatch(entry):
                hosts.add(entry)
            else:
                raise ConfigurationError(key, entry, _ACCEPTED)
        return cls(tuple(networks), frozenset(hosts), tuple(suffixes))

    def refusal(self, host: str, address: Address) -> str:
        """Why `address`, found under the name `host`, may not be called; "" = it may be."""
        reason = blocked_reason(address)
        if not reason or host in self.hosts or host.endswith(self.suffixes):
            return ""
        for network in self.networks:
            if address.version == network.version and address in network:
                return ""
        return f"{address} is {reason}"
