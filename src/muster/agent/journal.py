"""The agent's own log: one line per event on standard error, JSON unless that is a terminal.

The services log through structlog; an agent has many small processes, where its import would
cost each some megabytes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, Final

_LEVELS: Final = ("info", "warning", "error")


class Journal:
    """Writes lines; `also` receives level and text of each, for the monitor."""

    def __init__(self, process: str, agent: str) -> None:
        self._fixed = {"service": f"agent.{process}", "agent": agent}
        self._interactive = sys.stderr.isatty()
        self.also: Callable[[str, str], None] | None = None

    def info(self, event: str, **details: Any) -> None:
        """Something that an operator may want to see."""
        self._write("info", event, details)

    def warning(self, event: str, **details: Any) -> None:
        """Something that is not as it should be, and is being dealt with."""
        self._write("warning", event, details)

    def error(self, event: str, **details: Any) -> None:
        """Something that needs somebody."""
        self._write("error", event, details)

    def _write(self, level: str, event: str, details: dict[str, Any]) -> None:
        assert level in _LEVELS
        text = event + "".join(f" {name}={value}" for name, value in details.items())
        if self._interactive:
            line = f"{time.strftime('%H:%M:%S')} {level:<7} {self._fixed['service']} {text}"
        else:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            line = json.dumps(
                {"timestamp": stamp, "level": level, "event": event, **self._fixed, **details},
                default=str,
            )
        print(line, file=sys.stderr, flush=True)
        if self.also is not None:
            self.also(level, text)
