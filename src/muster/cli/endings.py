"""The end of one task: waiting for it and telling it."""

from __future__ import annotations

import sys
from typing import Any

import typer

from muster.cli.failure import EXIT_FAILED
from muster.cli.session import Session
from muster.cli.show import reason, result_text

ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT", "DEAD"})
# Of one long-poll; then it is asked again. After the first one a person wants to know why.
_FIRST_WAIT = "2s"


def await_end(session: Session, ident: str, *, only_result: bool = False) -> dict[str, Any]:
    """The task, or its result alone, once it has ended; `ident` is a segment of a path.

    Waits without limit, and says on stderr why the task waits whenever that changes.
    """
    task = f"/v1/tasks/{ident}"
    wait, said = _FIRST_WAIT, ""
    while True:
        found: dict[str, Any] = session.rest.get(
            f"{task}/result" if only_result else task, {"wait": wait}
        )
        if found["state"] in ENDED:
            return found
        wait = session.rest.long_poll
        if found["state"] == "PENDING":
            why = reason(session.rest.get(task) if only_result else found)
            if why and why != said:
                session.note(f"task {found['id']} waits: {why}")
                said = why


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
