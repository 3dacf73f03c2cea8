"""The process around the application: uvicorn on a socket of our own, started and stopped."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Generator
from contextlib import contextmanager

import structlog
import uvicorn

from muster.domain.errors import ConfigurationError
from muster.rpc.metrics_http import serve_metrics
from muster_gateway.app import build_app
from muster_gateway.config import Config
from muster_gateway.gateway import Gateway

_LOG = structlog.get_logger("muster.gateway")

# Accepted by the kernel before the process gets to them, e.g. a burst of new clients.
_BACKLOG = 2_048
# Answers that are under way when the process is told to stop.
_GRACE_S = 3
_KEEP_ALIVE_S = 75


class _Server(uvicorn.Server):
    """Signals belong to `muster.rpc.process`."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def listen_on(address: str) -> socket.socket:
    """A listening socket for host:port. Raises ConfigurationError when it cannot be had."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, int(port)))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigurationError(
            "MUSTER_HTTP_LISTEN", address, f"the address cannot be listened on ({error.strerror})"
        ) from error
    sock.setblocking(False)
    return sock


class GatewayServer:
    """One gateway that serves. `start` gives the HTTP port; `run_until` serves."""

    def __init__(self, config: Config, *, log_access: bool = False) -> None:
        self.gateway = Gateway(config)
        self._config = config
        app = build_app(self.gateway, log_access=log_access)
        self._server = _Server(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                interface="asgi3",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                log_config=None,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )

    async def serve(self, stop: asyncio.Event, started: asyncio.Future[int] | None = None) -> None:
        """Until `stop` is set; `started` gets the HTTP port."""
        sock = listen_on(self._config.http_listen)
        port = int(sock.getsockname()[1])
        metrics = None
        try:
            if self._config.metrics_listen:
                metrics = serve_metrics(
                    self._config.metrics_listen, lambda: self.gateway.readiness.why_not
                )
                await metrics.start()
            self.gateway.start()
            serving = asyncio.create_task(self._server.serve([sock]), name="http")
            try:
                _LOG.info("the gateway listens", port=port)
                if started is not None:
                    started.set_result(port)
                await self.gateway.watch_over(stop)
            finally:
                self.gateway.end_streams()
                self._server.should_exit = True
                await serving
        finally:
            sock.close()
            if metrics is not None:
                await metrics.stop()
            await self.gateway.close()
