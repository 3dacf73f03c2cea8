"""Registrations as they lie in etcd: AgentRecord messages under the agent's key."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from muster.api.v1 import agent_pb2
from muster.domain.agent import AgentRecord
from muster.domain.errors import InvalidInput
from muster.etcd.keyvalue import KeyValue
from muster.rpc.conversion import agent_record_from_proto, agent_record_to_proto
from muster_registry.agent_view import Member


def encode(record: AgentRecord, key_hash: bytes) -> bytes:
    """The value of the agent's key; the revision is etcd's to give."""
    message = agent_record_to_proto(record)
    message.revision = 0
    message.instance_key_hash = key_hash
    return message.SerializeToString()


def decode(kv: KeyValue) -> Member | None:
    """None when this version of Muster cannot read it."""
    try:
        message = agent_pb2.AgentRecord.FromString(kv.value)
        message.revision = kv.mod_revision
        return Member(agent_record_from_proto(message), message.instance_key_hash)
    except (DecodeError, InvalidInput):
        return None
