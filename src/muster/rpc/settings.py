"""Settings of a service from its environment; a bad one is told by its key and its value."""

from __future__ import annotations

from collections.abc import Mapping

from muster.domain.errors import ConfigurationError

_MAX_PORT = 65_535
_LIST = "host:port, port 1 to 65535, several separated by commas"


def number(
    environ: Mapping[str, str], key: str, default: float, least: float, most: float
) -> float:
    """`default` when it is not set or empty."""
    text = environ.get(key, "")
    if not text:
        return default
    try:
        given = float(text)
    except ValueError:
        given = float("nan")
    # NaN fails the comparison too.
    if not least <= given <= most:
        raise ConfigurationError(key, text, f"a number from {least:g} to {most:g}")
    return given


def flag(environ: Mapping[str, str], key: str) -> bool:
    """0, which is the default, or 1."""
    text = environ.get(key, "")
    if text not in ("", "0", "1"):
        raise ConfigurationError(key, text, "0 or 1")
    return text == "1"


def address(environ: Mapping[str, str], key: str, default: str) -> str:
    """Where to listen, host:port; port 0 = any free one."""
    text = environ.get(key) or default
    if not _is_address(text, least_port=0):
        raise ConfigurationError(key, text, "host:port, port 0 to 65535 (0 = any free one)")
    return text


def addresses(environ: Mapping[str, str], key: str, *, optional: bool = False) -> tuple[str, ...]:
    """Whom to dial: host:port, several separated by commas; none only when `optional`."""
    text = environ.get(key, "")
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not all(_is_address(part, least_port=1) for part in found):
        raise ConfigurationError(key, text, _LIST)
    if not found and not optional:
        raise ConfigurationError(key, text, f"at least one {_LIST}")
    return found


def _is_address(text: str, *, least_port: int) -> bool:
    host, _, port = text.rpartition(":")
    is_number = port.isascii() and port.isdecimal() and len(port) <= len(str(_MAX_PORT))
    return bool(host) and is_number and least_port <= int(port) <= _MAX_PORT
