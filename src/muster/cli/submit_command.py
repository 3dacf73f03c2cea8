"""`muster submit`: one task, or a file of them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from muster.cli.failure import EXIT_FAILED, EXIT_USAGE, Failure
from muster.cli.session import Session, new_key
from muster.cli.task_body import (
    TaskOptions,
    batches,
    parse_input,
    parse_task_lines,
    read_text,
)

# Enough to see what is wrong with a batch; the rest is in `muster tasks --state FAILED`.
_SHOWN_FAILURES = 10

Option = typer.Option
Text = Annotated[str | None, Option()]


def submit(
    ctx: typer.Context,
    skill: Annotated[str | None, typer.Argument(help="What to run, e.g. echo.")] = None,
    task_input: Annotated[
        str | None,
        Option("--input", "-i", help="The input: JSON, @FILE, or - for standard input."),
    ] = None,
    file: Annotated[
        str | None,
        Option("--file", "-f", help="One task per line (JSON): a file, or - for standard input."),
    ] = None,
    wait: Annotated[
        bool, Option("--wait", "-w", help="Wait for the end; show the result.")
    ] = False,
    cpu: Annotated[str | None, Option(help="E.g. 500m.")] = None,
    memory: Annotated[str | None, Option(help="E.g. 256Mi.")] = None,
    network: Annotated[str | None, Option(help="In bit/s, e.g. 10M.")] = None,
    gpu: Annotated[str | None, Option(help="E.g. 1, or 0.5.")] = None,
    resource: Annotated[
        list[str] | None, Option(help="Any other, NAME=AMOUNT, e.g. slots=2 (repeatable).")
    ] = None,
    label: Annotated[list[str] | None, Option(help="KEY=VALUE (repeatable).")] = None,
    constraint: Annotated[
        list[str] | None, Option(help="On agents' labels, e.g. zone==a (repeatable).")
    ] = None,
    priority: Annotated[int | None, Option(help="0 to 100, higher first (default 50).")] = None,
    timeout: Annotated[str | None, Option(help="Of one attempt, e.g. 60s.")] = None,
    start_deadline: Annotated[str | None, Option(help="It must have started by, e.g. 10m.")] = None,
    total_deadline: Annotated[str | None, Option(help="It must have ended by, e.g. 1h.")] = None,
    max_attempts: Annotated[int | None, Option(help="1 to 100 (default 3).")] = None,
    on_disconnect: Annotated[str | None, Option(help="keep (default) or stop.")] = None,
    estimate: Annotated[str | None, Option(help="How long it will run, e.g. 2s.")] = None,
    lifetime: Annotated[str | None, Option(help="finite (default) or service.")] = None,
    idempotency_key: Annotated[
        str | None, Option(help="The same key submits the same tasks only once.")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print the REST interface's JSON.")] = False,
) -> None:
    """Submit a task, or with --file many of them.

    With --file, SKILL and the options are the defaults of lines that do not say otherwise.
    """
    session: Session = ctx.obj
    fields = TaskOptions(
        cpu=cpu,
        memory=memory,
        network=network,
        gpu=gpu,
        resources=tuple(resource or ()),
        labels=tuple(label or ()),
        constraints=tuple(constraint or ()),
        priority=priority,
        timeout=timeout,
        start_deadline=start_deadline,
        total_deadline=total_deadline,
        max_attempts=max_attempts,
        on_disconnect=on_disconnect,
        estimate=estimate,
        lifetime=lifetime,
    ).fields()
    if skill is not None:
        fields["skill"] = skill
    if task_input is not None:
        fields["input"] = parse_input(task_input)
    key = idempotency_key or new_key()
    if file is not None:
        tasks = parse_task_lines(read_text(file, "--file"), file, fields)
        _submit_many(session, tasks, key, wait=wait, as_json=as_json)
    elif skill is None:
        raise Failure("submit needs a SKILL or --file", EXIT_USAGE)
    else:
        _submit_one(session, fields, key, wait=wait, as_json=as_json)


def _submit_one(
    session: Session, task: dict[str, Any], key: str, *, wait: bool, as_json: bool
) -> None:
    from muster.cli.endings import await_end, print_ending  # noqa: PLC0415

    accepted = session.rest.post("/v1/tasks", task, key=key)
    if wait:
        print_ending(session, await_end(session, accepted["id"]), as_json=as_json)
    elif as_json:
        session.print_json(accepted)
    else:
        print(accepted["id"])


def _submit_many(
    session: Session, tasks: Sequence[dict[str, Any]], key: str, *, wait: bool, as_json: bool
) -> None:
    ids: list[str] = []
    ended: dict[str, dict[str, Any]] = {}
    with _progress() as progress:
        sending = progress.add_task("submitted", total=len(tasks), note="")
        for number, batch in enumerate(batches(tasks)):
            answer = session.rest.post("/v1/tasks", {"tasks": batch}, key=f"{key}-{number}")
            ids += answer["ids"]
            progress.update(sending, completed=len(ids))
        if wait:
            _follow(session, ids, ended, progress)
    if not wait:
        _print_ids(session, ids, as_json=as_json)
        return
    _print_endings(session, [ended[ident] for ident in ids], as_json=as_json)


def _progress() -> Any:
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    return Progress(
        TextColumn("{task.description:>9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", style="red"),
        console=Console(stderr=True),
        disable=not _is_watched(),
    )


def _is_watched() -> bool:
    return sys.stderr.isatty()


def _follow(
    session: Session, ids: Sequence[str], ended: dict[str, dict[str, Any]], progress: Any
) -> None:
    from muster.cli.gather import endings  # noqa: PLC0415

    ending_bar = progress.add_task("ended", total=len(ids), note="")
    failed = 0
    for ending in endings(session.rest, ids):
        ended[ending["id"]] = ending
        failed += not _is_good(ending)
        note = f"{failed} failed" if failed else ""
        progress.update(ending_bar, completed=len(ended), note=note)


def _is_good(ending: dict[str, Any]) -> bool:
    # A result that cannot be read comes as SUCCEEDED with an error.
    return ending["state"] == "SUCCEEDED" and "error" not in ending


def _print_ids(session: Session, ids: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        session.print_json({"ids": ids})
    else:
        print("\n".join(ids))


def _print_endings(session: Session, endings: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    from muster.cli.show import reason  # noqa: PLC0415

    failed = [ending for ending in endings if not _is_good(ending)]
    if as_json:
        session.print_json({"items": endings})
    else:
        counts = Counter(ending["state"] or "UNKNOWN" for ending in endings)
        print(", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
        for ending in failed[:_SHOWN_FAILURES]:
            print(f"{ending['id']} {ending['state'] or 'UNKNOWN'}: {reason(ending)}")
        if len(failed) > _SHOWN_FAILURES:
            print(f"… and {len(failed) - _SHOWN_FAILURES} more")
    if failed:
        raise typer.Exit(EXIT_FAILED)
