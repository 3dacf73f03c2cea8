"""A few lines of HTTP for what machines ask of a service: /metrics, /healthz, /readyz."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest

from muster.domain.errors import ConfigurationError
from muster.rpc.server import is_loopback

# A scraper's request line and headers; anything longer is no scraper.
_MAX_REQUEST_BYTES = 16 * 1024
_READ_TIMEOUT_S = 5.0


class MetricsServer:
    """`ready()` gives None when the service is ready, else the sentence that says why not."""

    def __init__(
        self,
        listen: str,
        ready: Callable[[], str | None],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        if not is_loopback(listen):
            raise ConfigurationError(
                "MUSTER_METRICS_LISTEN", listen, "without mTLS a service listens on loopback only"
            )
        self._host, port = listen.rsplit(":", 1)
        self._port = int(port)
        self._ready = ready
        self._registry = registry
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        """Listens, and gives the port."""
        try:
            self._server = await asyncio.start_server(
                self._serve, self._host, self._port, limit=_MAX_REQUEST_BYTES
            )
        except OSError as error:
            raise ConfigurationError(
                "MUSTER_METRICS_LISTEN",
                f"{self._host}:{self._port}",
                f"the address cannot be listened on ({error.strerror})",
            ) from error
        self._port = int(self._server.sockets[0].getsockname()[1])
        return self._port

    async def stop(self) -> None:
        """Stops listening."""
        if self._server is not None:
            self._server.close()

    def _answer(self, path: str) -> tuple[int, str, bytes]:
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        if path == "/healthz":
            return 200, "text/plain; charset=utf-8", b"ok\n"
        if path == "/readyz":
            why_not = self._ready()
            if why_not is None:
                return 200, "text/plain; charset=utf-8", b"ready\n"
            return 503, "text/plain; charset=utf-8", f"{why_not}\n".encode()
        return 404, "text/plain; charset=utf-8", b"only /metrics, /healthz and /readyz are here\n"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
            words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
            path = words[1].partition("?")[0] if len(words) == 3 else ""
            code, kind, body = self._answer(path)
            reason = {200: "OK", 404: "Not Found", 503: "Service Unavailable"}[code]
            writer.write(
                f"HTTP/1.1 {code} {reason}\r\nContent-Type: {kind}\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            )
            if not head.startswith(b"HEAD "):
                writer.write(body)
            await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            # Whoever asked has gone, or is no HTTP client: there is nobody to answer.
            return
        finally:
            writer.close()


def serve_metrics(
    listen: str, ready: Callable[[], str | None], registry: CollectorRegistry = REGISTRY
) -> MetricsServer:
    """A server for `listen` (host:port, port 0 = any); `await .start()` gives the port."""
    return MetricsServer(listen, ready, registry)
