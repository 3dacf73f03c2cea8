"""Commands on what was done about agents that were down: `recoveries`."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any
from urllib.parse import quote

import typer

from muster.cli.session import Session

AsJson = Annotated[bool, typer.Option("--json", help="Print the REST interface's JSON.")]

_PAGE = 100
_FATES = (("kept", "kept"), ("rerun", "again"), ("moved", "moved"), ("waiting", "waiting"))


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command()(recoveries)


def recoveries(
    ctx: typer.Context,
    ident: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="One recovery, with what was weighed.")
    ] = None,
    agent: Annotated[str | None, typer.Option(help="Only this agent's.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="The newest so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show what was done about agents that were down, and why."""
    session: Session = ctx.obj
    if ident is not None:
        found = session.rest.get(f"/v1/recoveries/{quote(ident, safe='')}")
        if as_json:
            session.print_json(found)
        else:
            _print_one(found)
        return
    queries = {"limit": min(limit, _PAGE)} | ({"agent": agent} if agent else {})
    rows = list(islice(session.rest.pages("/v1/recoveries", queries), limit))
    if as_json:
        session.print_json({"items": rows, "next": None})
        return
    from muster.cli.show import local_time, table  # noqa: PLC0415

    table(
        ("BEGAN", "RECOVERY", "KIND", "ACTION", "OUTCOME", "TASKS", "LOST", "WHAT HAPPENED"),
        (
            (
                local_time(row.get("began_at")),
                row["id"],
                row["kind"],
                row["action"],
                row["outcome"],
                _fates(row),
                _task_seconds(row.get("realised_cost_task_s")),
                row["sentence"],
            )
            for row in rows
        ),
        empty="no agent was down",
    )


def _print_one(found: dict[str, Any]) -> None:
    from muster.cli.show import clock, local_time, pairs, table  # noqa: PLC0415

    pairs(
        (
            ("recovery", found["id"]),
            ("agent", f"{found['agent']} (incarnation {found['incarnation']})"),
            ("what", found["sentence"]),
            ("evidence", found["evidence"]),
            ("policy", found["policy"]),
            ("began", local_time(found.get("began_at"))),
            ("ended", local_time(found.get("ended_at"))),
            ("outcome", found["outcome"]),
            ("tasks", f"{found['tasks']}: {_fates(found)}" if found["tasks"] else "none"),
            ("restarts", found["restarts"] or None),
            ("restart took", _seconds(found.get("restart_took_s"))),
            ("back after", _seconds(found.get("back_after_s"))),
            ("longest wait", _seconds(found.get("longest_wait_s"))),
            ("expected", f"{found['expected_cost_task_s']:,.1f} task-seconds"),
            ("lost", _task_seconds(found.get("realised_cost_task_s"))),
        )
    )
    if not found.get("actions"):
        return
    print()
    table(
        ("WHEN", "ACTION", "EXPECTED", "INSTEAD", "NOT TO BE HAD", "WHY"),
        (
            (
                clock(action.get("at")),
                action["action"],
                f"{action['expected_cost_task_s']:,.1f}",
                ", ".join(f"{name} {cost:,.1f}" for name, cost in action["alternatives"].items()),
                ", ".join(f"{name}: {why}" for name, why in action["excluded"].items()),
                action["sentence"],
            )
            for action in found["actions"]
        ),
        empty="",
    )


def _fates(row: dict[str, Any]) -> str:
    return ", ".join(f"{row[name]} {said}" for name, said in _FATES if row.get(name))


def _task_seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f} task-s"


def _seconds(value: float | None) -> str:
    return "" if not value else f"{value:g} s"
