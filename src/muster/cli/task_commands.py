"""Commands on tasks: `tasks`, `task`, `result`, `cancel`, `logs`, `explain`, `submit`, `plan`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any

import typer

from muster.cli.failure import EXIT_FAILED, Failure
from muster.cli.plan_command import plan
from muster.cli.session import Session
from muster.cli.submit_command import submit

Option = typer.Option
AsJson = Annotated[bool, Option("--json", help="Print the REST interface's JSON.")]
TaskArgument = Annotated[str, typer.Argument(metavar="ID", help="The task's id.")]

_PAGE = 1000
# Each is a request of its own.
_EXPLAINED = 10


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    commands: tuple[Callable[..., None], ...] = (
        submit,
        plan,
        tasks,
        task,
        result,
        cancel,
        logs,
        explain,
    )
    for command in commands:
        app.command()(command)


def tasks(
    ctx: typer.Context,
    state: Annotated[str | None, Option(help="E.g. PENDING, RUNNING, FAILED.")] = None,
    skill: Annotated[str | None, Option(help="Only tasks of this skill.")] = None,
    agent: Annotated[str | None, Option(help="Only tasks on this agent.")] = None,
    label: Annotated[list[str] | None, Option(help="KEY=VALUE (repeatable).")] = None,
    limit: Annotated[int, Option(min=1, help="How many, newest first.")] = 20,
    everything: Annotated[bool, Option("--all", help="All of them.")] = False,
    as_json: AsJson = False,
) -> None:
    """List tasks, newest first."""
    session: Session = ctx.obj
    filters = {"state": state.upper() if state else None, "skill": skill, "agent": agent}
    params: dict[str, Any] = {name: value for name, value in filters.items() if value}
    if label:
        params["label"] = label
    if as_json and not everything:
        session.print_json(session.rest.get("/v1/tasks", params | {"limit": min(limit, _PAGE)}))
        return
    params["limit"] = _PAGE if everything else min(limit, _PAGE)
    found = session.rest.pages("/v1/tasks", params)
    shown = found if everything else islice(found, limit)
    if as_json:
        session.print_json({"items": list(shown), "next": None})
        return
    _print_tasks(shown if everything else _with_reasons(session, shown))


def _with_reasons(session: Session, shown: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The tasks; of the first few that wait it is asked why, which lists do not say."""
    left = _EXPLAINED
    for item in shown:
        if item["state"] == "PENDING" and not item.get("why") and left:
            left -= 1
            yield session.rest.get(f"/v1/tasks/{_segment(item['id'])}")
        else:
            yield item


def _print_tasks(shown: Iterable[dict[str, Any]]) -> None:
    from muster.cli.show import age, is_narrow, reason, table, took  # noqa: PLC0415

    now = datetime.now(UTC)
    columns = ["TASK", "STATE", "AGE", "TOOK", "AGENT", "SKILL", "WHY"]
    if is_narrow():
        # The reason is in `muster task ID`.
        columns.remove("WHY")
    rows = (
        (
            item["id"],
            item["state"],
            age(item.get("submitted_at"), now),
            took(item, now),
            item.get("agent"),
            item["skill"],
            reason(item),
        )[: len(columns)]
        for item in shown
    )
    table(columns, rows, empty="no tasks")


