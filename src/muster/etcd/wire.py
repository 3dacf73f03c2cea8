"""Conversion between etcd's protobuf messages and plain values; stubs come from etcd3aio."""

from __future__ import annotations

from typing import Any, Final

import grpc
from etcd3aio import _protobuf as pb

from muster.domain.errors import InvalidInput
from muster.etcd.keyvalue import EtcdStatus, KeyValue, KeyVersion
from muster.etcd.watch_core import EventKind, WatchAnswer, WatchEvent

# etcd's messages are untyped in etcd3aio; they do not leave this package.
Message = Any

# A member that has lost its leader ends the call instead of leaving it hanging.
REQUIRE_LEADER: Final = (("hasleader", "true"),)

# A full page of agents, or a thousand revisions on one watch answer, must fit.
_MAX_RECEIVE_BYTES = 64 * 1024 * 1024

CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", _MAX_RECEIVE_BYTES),
    # etcd refuses pings that come more often than every 5 s.
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    # An etcd that comes back is noticed within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A new channel must be a new connection, or it would inherit a dead one.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


def open_channel(
    endpoint: str, credentials: grpc.ChannelCredentials | None = None
) -> grpc.aio.Channel:
    """A channel to `host:port`, `http://host:port` or `https://host:port`."""
    scheme, _, target = endpoint.rpartition("://")
    target = target.rstrip("/")
    if scheme not in ("", "http", "https") or ":" not in target:
        raise InvalidInput(
            "etcd endpoint", endpoint, "it must be host:port, with http:// or https:// at most"
        )
    if scheme == "https" or (credentials is not None and scheme == ""):
        used = credentials or grpc.ssl_channel_credentials()
        return grpc.aio.secure_channel(target, used, options=CHANNEL_OPTIONS)
    return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all keys with `prefix`; an empty prefix means every key."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\x00"


# ---------------------------------------------------------------- requests


def range_request(
    start: bytes, end: bytes, *, limit: int = 0, revision: int = 0, keys_only: bool = False
) -> Message:
    return pb.RangeRequest(
        key=start, range_end=end, limit=limit, revision=revision, keys_only=keys_only
    )


def put_request(key: str, value: bytes, lease_id: int) -> Message:
    return pb.PutRequest(key=key.encode(), value=value, lease=lease_id)


def delete_request(key: str) -> Message:
    return pb.DeleteRangeRequest(key=key.encode())


def put_if_revision(key: str, mod_revision: int, value: bytes, lease_id: int) -> Message:
    """Writes when the key's last write is `mod_revision` (0: absent), else reads the key."""
    put = pb.RequestOp(request_put=put_request(key, value, lease_id))
    return _if_revision(key, mod_revision, put)


def delete_if_revision(key: str, mod_revision: int) -> Message:
    """Deletes when the key's last write is `mod_revision`, else reads the key."""
    return _if_revision(key, mod_revision, pb.RequestOp(request_delete_range=delete_request(key)))


def _if_revision(key: str, mod_revision: int, then: Message) -> Message:
    compare = pb.Compare(
        result=pb.Compare.EQUAL,
        target=pb.Compare.MOD,
        key=key.encode(),
        mod_revision=mod_revision,
    )
    read = pb.RequestOp(request_range=range_request(key.encode(), b""))
    return pb.TxnRequest(compare=[compare], success=[then], failure=[read])


def grant_request(ttl_s: int) -> Message:
    return pb.LeaseGrantRequest(TTL=ttl_s)


def revoke_request(lease_id: int) -> Message:
    return pb.LeaseRevokeRequest(ID=lease_id)


def keep_alive_request(lease_id: int) -> Message:
    return pb.LeaseKeepAliveRequest(ID=lease_id)


def status_request() -> Message:
    return pb.StatusRequest()


def watch_request(start: bytes, end: bytes, revision: int) -> Message:
    return pb.WatchRequest(
        create_request=pb.WatchCreateRequest(
            key=start, range_end=end, start_revision=revision, progress_notify=True
        )
    )


def progress_request() -> Message:
    return pb.WatchRequest(progress_request={})


# ---------------------------------------------------------------- answers


def key_value(message: Message) -> KeyValue:
    return KeyValue(
        key=message.key.decode("utf-8", "surrogateescape"),
        value=message.value,
        mod_revision=message.mod_revision,
        create_revision=message.create_revision,
        lease_id=message.lease,
    )


def key_version(message: Message) -> KeyVersion:
    return KeyVersion(message.mod_revision, message.create_revision, message.lease)


def found_instead(txn_answer: Message) -> KeyValue | None:
    """What a lost comparison read."""
    kvs = txn_answer.responses[0].response_range.kvs
    return key_value(kvs[0]) if kvs else None


def status(message: Message) -> EtcdStatus:
    return EtcdStatus(
        version=message.version,
        leader=message.leader,
        revision=message.header.revision,
        errors=tuple(message.errors),
    )


def watch_answer(message: Message) -> WatchAnswer:
    return WatchAnswer(
        watch_id=message.watch_id,
        revision=message.header.revision,
        created=message.created,
        canceled=message.canceled,
        compact_revision=message.compact_revision,
        cancel_reason=message.cancel_reason,
        events=tuple(
            WatchEvent(EventKind.DELETE if event.type else EventKind.PUT, key_value(event.kv))
            for event in message.events
        ),
    )


# ---------------------------------------------------------------- stubs


def unary_methods(channel: grpc.aio.Channel) -> dict[str, Any]:
    """The calls that `EtcdClient` makes, by name."""
    kv, lease = pb.KVStub(channel), pb.LeaseStub(channel)
    return {
        "Range": kv.Range,
        "Put": kv.Put,
        "DeleteRange": kv.DeleteRange,
        "Txn": kv.Txn,
        "LeaseGrant": lease.LeaseGrant,
        "LeaseRevoke": lease.LeaseRevoke,
        "Status": pb.MaintenanceStub(channel).Status,
    }


def start_watch(channel: grpc.aio.Channel) -> grpc.aio.StreamStreamCall[Message, Message]:
    call: grpc.aio.StreamStreamCall[Message, Message] = pb.WatchStub(channel).Watch(
        metadata=REQUIRE_LEADER
    )
    return call


def start_keep_alive(channel: grpc.aio.Channel) -> grpc.aio.StreamStreamCall[Message, Message]:
    call: grpc.aio.StreamStreamCall[Message, Message] = pb.LeaseStub(channel).LeaseKeepAlive(
        metadata=REQUIRE_LEADER
    )
    return call
