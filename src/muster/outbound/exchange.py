"""One outbound request and its answer, over a connection that goes where was checked.

The host's name is resolved once, each address is judged, and the connection is made to the very
address that passed: a name that means something else a moment later (DNS rebinding) changes
nothing. Name and certificate are still those of the host: the Host header and TLS see it. A
connection serves one request, so none that was opened for one host is used for another. No
proxy of the environment is asked.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from muster.domain.errors import DeadlineExceeded, TooLarge, Unavailable
from muster.outbound.addresses import ALLOW_VARIABLE, Address, AllowList, parse_address
from muster.outbound.requests import (
    MAX_REDIRECTS,
    OutboundRefused,
    OutboundRequest,
    Target,
    is_redirect,
    redirected,
)

if TYPE_CHECKING:
    import httpx

# A host that is there answers a SYN within this; the next address gets its turn then.
CONNECT_TIMEOUT_S: Final = 10.0
# A name may have many addresses; a dead host must not take them all one after another.
MAX_ADDRESSES: Final = 4

Resolve = Callable[[str, int], Awaitable[list[str]]]


@dataclass(frozen=True, slots=True)
class Limits:
    """`timeout_s` is for all of it, to the last byte; `redirects` 0 to 3, 0 = give them back."""

    timeout_s: float
    max_bytes: int
    redirects: int = MAX_REDIRECTS


async def resolve_name(host: str, port: int) -> list[str]:
    """The host's addresses as the system resolves them; raises Unavailable."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unavailable(host, f"the name cannot be resolved: {error}") from None
    return [str(address[0]) for *_, address in found]


class Answer:
    """Status, headers (names in lower case) and body of what `target` answered."""

    def __init__(
        self, target: Target, response: httpx.Response, limits: Limits, deadline_s: float
    ) -> None:
        self.target = target
        self.status = response.status_code
        self.headers = [(n.decode().lower(), v.decode("latin-1")) for n, v in response.headers.raw]
        self._response, self._limits, self._deadline_s = response, limits, deadline_s

    def header(self, name: str) -> str:
        """The first of that name, in lower case; "" = there is none."""
        return next((v for n, v in self.headers if n == name), "")

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes.

        Raises TooLarge past the limit, DeadlineExceeded, and Unavailable when it is cut.
        """
        most = self._limits.max_bytes
        declared = self.header("content-length")
        if declared.isdigit() and int(declared) > most:
            raise TooLarge(f"the answer of {self.target.host}", int(declared), _at_most(most))
        total = 0
        stream = self._response.aiter_raw()
        while True:
            with _as_ours(self.target, self._limits):
                async with asyncio.timeout_at(self._deadline_s):
                    chunk = await anext(stream, b"")
            if not chunk:
                return
            total += len(chunk)
            if total > most:
                raise TooLarge(f"the answer of {self.target.host}", total, _at_most(most))
            yield chunk

    async def read(self) -> bytes:
        """The whole body; raises as `chunks`."""
        return b"".join([chunk async for chunk in self.chunks()])


def _at_most(max_bytes: int) -> str:
    return f"at most {max_bytes} bytes are taken"


class Outbound:
    """Makes calls under one allow-list. `allow_hint` says who can lengthen it; `tls` replaces the
    system's trust, for tests."""

    def __init__(
        self,
        allow: AllowList,
        *,
        resolve: Resolve = resolve_name,
        tls: ssl.SSLContext | None = None,
        allow_hint: str = f"{ALLOW_VARIABLE} on the agent can allow it",
    ) -> None:
        self._allow, self._resolve, self._tls = allow, resolve, tls
        self._allow_hint = allow_hint

    @asynccontextmanager
    async def open(self, request: OutboundRequest, limits: Limits) -> AsyncIterator[Answer]:
        """Sends the request, follows what may be followed, and closes the connection after use.

        Raises OutboundRefused, Unavailable when there is no answer, DeadlineExceeded.
        """
        deadline_s = asyncio.get_running_loop().time() + limits.timeout_s
        for followed in range(limits.redirects + 1):
            async with self._sent(request, limits, deadline_s) as response:
                location = response.headers.get("location", "")
                if not limits.redirects or not is_redirect(response.status_code) or not location:
                    yield Answer(request.target, response, limits, deadline_s)
                    return
            if followed < limits.redirects:
                request = redirected(request, response.status_code, location)
        raise OutboundRefused(f"{request.target.host} redirects more than {limits.redirects} times")

    @asynccontextmanager
    async def _sent(
        self, request: OutboundRequest, limits: Limits, deadline_s: float
    ) -> AsyncIterator[httpx.Response]:
        import httpx  # noqa: PLC0415  see the package's docstring

        transport = httpx.AsyncHTTPTransport(
            verify=self._tls or _system_trust(),
            trust_env=False,
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=0),
        )
        async with transport:
            with _as_ours(request.target, limits):
                async with asyncio.timeout_at(deadline_s):
                    addresses = await self._checked(request.target)
                    response = await _first_answer(transport, request, addresses, limits)
            try:
                yield response
            finally:
                await response.aclose()

    async def _checked(self, target: Target) -> list[Address]:
        literal = parse_address(target.host)
        if literal is None:
            texts = await self._resolve(target.host, target.port)
            found = list(dict.fromkeys(a for text in texts if (a := parse_address(text))))
        else:
            found = [literal]
        refusals = [self._allow.refusal(target.host, address) for address in found]
        passed = [a for a, refusal in zip(found, refusals, strict=True) if not refusal]
        if not found:
            raise Unavailable(target.host, "the name has no usable address")
        if not passed:
            raise OutboundRefused(
                f"{target.host} may not be called: {refusals[0]}; {self._allow_hint}"
            )
        return passed[:MAX_ADDRESSES]


