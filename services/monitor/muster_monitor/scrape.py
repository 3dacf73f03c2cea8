"""Reads the services' /metrics pages each few seconds: bounded in time, size and number.

Every monitor reads every replica by itself, so there is nothing to agree on; alerts join what two
monitors say of the same service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from muster.domain.errors import InvalidInput
from muster_monitor import metrics
from muster_monitor.senses import Senses
from muster_monitor.service_figures import Series, Target, parse_page

_LOG = structlog.get_logger("muster.monitor")

SCRAPE_EVERY_S = 5.0
SCRAPE_TIMEOUT_S = 2.0
MAX_PAGE_BYTES = 4 * 1024 * 1024
_AT_ONCE = 8


async def watch_services(
    targets: Sequence[Target],
    senses: Senses,
    boot_ms: Callable[[], int],
    wall_ms: Callable[[], int],
) -> None:
    """Until cancelled."""
    slots = asyncio.Semaphore(_AT_ONCE)
    silent: set[Target] = set()
    while targets:
        wanted = senses.service_metrics
        async with asyncio.TaskGroup() as group:
            reads = {
                t: group.create_task(_read(t, wanted, slots), name=f"read {t.address}")
                for t in targets
            }
        readings = {target: task.result() for target, task in reads.items()}
        for target, series in readings.items():
            if series is None and target not in silent:
                _LOG.warning("a service does not show its metrics", **_named(target))
            elif series is not None and target in silent:
                _LOG.info("a service shows its metrics again", **_named(target))
        silent = {target for target, series in readings.items() if series is None}
        senses.services_read(readings, boot_ms(), wall_ms())
        await asyncio.sleep(SCRAPE_EVERY_S)


def _named(target: Target) -> dict[str, str]:
    return {"of": target.service, "at": target.address}


async def _read(
    target: Target, wanted: frozenset[str], slots: asyncio.Semaphore
) -> list[Series] | None:
    """None when the service does not answer with such a page in time."""
    async with slots:
        try:
            async with asyncio.timeout(SCRAPE_TIMEOUT_S):
                page = await fetch_page(target.address)
            return parse_page(page, wanted)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, InvalidInput) as error:
            metrics.SCRAPE_ERRORS.labels(target.service, type(error).__name__).inc()
            return None


async def fetch_page(address: str) -> str:
    """The body of `GET /metrics`. Raises OSError or InvalidInput; the caller sets the deadline."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        request = f"GET /metrics HTTP/1.0\r\nHost: {address}\r\nAccept: text/plain\r\n\r\n"
        writer.write(request.encode())
        await writer.drain()
        answer = bytearray()
        while chunk := await reader.read(64 * 1024):
            answer += chunk
            if len(answer) > MAX_PAGE_BYTES:
                raise InvalidInput("metrics", len(answer), f"at most {MAX_PAGE_BYTES} bytes")
    finally:
        writer.close()
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or words[1] != b"200":
        raise InvalidInput("metrics", head[:80], "an HTTP answer with status 200")
    return body.decode(errors="replace")
