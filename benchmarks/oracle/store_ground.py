"""What Redis and etcd of a disturbed cluster stand on, and how the oracle speaks to them."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import hiredis
from etcd3aio import _protobuf as pb

from benchmarks.oracle.power_disk import PowerDisk, why_no_disks

REDIS_MIB, ETCD_MIB = 64, 320
# Small enough to be filled in a second; a cluster of this size needs a few kilobytes.
ETCD_QUOTA_BYTES = 16 * 1024 * 1024
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Stores:
    """`disks`: Redis and etcd write to disks whose power can be cut, and etcd has a small quota.
    `tapped`: their clients' calls can be answered with errors."""

    disks: bool = False
    tapped: bool = False

    @property
    def special(self) -> bool:
        return self.disks or self.tapped

    def why_not(self) -> str:
        """Why this machine has no such ground; empty when it has."""
        return why_no_disks() if self.disks else ""

    def etcd_args(self) -> list[str]:
        return [f"--quota-backend-bytes={ETCD_QUOTA_BYTES}"] if self.special else []

    def mount(self, folder: Path, state_dir: Path, mounted: dict[str, PowerDisk]) -> None:
        """Puts each disk into `mounted` when it is there, by the part that writes to it."""
        if not self.disks:
            return
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        sizes = {"redis": REDIS_MIB, "etcd": ETCD_MIB}
        for name, mebibytes in sizes.items():
            mounted[name] = PowerDisk(folder / f"{name}.image", state_dir / name, mebibytes)


class RedisTalk:
    """One connection to Redis, for a few commands."""

    def __init__(self, port: int, password: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
        self._reader = hiredis.Reader()
        if password:
            self("AUTH", password)

    def __enter__(self) -> RedisTalk:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def __call__(self, *command: str | int) -> Any:
        """The reply; raises hiredis.ReplyError and OSError."""
        self._socket.sendall(hiredis.pack_command(cast("Any", command)))
        while (reply := self._reader.gets()) is False:
            chunk = self._socket.recv(65_536)
            if not chunk:
                raise ConnectionResetError("Redis closed the connection")
            self._reader.feed(chunk)
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def info(self, section: str) -> dict[str, str]:
        lines = self("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)


class EtcdTalk:
    """Plain calls to etcd; each raises grpc.RpcError."""

    def __init__(self, port: int) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._kv, self._care = pb.KVStub(self._channel), pb.MaintenanceStub(self._channel)

    def __enter__(self) -> EtcdTalk:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def keys(self, prefix: str) -> dict[str, tuple[bytes, int]]:
        """Value and revision of the last write by key."""
        request = pb.RangeRequest(key=prefix.encode(), range_end=_end(prefix))
        answer = self._kv.Range(request, timeout=_TIMEOUT_S, wait_for_ready=True)
        return {kv.key.decode(): (kv.value, kv.mod_revision) for kv in answer.kvs}

    def put(self, key: str, value: bytes) -> int:
        """The revision."""
        answer = self._kv.Put(
            pb.PutRequest(key=key.encode(), value=value), timeout=_TIMEOUT_S, wait_for_ready=True
        )
        return int(answer.header.revision)

    def delete(self, prefix: str) -> int:
        """The revision."""
        request = pb.DeleteRangeRequest(key=prefix.encode(), range_end=_end(prefix))
        answer = self._kv.DeleteRange(request, timeout=_TIMEOUT_S, wait_for_ready=True)
        return int(answer.header.revision)

    def compact(self, revision: int) -> None:
        self._kv.Compact(pb.CompactionRequest(revision=revision, physical=True), timeout=_TIMEOUT_S)

    def make_room(self) -> None:
        """Gives compacted space back and ends the alarm."""
        self._care.Defragment(pb.DefragmentRequest(), timeout=_TIMEOUT_S)
        for alarm in self._alarm(0).alarms:
            self._care.Alarm(
                pb.AlarmRequest(action=2, memberID=alarm.memberID, alarm=alarm.alarm),
                timeout=_TIMEOUT_S,
            )

    def alarms(self) -> int:
        return len(self._alarm(0).alarms)

    def _alarm(self, action: int) -> Any:
        return self._care.Alarm(pb.AlarmRequest(action=action), timeout=_TIMEOUT_S)


def _end(prefix: str) -> bytes:
    raw = prefix.encode()
    return raw[:-1] + bytes([raw[-1] + 1])


def copy_of(folder: Path) -> Sequence[Path]:
    """What Redis keeps of its data there."""
    return sorted(folder.glob("appendonly*"))
