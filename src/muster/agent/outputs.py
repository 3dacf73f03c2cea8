"""From what a skill returns or raises to what is reported: JSON, or one readable error."""

from __future__ import annotations

import math
import traceback
from pathlib import Path
from typing import Any, Final

import orjson

from muster.domain.task import MAX_ERROR_CHARS

_OWN_FOLDER: Final = str(Path(__file__).parent)
_MAX_FIRST_LINE: Final = 1_000
# Numpy arrays and numbers, and keys that are not text, as `json.dumps` takes them.
_LENIENT: Final = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY


class NotJson(Exception):
    """A value that JSON cannot hold."""


def encode_output(value: Any) -> bytes:
    """`value` as UTF-8 JSON; raises NotJson naming what stands in the way.

    Besides JSON's own types: pydantic models, dataclasses, tuples, enums, dates, UUIDs, numpy.
    """
    try:
        try:
            encoded = orjson.dumps(value)
        except TypeError:
            encoded = orjson.dumps(value, default=_plain, option=_LENIENT)
    except (TypeError, RecursionError) as error:
        cause = error.__cause__ or error
        raise NotJson(f"the result is not JSON: {cause}") from None
    # orjson writes NaN as null, which would silently be another result.
    if b"null" in encoded and _has_non_finite(value):
        raise NotJson("the result is not JSON: it holds a number that is NaN or infinite")
    return encoded


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    if isinstance(value, set | frozenset):
        # No order is promised, but the same set should give the same bytes where it can.
        try:
            return sorted(value)
        except TypeError:
            return list(value)
    raise TypeError(f"a value of type {type(value).__qualname__} cannot be encoded")


def _has_non_finite(value: Any) -> bool:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, float):
            if not math.isfinite(item):
                return True
        elif isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, list | tuple):
            pending.extend(item)
    return False


def describe_exception(error: BaseException) -> str:
    """Type and message, then the end of the traceback, at most MAX_ERROR_CHARS characters."""
    kind = type(error)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    try:
        message = str(error)
    except Exception as broken:  # noqa: BLE001  a user's __str__ may raise anything
        message = f"<its text cannot be made: {type(broken).__name__}>"
    first = f"{name}: {message}" if message else name
    if len(first) > _MAX_FIRST_LINE:
        first = first[: _MAX_FIRST_LINE - 1] + "…"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(_OWN_FOLDER)]
    trail = "".join(traceback.format_list(own)).rstrip()
    left = MAX_ERROR_CHARS - len(first) - 1
    if len(trail) > left:
        trail = "…" + trail[len(trail) - left + 1 :]
    return f"{first}\n{trail}" if trail else first


def describe_signal(number: int) -> str:
    """A signal's name, e.g. SIGSEGV."""
    import signal  # noqa: PLC0415  not needed where skills run

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
