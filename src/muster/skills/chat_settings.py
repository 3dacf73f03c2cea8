"""What an agent's environment says of its language model.

| variable | meaning |
|---|---|
| MUSTER_CHAT_BASE_URL | up to and without /chat/completions, e.g. https://api.example.com/v1 |
| MUSTER_CHAT_API_KEY_FILE | a file with the provider's key; read at each call, so it may change |
| MUSTER_CHAT_MODEL | the model when the task names none |
| MUSTER_CHAT_ANY_ADDRESS | 1 = a task may name another base_url, which gets no key; default 0 |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from muster.domain.errors import ConfigurationError, InvalidInput, Unavailable
from muster.outbound.addresses import ALLOW_VARIABLE, AllowList
from muster.outbound.requests import Target, parse_url

_URL: Final = "MUSTER_CHAT_BASE_URL"
_KEY_FILE: Final = "MUSTER_CHAT_API_KEY_FILE"
_MODEL: Final = "MUSTER_CHAT_MODEL"
_ANY: Final = "MUSTER_CHAT_ANY_ADDRESS"
# What the process that runs skills is given of the agent's environment; no secret is in it.
SKILL_VARIABLES: Final = (ALLOW_VARIABLE, _URL, _KEY_FILE, _MODEL, _ANY)
_KEY_ITSELF: Final = "MUSTER_CHAT_API_KEY"
MAX_KEY_CHARS: Final = 4_096


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """`base` None = there is none, a task must name its own; `key_file` None = no key is sent."""

    base: Target | None = None
    key_file: Path | None = None
    model: str = ""
    any_address: bool = False

    @property
    def offered(self) -> bool:
        """Whether there is anybody to ask."""
        return self.base is not None or self.any_address

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Raises ConfigurationError naming the variable."""
        if environ.get(_KEY_ITSELF):
            limit = f"a key in the environment is seen by too many; put it into a file: {_KEY_FILE}"
            raise ConfigurationError(_KEY_ITSELF, "…", limit)
        if environ.get(_ANY, "0") not in ("0", "1"):
            raise ConfigurationError(_ANY, environ[_ANY], "1 or 0")
        base = None
        if url := environ.get(_URL, ""):
            try:
                base = parse_base(url, _URL)
            except InvalidInput as error:
                raise ConfigurationError(_URL, error.value, error.limit) from None
        key_file = Path(environ[_KEY_FILE]).absolute() if environ.get(_KEY_FILE) else None
        return cls(base, key_file, environ.get(_MODEL, ""), environ.get(_ANY) == "1")

    def key(self) -> str:
        """The provider's key, "" = there is none; raises Unavailable when it cannot be read."""
        if self.key_file is None:
            return ""
        try:
            key = self.key_file.read_text("ascii").strip()
        except (OSError, UnicodeError) as error:
            what = error.strerror if isinstance(error, OSError) else "it is not ASCII"
            raise Unavailable("the chat key", f"{self.key_file}: {what}") from None
        if not 0 < len(key) <= MAX_KEY_CHARS or not key.isprintable() or " " in key:
            limit = f"one line of 1 to {MAX_KEY_CHARS} characters is needed"
            raise Unavailable("the chat key", f"{self.key_file}: {limit}")
        return key


def parse_base(url: str, field: str) -> Target:
    """The address to which /chat/completions is added; raises InvalidInput."""
    target = parse_url(url, field)
    if "?" in target.path:
        raise InvalidInput(field, url, "no query in it")
    return target


def check_environment(environ: Mapping[str, str]) -> None:
    """At the agent's start; raises ConfigurationError for what `http` and `chat` could not use."""
    AllowList.parse(environ.get(ALLOW_VARIABLE, ""))
    settings = ChatSettings.from_env(environ)
    try:
        settings.key()
    except Unavailable as error:
        raise ConfigurationError(_KEY_FILE, str(settings.key_file), error.detail) from None
