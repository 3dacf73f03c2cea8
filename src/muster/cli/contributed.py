"""Commands that installed packages contribute: `muster` knows their names, not their code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

_COMMANDS = "muster.commands"
_EXIT_CONFIGURATION = 78


def run_contributed(name: str, argv: Sequence[str]) -> int:
    """Calls the entry point, a function from arguments to an exit code."""
    found = [entry for entry in entry_points(group=_COMMANDS) if entry.name == name]
    if not found:
        return _fail(f"{name} is not installed: no package contributes it")
    try:
        command = found[0].load()
    except (ImportError, AttributeError) as error:
        return _fail(f"{name} cannot be loaded: {error}")
    code: int = command(argv)
    return code


def _fail(sentence: str) -> int:
    print(f"muster: {sentence}", file=sys.stderr)
    return _EXIT_CONFIGURATION