async def _first_answer(
    transport: httpx.AsyncHTTPTransport,
    request: OutboundRequest,
    addresses: list[Address],
    limits: Limits,
) -> httpx.Response:
    """From the first address that takes the connection; nothing is sent twice."""
    import httpx  # noqa: PLC0415  as above

    for address in addresses[:-1]:
        try:
            return await transport.handle_async_request(_wire(request, address, limits))
        except (httpx.ConnectError, httpx.ConnectTimeout):
            continue
    return await transport.handle_async_request(_wire(request, addresses[-1], limits))


def _wire(request: OutboundRequest, address: Address, limits: Limits) -> httpx.Request:
    import httpx  # noqa: PLC0415  as above

    target = request.target
    named = {name.lower() for name, _ in request.headers}
    defaults = [("Host", target.authority), ("Connection", "close")]
    # A compressed answer could unfold into far more than the limit.
    for name, value in (
        ("Accept-Encoding", "identity"),
        ("User-Agent", "muster"),
        ("Accept", "*/*"),
    ):
        if name.lower() not in named:
            defaults.append((name, value))
    host = f"[{address}]" if address.version == 6 else str(address)
    timeouts = {"connect": min(CONNECT_TIMEOUT_S, limits.timeout_s)}
    return httpx.Request(
        request.method,
        httpx.URL(f"{target.scheme}://{host}:{target.port}").copy_with(
            raw_path=target.path.encode("ascii")
        ),
        headers=[*defaults, *request.headers],
        content=request.body or None,
        # TLS asks for the host, and accepts only its certificate, whatever the address.
        extensions={"sni_hostname": target.host, "timeout": timeouts},
    )


@cache
def _system_trust() -> ssl.SSLContext:
    """The certificates of SSL_CERT_FILE, or those that come with httpx."""
    import httpx  # noqa: PLC0415  as above

    return httpx.create_ssl_context()


class _as_ours:  # noqa: N801  reads as a statement
    """Turns the errors of httpx and of the clock into Muster's."""

    def __init__(self, target: Target, limits: Limits) -> None:
        self._target, self._limits = target, limits

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        if error is None or not isinstance(error, Exception):
            return
        import httpx  # noqa: PLC0415  as above

        host = self._target.host
        if isinstance(error, TimeoutError):
            raise DeadlineExceeded(host, self._limits.timeout_s) from None
        if isinstance(error, httpx.TimeoutException):
            raise Unavailable(host, f"no connection within {CONNECT_TIMEOUT_S:g} s") from None
        if isinstance(error, httpx.TransportError):
            raise Unavailable(host, str(error) or type(error).__name__) from None
