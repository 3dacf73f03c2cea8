"""A snapshot as bytes, so that another process can plan over it."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from muster_scheduler.placement.snapshot import Group, Snapshot

_Number = TypeVar("_Number", np.int64, np.float64, np.bool_)


class _Carried(msgspec.Struct, array_like=True):
    """Arrays of numbers column by column, as the agent table has them in memory."""

    names: tuple[str, ...]
    rows: int
    capacity: bytes
    used: bytes
    free: bytes
    alive: bytes
    placeable: bytes
    health: bytes
    agent_ids: tuple[str, ...]
    skills: tuple[frozenset[str], ...]
    labels: tuple[dict[str, str], ...]
    why_not: tuple[str, ...]
    device_free: dict[int, bytes]
    crowds: list[tuple[Group, dict[int, int]]]


_decoder = msgspec.msgpack.Decoder(_Carried)


def to_bytes(snapshot: Snapshot) -> bytes:
    """All that strategies look at. Copies, so the table may change as soon as this returns."""
    rows = snapshot.row_count
    return msgspec.msgpack.encode(
        _Carried(
            snapshot.names,
            rows,
            _columns(snapshot.capacity),
            _columns(snapshot.used),
            _columns(snapshot.free),
            snapshot.alive.tobytes(),
            snapshot.placeable.tobytes(),
            snapshot.health.tobytes(),
            tuple(snapshot.agent_ids[:rows]),
            tuple(snapshot.skills[:rows]),
            tuple(dict(labels) for labels in snapshot.labels[:rows]),
            tuple(snapshot.why_not[:rows]),
            {column: free.tobytes() for column, free in snapshot.device_free.items()},
            [(group, dict(counts)) for group, counts in snapshot.crowds.items()],
        )
    )


def from_bytes(blob: bytes) -> Snapshot:
    """A frozen snapshot equal to the one that `to_bytes` was given."""
    carried = _decoder.decode(blob)
    rows, columns = carried.rows, len(carried.names)
    capacity = _from_columns(carried.capacity, np.int64, columns, rows)
    return Snapshot(
        names=carried.names,
        columns={name: k for k, name in enumerate(carried.names)},
        capacity=capacity,
        used=_from_columns(carried.used, np.int64, columns, rows),
        free=_from_columns(carried.free, np.int64, columns, rows),
        divisor=np.maximum(capacity, 1).astype(np.float64, order="K"),
        alive=np.frombuffer(carried.alive, np.bool_),
        placeable=np.frombuffer(carried.placeable, np.bool_),
        health=np.frombuffer(carried.health, np.float64),
        agent_ids=carried.agent_ids,
        skills=carried.skills,
        labels=carried.labels,
        why_not=carried.why_not,
        rows={ident: row for row, ident in enumerate(carried.agent_ids) if ident},
        version=0,
        layout=0,
        device_free={
            column: np.frombuffer(free, np.int64).reshape(rows, -1)
            if rows
            else np.zeros((0, 0), np.int64)
            for column, free in carried.device_free.items()
        },
        crowds=dict(carried.crowds),
    )


def _columns(array: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(array.T).tobytes()


def _from_columns(blob: bytes, kind: type[_Number], columns: int, rows: int) -> NDArray[_Number]:
    return np.frombuffer(blob, kind).reshape(columns, rows).T
