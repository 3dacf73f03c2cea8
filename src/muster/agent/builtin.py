"""The skills that every agent has unless it is told otherwise.

echo, sleep and command; http, and chat where the environment names a provider.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from muster.skill import COMMAND, InputRejected, Skill, skill
from muster.skills.chat import chat
from muster.skills.chat_settings import ChatSettings
from muster.skills.http import http

MAX_SLEEP_S: Final = 365 * 24 * 3600
MAX_ARGV: Final = 4_096
MAX_ENV: Final = 256

_SLEEP_INPUT: Final = {
    "type": "object",
    "properties": {"seconds": {"type": "number", "minimum": 0, "maximum": MAX_SLEEP_S}},
    "required": ["seconds"],
    "additionalProperties": False,
}
_COMMAND_INPUT: Final = {
    "type": "object",
    "properties": {
        "argv": {
            "type": "array",
            "items": {"type": "string"},
            "minItems": 1,
            "maxItems": MAX_ARGV,
            "description": "The program and its arguments; no shell is involved.",
        },
        "env": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "maxProperties": MAX_ENV,
            "description": "Added to the agent's minimal environment.",
        },
        "stdin": {"type": "string", "description": "Written to the standard input, as UTF-8."},
    },
    "required": ["argv"],
    "additionalProperties": False,
}
_COMMAND_OUTPUT: Final = {
    "type": "object",
    "properties": {
        "exit_code": {"type": "integer"},
        "stdout": {"type": "string"},
        "stderr": {"type": "string"},
    },
    "required": ["exit_code", "stdout", "stderr"],
}


@skill
async def echo(input: Any) -> Any:  # noqa: A002  the name says that it takes the whole input
    """Gives back its input."""
    return input


@skill(input_schema=_SLEEP_INPUT, output_schema={"type": "null"})
async def sleep(input: Any) -> None:  # noqa: A002  as above
    """Does nothing for so many seconds."""
    seconds = input.get("seconds") if isinstance(input, dict) and len(input) == 1 else None
    limit = f"a number of seconds from 0 to {MAX_SLEEP_S}"
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InputRejected("input.seconds", input, limit)
    if not math.isfinite(seconds) or not 0 <= seconds <= MAX_SLEEP_S:
        raise InputRejected("input.seconds", seconds, limit)
    await asyncio.sleep(seconds)


def _never_called(input: Any) -> Any:  # noqa: A002  as above
    raise AssertionError(f"a command is executed by the runtime, not called with {input!r}")


COMMAND_SKILL: Final = Skill(
    name="command",
    description="Runs a program and gives its exit code and output.",
    function=_never_called,
    mode=COMMAND,
    generator=False,
    input_schema=_COMMAND_INPUT,
    output_schema=_COMMAND_OUTPUT,
)


class CommandInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Input of `command`."""

    argv: list[str]
    env: dict[str, str] = {}
    stdin: str = ""


_decoder = msgspec.json.Decoder(CommandInput)


def parse_command(input_json: bytes) -> CommandInput:
    """The command that a task asks for; raises InputRejected."""
    try:
        found = _decoder.decode(input_json)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        limit = '{"argv": [...], "env": {...}, "stdin": "…"} is needed'
        raise InputRejected("input", str(error), limit) from None
    if not 1 <= len(found.argv) <= MAX_ARGV or not found.argv[0]:
        limit = f"1 to {MAX_ARGV} words, the first one a program"
        raise InputRejected("input.argv", found.argv, limit)
    if len(found.env) > MAX_ENV:
        raise InputRejected("input.env", len(found.env), f"at most {MAX_ENV} variables")
    for name, text in [("argv", a) for a in found.argv] + list(found.env.items()):
        if "\0" in text or "\0" in name or "=" in name or not name:
            raise InputRejected(f"input.{name}", text, "no NUL, and no = in a variable's name")
    return found


def builtin_skills(environ: Mapping[str, str]) -> tuple[Callable[..., Any], ...]:
    """All but `command`; `chat` only where there is a provider to ask."""
    asked = (chat,) if ChatSettings.from_env(environ).offered else ()
    return (echo, sleep, http, *asked)
