"""Muster: a cluster manager for AI agents. What programs use is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from muster.client.async_client import AsyncClient
    from muster.client.sync_client import Client
    from muster.skill import AsyncContext, Context

__all__ = ["AsyncClient", "AsyncContext", "Client", "Context"]

# `import muster` stays cheap: agents and services begin with it, too.
_HOMES: Final = {
    "Client": "muster.client.sync_client",
    "AsyncClient": "muster.client.async_client",
    "Context": "muster.skill",
    "AsyncContext": "muster.skill",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
