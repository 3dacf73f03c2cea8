"""One table between Muster's errors and gRPC's status codes, used on both ends of a call.

The server puts the error's class and constructor arguments into trailing metadata, so that the
client raises the same error. A peer that is no Muster yields the nearest class by status code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import grpc
import msgspec

from muster.domain import errors
from muster.domain.errors import MusterError

ERROR_KEY = "muster-error-bin"
# Metadata is limited to 8 KiB by many peers; an error's arguments are cut well below.
_MAX_ARGUMENT_CHARS = 1024

# When a server ends a stream while it is being written to, grpc.aio may put these words of its own
# in the place of the server's status (grpc#36066): the true reason is lost.
_LOST_STATUS = "Internal error from Core"
# What `Unavailable.detail` says then.
REASON_LOST = "it ended the stream while it was being written to"

# Class → (status code, attributes that its constructor takes in order; None = the message).
_TABLE: Mapping[type[MusterError], tuple[grpc.StatusCode, tuple[str, ...] | None]] = {
    errors.InvalidInput: (grpc.StatusCode.INVALID_ARGUMENT, ("field", "value", "limit")),
    errors.TooLarge: (grpc.StatusCode.OUT_OF_RANGE, ("field", "value", "limit")),
    errors.NotFound: (grpc.StatusCode.NOT_FOUND, ("kind", "ident")),
    errors.Conflict: (grpc.StatusCode.ALREADY_EXISTS, None),
    errors.PreconditionFailed: (grpc.StatusCode.ABORTED, None),
    errors.Unauthenticated: (grpc.StatusCode.UNAUTHENTICATED, None),
    errors.PermissionDenied: (grpc.StatusCode.PERMISSION_DENIED, None),
    errors.Overloaded: (grpc.StatusCode.RESOURCE_EXHAUSTED, None),
    errors.Unavailable: (grpc.StatusCode.UNAVAILABLE, ("what", "detail", "retry_after_s")),
    errors.NotLeader: (grpc.StatusCode.FAILED_PRECONDITION, ("leader",)),
    errors.StoreRolledBack: (grpc.StatusCode.FAILED_PRECONDITION, ("why",)),
    errors.DeadlineExceeded: (grpc.StatusCode.DEADLINE_EXCEEDED, ("what", "seconds")),
    errors.StaleTerm: (grpc.StatusCode.FAILED_PRECONDITION, ("given", "current")),
}
_BY_NAME = {cls.__name__: cls for cls in _TABLE}
_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_BY_CODE: Mapping[grpc.StatusCode, type[MusterError]] = {
    code: cls for cls, (code, _) in reversed(list(_TABLE.items()))
}


def to_status(error: MusterError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Status code, message and trailing metadata for an error of the tree."""
    for cls in type(error).__mro__:
        if cls in _TABLE:
            break
    else:
        return grpc.StatusCode.INTERNAL, str(error), ()
    code, attributes = _TABLE[cls]
    arguments = [str(error)] if attributes is None else [getattr(error, a) for a in attributes]
    plain = [a if isinstance(a, int | float) else str(a)[:_MAX_ARGUMENT_CHARS] for a in arguments]
    packed = msgspec.msgpack.encode([cls.__name__, plain])
    return code, str(error)[:_MAX_ARGUMENT_CHARS], ((ERROR_KEY, packed),)


def from_rpc_error(error: grpc.aio.AioRpcError, what: str, timeout_s: float = 0.0) -> MusterError:
    """The MusterError that a peer raised, or the nearest to a failure of the call itself."""
    packed = b""
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_KEY and isinstance(value, bytes):
            packed = value
    return _error_of(error.code(), error.details() or "", packed, what, timeout_s)


def from_parts(code: int, detail: str, packed: bytes, what: str) -> MusterError:
    """As `from_rpc_error`, of an error that travelled in a message: its status code's number, its
    text, and what the trailing metadata would have held."""
    return _error_of(_CODES.get(code, grpc.StatusCode.UNKNOWN), detail, packed, what, 0.0)


def _error_of(
    code: grpc.StatusCode, detail: str, packed: bytes, what: str, timeout_s: float
) -> MusterError:
    if packed:
        try:
            name, arguments = msgspec.msgpack.decode(packed, type=tuple[str, list[object]])
        except msgspec.DecodeError:
            name, arguments = "", []
        cls = _BY_NAME.get(name)
        if cls is not None:
            return cls(*arguments)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineExceeded(what, timeout_s)
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return errors.Unavailable(what, detail)
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return _BY_CODE[code](detail)
    if code is grpc.StatusCode.INTERNAL and detail.startswith(_LOST_STATUS):
        return errors.Unavailable(what, REASON_LOST)
    return MusterError(f"{what}: {code.name}: {detail}")


@contextmanager
def rpc_errors(what: str, timeout_s: float = 0.0) -> Iterator[None]:
    """Turns the gRPC errors of the calls inside into MusterErrors."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, what, timeout_s) from error