def task(
    ctx: typer.Context,
    ident: TaskArgument,
    watch: Annotated[bool, Option("--watch", "-w", help="Follow it to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a task; with --watch each of its changes until it ends."""
    session: Session = ctx.obj
    if watch:
        from muster.cli.streams import watch_task  # noqa: PLC0415

        found = watch_task(session, _segment(ident), as_json=as_json)
    else:
        found = session.rest.get(f"/v1/tasks/{_segment(ident)}", {"include": "input"})
    if as_json:
        session.print_json(found)
    else:
        _print_task(found)


def _print_task(task: dict[str, Any]) -> None:
    from muster.cli.show import local_time, pairs, reason, took  # noqa: PLC0415

    progress = task.get("progress") or {}
    fraction = progress.get("fraction")
    done = "" if fraction is None else f"{fraction:.0%} "
    deadlines = ("timeout", "start_deadline", "total_deadline", "progress_timeout", "estimate")
    pairs(
        (
            ("task", task["id"]),
            ("state", task["state"]),
            ("cancelling", "yes" if task.get("cancelling") else None),
            ("why", reason(task)),
            ("skill", task["skill"]),
            ("input", task.get("input")),
            ("agent", task.get("agent")),
            ("attempt", f"{task['attempt']} (failures: {task.get('failures', 0)} of "
             f"{task.get('max_attempts', '?')}; agents lost: {task.get('agent_deaths', 0)})"),
            ("progress", f"{done}{progress.get('note', '')}".strip()),
            ("submitted", local_time(task.get("submitted_at"))),
            ("started", local_time(task.get("started_at"))),
            ("ended", local_time(task.get("ended_at"))),
            ("took", took(task, datetime.now(UTC))),
            ("priority", task.get("priority")),
            ("resources", _joined(task.get("resources"))),
            ("labels", _joined(task.get("labels"))),
            ("constraints", _constraints(task.get("constraints"))),
            *((name.replace("_", " "), task.get(name)) for name in deadlines),
            ("on disconnect", task.get("on_disconnect")),
            ("parent", task.get("parent")),
            ("result", task.get("result")),
        )
    )  # fmt: skip


def _joined(values: dict[str, str] | None) -> str:
    return " ".join(f"{name}={value}" for name, value in (values or {}).items())


def _constraints(constraints: list[dict[str, Any]] | None) -> str:
    return "; ".join(
        f"{item['key']} {item['op']} {','.join(item.get('values', []))}".strip()
        for item in constraints or []
    )


def result(
    ctx: typer.Context,
    ident: TaskArgument,
    wait: Annotated[bool, Option("--wait", "-w", help="Wait for the end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print a task's result as JSON; fails when it has none."""
    from muster.cli.endings import ENDED, await_end, print_ending  # noqa: PLC0415

    session: Session = ctx.obj
    segment = _segment(ident)
    if wait:
        ending = await_end(session, segment, only_result=True)
    else:
        ending = session.rest.get(f"/v1/tasks/{segment}/result")
    if ending["state"] not in ENDED and not as_json:
        raise Failure(f"task {ident} is {ending['state']}; --wait waits for its end")
    print_ending(session, ending, as_json=as_json)


def cancel(
    ctx: typer.Context,
    idents: Annotated[list[str], typer.Argument(metavar="ID…", help="Tasks to cancel.")],
    as_json: AsJson = False,
) -> None:
    """Cancel tasks; one that runs is told to stop."""
    session: Session = ctx.obj
    answers: list[Any] = []
    refused = 0
    for ident in idents:
        try:
            answer = session.rest.post(f"/v1/tasks/{_segment(ident)}/cancel")
        except Failure as failure:
            if len(idents) == 1:
                raise
            # The others are cancelled all the same.
            refused += 1
            session.note(f"{ident}: {failure}")
        else:
            answers.append(answer)
            if not as_json:
                print(f"{ident} {answer['state']}" + _still(answer))
    if as_json:
        session.print_json(answers[0] if len(idents) == 1 else {"items": answers})
    if refused:
        raise typer.Exit(EXIT_FAILED)


def _still(answer: dict[str, Any]) -> str:
    return "" if answer["state"] == "CANCELLED" else " (it is told to stop)"


def logs(
    ctx: typer.Context,
    ident: TaskArgument,
    follow: Annotated[bool, Option("--follow", "-f", help="Go on until the task ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print what a task has written."""
    from muster.cli.streams import follow_logs, print_logs  # noqa: PLC0415

    session: Session = ctx.obj
    show = follow_logs if follow else print_logs
    show(session, _segment(ident), as_json=as_json)


def explain(ctx: typer.Context, ident: TaskArgument, as_json: AsJson = False) -> None:
    """Say why a task waits, and what would let it start."""
    session: Session = ctx.obj
    answer = session.rest.get(f"/v1/tasks/{_segment(ident)}/explain")
    if as_json:
        session.print_json(answer)
        return
    from muster.cli.show import local_time, pairs  # noqa: PLC0415

    position = answer.get("queue_position")
    pairs(
        (
            ("task", answer["id"]),
            ("state", answer["state"]),
            ("why", answer.get("summary")),
            ("queue", f"{position} of {answer.get('queue_length')}" if position else None),
            ("agents", answer.get("agents") if answer["state"] == "PENDING" else None),
            *((f"  {why}", f"{n} excluded") for why, n in (answer.get("excluded") or {}).items()),
            ("would help", answer.get("smallest_change")),
            ("should start", _expected_start(answer, local_time(answer.get("expected_start")))),
            ("should end", local_time(answer.get("expected_end"))),
        )
    )
    _print_candidates(answer)


def _expected_start(answer: dict[str, Any], at: str) -> str:
    why = answer.get("expected_start_why")
    if at:
        return f"{at}, {why}" if why else at
    return f"unknown: {why}" if why else ""


def _print_candidates(answer: dict[str, Any]) -> None:
    from muster.cli.show import table  # noqa: PLC0415

    candidates = answer.get("candidates") or []
    if not candidates:
        return
    print()
    terms = ["score", *sorted({n for one in candidates for n in one["terms"]} - {"score"})]
    rows = (
        (
            one["agent"],
            one["rank"],
            "yes" if one["fits"] else "no",
            *(f"{one['terms'][n]:.6g}" if n in one["terms"] else "" for n in terms),
        )
        for one in candidates
    )
    columns = ["AGENT", "RANK", "FITS", *(n.upper().replace("_", " ") for n in terms)]
    table(columns, rows, empty="")


def _segment(ident: str) -> str:
    """An id as a part of a path; what is no id is told apart from a wrong path."""
    from urllib.parse import quote  # noqa: PLC0415

    if not ident:
        raise Failure("the id is empty", 2)
    return quote(ident, safe="")
