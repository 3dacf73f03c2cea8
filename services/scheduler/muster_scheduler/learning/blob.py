"""A model as bytes and back, in a format of numbers and names: reading one runs nothing.

    b"muster-runtime-model 1\\n"
    sha256 of all that follows          32 bytes
    length of the head                  u64, little endian
    head                                JSON: everything but the trees, and their shapes
    trees                               per forest: threshold, value (f64), feature, left,
                                        right (i32), missing_left (u8); little endian

A blob is checked for its digest first and for sense then, since whoever can write blobs can write
a digest too: a tree may not send its reader in circles or out of its arrays.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from muster_scheduler.learning.evaluation import LEVELS, Evaluation
from muster_scheduler.learning.forest import MAX_NODES, MAX_TREES, Forest
from muster_scheduler.learning.model import Kind, RuntimeModel
from muster_scheduler.learning.ridge import LinearPart

MAGIC = b"muster-runtime-model 1\n"
MAX_BLOB_BYTES = 32 * 1024 * 1024
_DIGEST = hashlib.sha256().digest_size
_LENGTH = 8
_MAX_SKILLS = 10_000
_MAX_FIELDS = 64
# Name and stored type of a forest's arrays, in their order.
_ARRAYS = (
    ("threshold", "<f8"),
    ("value", "<f8"),
    ("feature", "<i4"),
    ("left", "<i4"),
    ("right", "<i4"),
    ("missing_left", "u1"),
)


@dataclass(frozen=True, slots=True)
class CorruptModel:
    """The bytes are no model. `why` is a sentence for the log; the caller does without a model."""

    why: str


class _Shape(msgspec.Struct, forbid_unknown_fields=True):
    baseline: float
    depth: int
    trees: int
    nodes: int


class _Head(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    kind: Kind
    levels: tuple[float, ...]
    linear: LinearPart
    offsets: tuple[float, ...]
    forests: tuple[_Shape, ...]
    skills: tuple[str, ...]
    fields: tuple[str, ...]
    trained: int
    evaluation: Evaluation


def to_blob(model: RuntimeModel) -> bytes:
    head = msgspec.json.encode(
        _Head(
            version=model.version,
            kind=model.kind,
            levels=LEVELS,
            linear=model.linear,
            offsets=model.offsets,
            forests=tuple(_Shape(f.baseline, f.depth, *f.feature.shape) for f in model.forests),
            skills=model.skills,
            fields=model.fields,
            trained=model.trained,
            evaluation=model.evaluation,
        )
    )
    parts = [len(head).to_bytes(_LENGTH, "little"), head]
    for forest in model.forests:
        parts += [getattr(forest, name).astype(kind).tobytes() for name, kind in _ARRAYS]
    body = b"".join(parts)
    return MAGIC + hashlib.sha256(body).digest() + body


def from_blob(blob: bytes) -> RuntimeModel | CorruptModel:
    """Never raises: what is wrong with the bytes is the answer."""
    if len(blob) > MAX_BLOB_BYTES:
        return CorruptModel(f"{len(blob)} bytes are more than {MAX_BLOB_BYTES}")
    if not blob.startswith(MAGIC):
        return CorruptModel("it does not begin like a model of this version's format")
    digest, body = blob[len(MAGIC) :][:_DIGEST], blob[len(MAGIC) + _DIGEST :]
    if hashlib.sha256(body).digest() != digest:
        return CorruptModel("its digest does not match: it was cut or changed")
    length = int.from_bytes(body[:_LENGTH], "little")
    if len(body) < _LENGTH or length > len(body) - _LENGTH:
        return CorruptModel("its head is longer than all of it")
    try:
        head = msgspec.json.decode(body[_LENGTH : _LENGTH + length], type=_Head)
    except (msgspec.DecodeError, RecursionError) as error:
        return CorruptModel(f"its head is not understood: {error}")
    why = _head_problem(head)
    if why is None:
        return _model(head, body[_LENGTH + length :])
    return CorruptModel(why)


def _head_problem(head: _Head) -> str | None:
    if head.levels != LEVELS or len(head.offsets) != len(LEVELS):
        return "it predicts other quantiles"
    if len(head.forests) != (len(LEVELS) if head.kind == "boosted" else 0):
        return f"it has {len(head.forests)} forests, which is not what a {head.kind} model has"
    if head.version < 1 or head.trained < 1:
        return "its version and the number of its attempts must be at least 1"
    if len(head.skills) > _MAX_SKILLS or len(head.fields) > _MAX_FIELDS:
        return "it names more skills or fields than a model can"
    for skill, line in head.linear.lines.items():
        if not len(line.names) == len(line.means) == len(line.scales) == len(line.slopes):
            return f"the line of skill {skill[:64]!r} has columns of different length"
        if not all(scale > 0 for scale in line.scales):
            return f"the line of skill {skill[:64]!r} divides by something that is not above 0"
    # JSON has no infinity, yet 1e999 reads as one.
    if not all(math.isfinite(number) for number in _numbers(msgspec.to_builtins(head))):
        return "it holds a number that is not finite"
    return None


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


def _model(head: _Head, arrays: bytes) -> RuntimeModel | CorruptModel:
    expected = 0
    per_node = sum(np.dtype(kind).itemsize for _, kind in _ARRAYS)
    for shape in head.forests:
        if not (1 <= shape.trees <= MAX_TREES and 1 <= shape.nodes <= MAX_NODES):
            return CorruptModel("a forest of that size is not accepted")
        expected += shape.trees * shape.nodes * per_node
    if len(arrays) != expected:
        return CorruptModel(f"its trees take {len(arrays)} bytes and should take {expected}")
    forests = []
    at = 0
    for shape in head.forests:
        forest, at = _forest(shape, arrays, at)
        forests.append(forest)
    model = RuntimeModel(
        version=head.version,
        kind=head.kind,
        linear=head.linear,
        offsets=head.offsets,
        forests=tuple(forests),
        skills=head.skills,
        fields=head.fields,
        trained=head.trained,
        evaluation=head.evaluation,
    )
    for forest in forests:
        why = forest.problem(model.tree_columns)
        if why is not None:
            return CorruptModel(why)
    return model


def _forest(shape: _Shape, arrays: bytes, at: int) -> tuple[Forest, int]:
    count = shape.trees * shape.nodes
    found: dict[str, Any] = {}
    for name, kind in _ARRAYS:
        flat = np.frombuffer(arrays, kind, count, at)
        found[name] = flat.reshape(shape.trees, shape.nodes).astype(_NATIVE[name])
        at += flat.nbytes
    return Forest(shape.baseline, shape.depth, **found), at


_NATIVE = {
    "threshold": np.float64,
    "value": np.float64,
    "feature": np.int32,
    "left": np.int32,
    "right": np.int32,
    "missing_left": np.bool_,
}
