"""What an error that Redis answers with means for whoever asked."""

from __future__ import annotations

import hiredis

from muster.domain.errors import Unavailable

# Answers that say: not now.
_NOT_NOW = (
    "LOADING",
    "MISCONF",
    "OOM",
    "READONLY",
    "MASTERDOWN",
    "BUSY",
    "NOREPLICAS",
    "CLUSTERDOWN",
)
# Answers to commands that make no sense: our own bugs. All others are Redis' own trouble.
_OUR_BUG = (
    "WRONGTYPE",
    "CROSSSLOT",
    "EXECABORT",
    "NOSCRIPT",
    "ERR unknown command",
    "ERR unknown subcommand",
    "ERR wrong number of arguments",
    "ERR syntax error",
    "ERR value is",
    "ERR invalid",
    "ERR Invalid",
    "ERR Error running script",
    "ERR Error compiling script",
    "ERR user_script:",
)


class RedisRefusedError(Exception):
    """Redis answered a command with an error that is none of those that soon pass."""


class RedisUnwillingError(Unavailable, RedisRefusedError):
    """The command was right, and Redis did not take it, for a reason that Muster has no word for:
    whoever asked may try again, as with a store that is away."""

    def __init__(self, reply: str) -> None:
        Unavailable.__init__(self, "redis", f"it refused a command ({reply})")


def error_of(reply: hiredis.ReplyError) -> Exception:
    """The error to raise: Unavailable in one of its forms, or RedisRefusedError for a defect."""
    text = str(reply)
    # Errors inside a script come wrapped: "ERR Error running script (...): -OOM command not ...".
    if text.startswith(_NOT_NOW) or any(f"-{word} " in text for word in _NOT_NOW):
        return Unavailable("redis", text)
    return RedisRefusedError(text) if text.startswith(_OUR_BUG) else RedisUnwillingError(text)
