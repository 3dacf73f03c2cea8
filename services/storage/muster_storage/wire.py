"""Messages put together from parts that are serialized already, without parsing the parts.

A protobuf message is a sequence of fields, and a repeated or embedded one is a tag, a length and
bytes. So a page of stored tasks is joined here and parsed once, by the C parser.
"""

from __future__ import annotations

from collections.abc import Iterable

from muster_storage.records import Row

# Tag of field n with length-delimited content: n << 3 | 2.
_FIELD_1, _FIELD_2, _FIELD_3, _FIELD_4 = b"\x0a", b"\x12", b"\x1a", b"\x22"


def varint(number: int) -> bytes:
    """A number ≥ 0 in protobuf's base 128."""
    if number < 0x80:
        return number.to_bytes(1, "little")
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def number_field(field: int, number: int) -> bytes:
    """A varint field, to be appended to a serialized message."""
    return varint(field << 3) + varint(number)


def bytes_field(field: int, content: bytes) -> bytes:
    """A field of bytes, text or an embedded message, to be appended to a serialized message."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def task_bytes(row: Row | None) -> bytes:
    """A serialized Task; of None the empty one, which stands for an unknown id."""
    if row is None:
        return b""
    parts = [_FIELD_1, varint(len(row.spec)), row.spec, _FIELD_2, varint(len(row.status))]
    parts.append(row.status)
    if row.outcome:
        parts += (_FIELD_3, varint(len(row.outcome)), row.outcome)
    if row.progress:
        parts += (_FIELD_4, varint(len(row.progress)), row.progress)
    return b"".join(parts)


def repeated_first_field(messages: Iterable[bytes]) -> bytes:
    """A message whose field 1 holds these messages."""
    parts: list[bytes] = []
    for message in messages:
        parts += (_FIELD_1, varint(len(message)), message)
    return b"".join(parts)


def framed_event(seq: int, event: bytes) -> bytes:
    """Field 1 of a TailResponse: the event with its number as its id."""
    ident = b"%d" % seq
    size = len(event) + 2 + len(ident)
    return b"".join(
        (_FIELD_1, varint(size), event, _FIELD_1, len(ident).to_bytes(1, "little"), ident)
    )
