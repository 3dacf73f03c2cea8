"""What an outbound request may look like, and which redirects it follows. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import Final
from urllib.parse import quote, urljoin, urlsplit

from muster.domain.errors import InvalidInput, PermissionDenied
from muster.outbound.addresses import HOST_NAME, parse_address

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
# Servers commonly refuse longer ones.
MAX_URL_CHARS: Final = 8_192
MAX_HEADERS: Final = 64
MAX_HEADER_CHARS: Final = 8_192
MAX_REDIRECTS: Final = 3
MAX_BODY_BYTES: Final = 16 * 1024 * 1024
_PORTS: Final = {"http": 80, "https": 443}
_TOKEN: Final = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]{1,128}")
# Visible ASCII, space and tab: no line can be ended, so no header can be smuggled in.
_FIELD_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")
_UNFIT_FOR_URL: Final = re.compile(r"[\x00-\x20\x7f\\]")
# They say where a message ends or whom it is for, which is the connection's own business.
RESERVED_HEADERS: Final = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_SEE_OTHER: Final = frozenset({301, 302, 303})
_REPEAT: Final = frozenset({307, 308})


class OutboundRefused(PermissionDenied):
    """The rules for outbound calls forbid this address or redirect."""

    code = "outbound_refused"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes. `host` is lower case, an IPv6 address without brackets; `path` has
    the query and is ASCII."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """As the Host header has it: without the scheme's own port."""
        host = f"[{self.host}]" if isinstance(parse_address(self.host), IPv6Address) else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


@dataclass(frozen=True, slots=True)
class OutboundRequest:
    """A checked request; `headers` without Host and those that frame the message."""

    method: str
    target: Target
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


def parse_url(text: str, field: str = "url") -> Target:
    """Raises InvalidInput. The fragment is dropped; user names in a URL are refused."""
    if not 0 < len(text) <= MAX_URL_CHARS:
        raise InvalidInput(field, text, f"1 to {MAX_URL_CHARS} characters")
    if _UNFIT_FOR_URL.search(text):
        raise InvalidInput(field, text, "no spaces, control characters or backslashes")
    try:
        parts = urlsplit(text)
        port, host = parts.port, (parts.hostname or "")
    except ValueError as error:
        raise InvalidInput(field, text, f"a URL is needed ({error})") from None
    if parts.scheme not in _PORTS:
        raise InvalidInput(field, text, "http:// or https:// is needed")
    if parts.username is not None or parts.password is not None:
        # Not quoted back: there may be a password in it.
        raise InvalidInput(field, "…@" + host, "no user name or password in the address")
    host = host.removesuffix(".")
    if parse_address(host) is None and not HOST_NAME.fullmatch(host):
        limit = "a host name in ASCII (xn--… for others) or an address is needed"
        raise InvalidInput(field, text, limit)
    if port == 0:
        raise InvalidInput(field, text, "a port from 1 to 65535")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        path += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?[]")
    return Target(parts.scheme, host, port or _PORTS[parts.scheme], path)


def parse_headers(
    headers: Mapping[str, str], field: str = "headers"
) -> tuple[tuple[str, str], ...]:
    """Raises InvalidInput on what could end a line, frame the message or name another host."""
    if len(headers) > MAX_HEADERS:
        raise InvalidInput(field, len(headers), f"at most {MAX_HEADERS} headers")
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name):
            raise InvalidInput(field, name, "a header's name has letters, digits and -")
        if name.lower() in RESERVED_HEADERS or name.lower().startswith("proxy-"):
            raise InvalidInput(f"{field}.{name}", value, "this header is set by the agent alone")
        if len(value) > MAX_HEADER_CHARS or not _FIELD_VALUE.fullmatch(value):
            limit = f"up to {MAX_HEADER_CHARS} printable ASCII characters on one line"
            raise InvalidInput(f"{field}.{name}", value, limit)
    return tuple(headers.items())


def parse_method(text: str, field: str = "method") -> str:
    """Raises InvalidInput."""
    if text not in METHODS:
        raise InvalidInput(field, text, "one of " + ", ".join(METHODS))
    return text


def is_redirect(status: int) -> bool:
    """Whether the status asks to go elsewhere."""
    return status in _SEE_OTHER or status in _REPEAT


def redirected(request: OutboundRequest, status: int, location: str) -> OutboundRequest:
    """The next request; raises OutboundRefused unless it stays with the same server.

    The same server is the same host, scheme and port, or the step from http to https with the
    schemes' own ports.
    """
    here = request.target
    try:
        there = parse_url(urljoin(here.url, location), "Location")
    except (InvalidInput, ValueError) as error:
        raise OutboundRefused(f"{here.host} redirects, but not to a usable URL: {error}") from None
    same = (there.scheme, there.host, there.port) == (here.scheme, here.host, here.port)
    upgrade = (here.scheme, here.port, there.scheme, there.port) == ("http", 80, "https", 443)
    if not same and not (upgrade and there.host == here.host):
        raise OutboundRefused(
            f"{here.authority} redirects to {there.scheme}://{there.authority}; "
            "redirects to another host, scheme or port are not followed"
        )
    if status in _REPEAT or request.method in ("GET", "HEAD"):
        return replace(request, target=there)
    kept = tuple((n, v) for n, v in request.headers if not n.lower().startswith("content-"))
    return OutboundRequest("GET", there, kept)
