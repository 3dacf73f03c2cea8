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


def await_end(rest: Rest, ident: str) -> dict[str, Any]:
    """The task once it has ended. Waits without limit. Raises Failure."""
    while True:
        task: dict[str, Any] = rest.get(f"/v1/tasks/{ident}", {"wait": _WAIT})
        if task["state"] in ENDED:
            return task


def print_ending(session: Session, task: dict[str, Any], *, as_json: bool) -> None:
    """The result on stdout, or the reason on stderr and exit code 1."""
    succeeded = task["state"] == "SUCCEEDED"
    if as_json:
        session.print_json(task)
    elif succeeded and "result" in task:
        print(result_text(task["result"]))
    elif succeeded:
        session.note(
            f"the result of task {task['id']} is large; `muster result {task['id']}` prints it"
        )
    else:
        print(f"muster: task {task['id']} {_how(task)}", file=sys.stderr)
    if not succeeded:
        raise typer.Exit(EXIT_FAILED)


def _how(task: dict[str, Any]) -> str:
    why = reason(task)
    return f"ended as {task['state']}" + (f": {why}" if why else "")
