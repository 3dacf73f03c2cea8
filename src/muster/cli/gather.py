"""Waits for many tasks at once and hands out each ending as it comes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from muster.cli.rest import BrokenStream, Rest

# What one request of the gateway takes.
_MAX_IDS = 10_000
# A stream that breaks again and again without one result between is no bad luck any more.
_MAX_BREAKS = 20
_PAUSE_S = 0.3


def endings(rest: Rest, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
    """`{"id", "state", "result" | "error"}` of every task, each once, as they end.

    Waits without limit; survives a gateway that is started again. Raises Failure.
    """
    breaks = 0
    waiting = list(dict.fromkeys(ids))
    while waiting:
        asked = waiting[:_MAX_IDS]
        ended: set[str] = set()
        try:
            # While others wait their turn, these are looked at only for a moment.
            wait = rest.long_poll if len(waiting) <= _MAX_IDS else "1s"
            for ending in _ask(rest, asked, wait):
                ended.add(ending["id"])
                yield ending
        except BrokenStream:
            breaks = 0 if ended else breaks + 1
            if breaks > _MAX_BREAKS:
                raise
            rest.sleep(_PAUSE_S)
        waiting = waiting[len(asked) :] + [ident for ident in asked if ident not in ended]


def _ask(rest: Rest, ids: Sequence[str], wait: str) -> Iterator[dict[str, Any]]:
    body = {"ids": list(ids), "wait": wait}
    known = set(ids)
    with rest.lines("POST", "/v1/results", body=body) as lines:
        for line in lines:
            if not line:
                continue
            try:
                item = json.loads(line)
            except ValueError as error:
                raise BrokenStream(f"a line of the results is cut: {line[:80]!r}") from error
            if "id" in item:
                if item["id"] in known:
                    yield item
            elif "error" in item:
                # The gateway could not go on; what is open is asked for again.
                raise BrokenStream(item["error"]["message"])
