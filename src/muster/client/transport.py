"""What the clients share around httpx: its settings, and what becomes of its errors."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import httpx

from muster.client.exchange import Broken, Reply, Request, Send, Settings
from muster.client.gateways import PASSING, Gateways
from muster.client.target import find_target
from muster.domain.errors import InvalidInput
from muster.local.profile import Profile

CONNECT_S: Final = 5.0
DEFAULT_TIMEOUT_S: Final = 30.0
# A gateway that was killed is back within seconds, a leader within 5 s; twice as long is enough.
DEFAULT_RETRY_FOR_S: Final = 30.0
FILE_PIECE_BYTES: Final = 256 * 1024
# Of long-polls and streams too; the gateway's bound is 4,096 for all its clients.
_MAX_CONNECTIONS: Final = 1_000
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_random: Final = random.SystemRandom()


def new_key() -> str:
    """An Idempotency-Key of 128 random bits."""
    return f"sdk-{os.urandom(16).hex()}"


def settings_for(timeout: float, retry_for: float, gateways: Gateways) -> Settings:
    """The settings of a client, on this machine's clock; raises InvalidInput."""
    for name, value in (("timeout", timeout), ("retry_for", retry_for)):
        if not 0 <= value < float("inf"):
            raise InvalidInput(name, value, "seconds, 0 and more")
    return Settings(timeout, retry_for, time.monotonic, _random.random, new_key, len(gateways))


def target_of(url: str | None, api_key: str | None, environ: Mapping[str, str] | None) -> Profile:
    """The cluster that is meant; raises NoCluster."""
    return find_target(url, api_key, os.environ if environ is None else environ)


def is_near(urls: Iterable[str]) -> bool:
    """Whether one of them is on this machine."""
    return any(httpx.URL(url).host in _LOOPBACK for url in urls)


def http_options(target: Profile) -> dict[str, Any]:
    """Arguments for httpx's clients."""
    return {
        "headers": {"Authorization": f"Bearer {target.api_key}", "User-Agent": "muster-sdk"},
        "limits": httpx.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=100),
        # A proxy for the outside world must not see the key of a cluster on this machine.
        "trust_env": not is_near(target.urls),
    }


def timeout_of(step: Send) -> httpx.Timeout:
    """Silence is bounded. A free connection is waited for as long as the call may take."""
    pool_s = None if step.ends_s == math.inf else step.quiet_s
    return httpx.Timeout(step.quiet_s, connect=min(CONNECT_S, step.quiet_s), pool=pool_s)


def arguments_of(request: Request, url: str) -> dict[str, Any]:
    """For `build_request`, all but the content; `url` is the gateway's."""
    return {
        "method": request.method,
        "url": url + request.path,
        "params": dict(request.params) or None,
        "headers": dict(request.headers),
    }


def headers_of(response: httpx.Response) -> dict[str, str]:
    """By lower-case names."""
    return {name.lower(): value for name, value in response.headers.items()}


def broken(error: httpx.TransportError | httpx.StreamError) -> Broken:
    """What an error of httpx says of the request."""
    unsent = (
        httpx.ConnectError,
        httpx.ConnectTimeout,
        httpx.PoolTimeout,
        httpx.UnsupportedProtocol,
    )
    return Broken(str(error) or type(error).__name__, arrived=not isinstance(error, unsent))


def is_absence(answer: Reply | Broken | bytes | None) -> bool:
    """Whether the next request had better go to another gateway."""
    return isinstance(answer, Broken) or (isinstance(answer, Reply) and answer.status in PASSING)
