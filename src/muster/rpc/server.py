"""A gRPC server as every service runs it: secret, errors, metrics, bounds."""

from __future__ import annotations

import hmac
import ipaddress
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import grpc
import structlog

from muster.api.v1 import calls_pb2_grpc
from muster.domain.errors import ConfigurationError, MusterError, Unauthenticated
from muster.rpc.call_service import CallService
from muster.rpc.channels import MAX_MESSAGE_BYTES, SECRET_KEY, WINDOW_OPTIONS
from muster.rpc.metrics import RPC_ERRORS, RPC_SECONDS
from muster.rpc.status import to_status

_LOG = structlog.get_logger("muster.rpc")

# Calls under way at once in one process; beyond it gRPC answers RESOURCE_EXHAUSTED.
_MAX_CONCURRENT_RPCS = 4_096

SERVER_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    *WINDOW_OPTIONS,
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
    # Two processes on one port would split the calls between them unseen.
    ("grpc.so_reuseport", 0),
)


def is_loopback(listen: str) -> bool:
    """Whether host:port can be reached from this machine only."""
    host = listen.rsplit(":", 1)[0].strip("[]")
    if host == "localhost" or listen.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Guard(grpc.aio.ServerInterceptor):
    """Checks the secret, turns MusterErrors into statuses, counts and times every call."""

    def __init__(self, secret: str, service: str) -> None:
        self._secret = secret.encode()
        self._service = service
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        method = handler_call_details.method
        metadata = dict(handler_call_details.invocation_metadata or ())
        given = metadata.get(SECRET_KEY, "")
        given_bytes = given if isinstance(given, bytes) else given.encode()
        if not hmac.compare_digest(given_bytes, self._secret):
            return _REFUSED
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return _UNKNOWN
            wrapped = self._wrapped[method] = self._wrap(handler, method.rsplit("/", 1)[-1])
        return wrapped

    def _wrap(self, handler: Any, method: str) -> Any:
        """The handler with errors mapped and figures taken; streams are timed as a whole."""
        seconds = RPC_SECONDS.labels(self._service, method)

        async def failed(error: Exception, context: Any) -> None:
            if isinstance(error, MusterError):
                code, text, trailing = to_status(error)
                RPC_ERRORS.labels(self._service, method, error.code).inc()
                await context.abort(code, text, trailing)
            RPC_ERRORS.labels(self._service, method, "internal").inc()
            _LOG.error("an RPC failed unexpectedly", method=method, exc_info=error)
            await context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")

        if handler.response_streaming:
            behaviour = handler.stream_stream or handler.unary_stream

            async def streaming(request: Any, context: Any) -> AsyncIterator[Any]:
                try:
                    async for response in behaviour(request, context):
                        yield response
                except grpc.aio.AbortError:
                    raise
                except Exception as error:  # noqa: BLE001  mapped, counted and logged
                    await failed(error, context)

            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(
                streaming,
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )

        behaviour = handler.stream_unary or handler.unary_unary

        async def unary(request: Any, context: Any) -> Any:
            started = time.perf_counter()
            try:
                return await behaviour(request, context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001  mapped, counted and logged
                await failed(error, context)
            finally:
                seconds.observe(time.perf_counter() - started)

        make_unary = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return make_unary(
            unary,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


async def _refuse(_requests: Any, context: Any) -> AsyncIterator[Any]:
    code, text, trailing = to_status(Unauthenticated("the cluster's join secret is wrong"))
    await context.abort(code, text, trailing)
    yield b""


async def _unknown(_requests: Any, context: Any) -> AsyncIterator[Any]:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "there is no such method")
    yield b""


# Streaming handlers, because these abort a call of any kind without waiting for its request.
_REFUSED: Any = grpc.stream_stream_rpc_method_handler(_refuse)
_UNKNOWN: Any = grpc.stream_stream_rpc_method_handler(_unknown)


class RpcServer:
    """One listening gRPC server. `listen` is host:port, port 0 = any free one."""

    def __init__(self, listen: str, *, secret: str, service: str) -> None:
        if not is_loopback(listen):
            raise ConfigurationError(
                "MUSTER_LISTEN", listen, "without mTLS a service listens on loopback only"
            )
        if len(secret) < 16:
            raise ConfigurationError(
                "MUSTER_JOIN_SECRET", "…", "a secret of at least 16 characters is needed"
            )
        self._listen = listen
        self._server = grpc.aio.server(
            interceptors=(_Guard(secret, service),),
            options=SERVER_OPTIONS,
            maximum_concurrent_rpcs=_MAX_CONCURRENT_RPCS,
        )
        self._calls = CallService(service)
        calls_pb2_grpc.add_CallServiceServicer_to_server(self._calls, self._server)
        self.port = 0

    def add(self, adder: Callable[[Any, Any], None], servicer: object) -> None:
        """Adds a servicer with its generated `add_…_to_server`."""
        adder(servicer, self)

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Called by the generated `add_…_to_server`."""
        self._server.add_generic_rpc_handlers(tuple(handlers))

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Called by the generated `add_…_to_server`; the calls of a stream find them too."""
        self._calls.add(service, handlers)
        self._server.add_registered_method_handlers(service, dict(handlers))

    async def start(self) -> int:
        """Listens, and gives the port; raises ConfigurationError when it is taken."""
        try:
            self.port = self._server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise ConfigurationError(
                "MUSTER_LISTEN", self._listen, f"the address cannot be listened on ({error})"
            ) from error
        if self.port == 0 and not self._listen.startswith("unix:"):
            raise ConfigurationError("MUSTER_LISTEN", self._listen, "the address is taken")
        await self._server.start()
        return self.port

    async def stop(self, grace_s: float = 2.0) -> None:
        """Takes no new call, gives those under way `grace_s` seconds."""
        self._calls.close()
        await self._server.stop(grace_s)
