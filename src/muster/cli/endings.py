"""The end of one task: waiting for it and telling it."""

from __future__ import annotations

import sys
from typing import Any

import typer

from muster.cli.failure import EXIT_FAILED
from muster.cli.rest import Rest
from muster.cli.session import Session
from muster.cli.show import reason, result_text

ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT", "DEAD"})
# Of one long-poll; then it is asked again.
_WAIT = "60s"


def await_end(rest: Rest, path: str) -> dict[str, Any]:
    """What lies at `path` (a task, or its result) once it has ended. Waits without limit."""
    while True:
        found: dict[str, Any] = rest.get(path, {"wait": _WAIT})
        if found["state"] in ENDED:
            return found


def print_ending(session: Session, task: dict[str, Any], *, as_json: bool) -> None:
    """The result on stdout, or the reason on stderr and exit code 1."""
    succeeded = task["state"] == "SUCCEEDED"
    if as_json:
        session.print_json(task)
    elif succeeded:
        print(result_text(task.get("result")))
    else:
        print(f"muster: task {task['id']} {_how(task)}", file=sys.stderr)
    if not succeeded:
        raise typer.Exit(EXIT_FAILED)


def _how(task: dict[str, Any]) -> str:
    why = reason(task)
    return f"ended as {task['state']}" + (f": {why}" if why else "")
