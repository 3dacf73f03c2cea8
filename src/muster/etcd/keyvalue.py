"""The values that cross this package's border: keys with their versions, and etcd's state."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key as etcd holds it; of a deleted key only `key` and `mod_revision` mean anything.

    `mod_revision` is the revision of the last write, `create_revision` that of the first one
    since the key was last absent; `lease_id` 0 means no lease.
    """

    key: str
    value: bytes
    mod_revision: int
    create_revision: int
    lease_id: int


@dataclass(frozen=True, slots=True)
class KeyVersion:
    """What tells two histories of a key apart without its value."""

    mod_revision: int
    create_revision: int
    lease_id: int


def version_of(kv: KeyValue) -> KeyVersion:
    return KeyVersion(kv.mod_revision, kv.create_revision, kv.lease_id)


@dataclass(frozen=True, slots=True)
class EtcdStatus:
    """One member's view. `leader` is a member id; `errors` names raised alarms, as NOSPACE."""

    version: str
    leader: int
    revision: int
    errors: tuple[str, ...]
