"""Commands on alerts: `alerts`, and below it `silence`, `silences`, `unsilence`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

import typer

from muster.cli.session import Session

AsJson = Annotated[bool, typer.Option("--json", help="Print the REST interface's JSON.")]

_PAGE = 1000
_SEVERITIES = ("critical", "warning", "info")
_STATES = ("firing", "pending", "resolved")


def add_to(app: typer.Typer) -> None:
    """Registers the group."""
    group = typer.Typer(help="What is wrong, and who is not to be told.", no_args_is_help=False)
    group.callback(invoke_without_command=True)(alerts)
    group.command("silence")(silence)
    group.command("silences")(silences)
    group.command("unsilence")(unsilence)
    app.add_typer(group, name="alerts")


def alerts(
    ctx: typer.Context,
    state: Annotated[str | None, typer.Option(help="pending, firing or resolved.")] = None,
    severity: Annotated[str | None, typer.Option(help="info, warning or critical.")] = None,
    rule: Annotated[str | None, typer.Option(help="The rule's name.")] = None,
    agent: Annotated[str | None, typer.Option(help="The agent's id.")] = None,
    as_json: AsJson = False,
) -> None:
    """List alerts: what fires first, resolved ones of the last hour last."""
    if ctx.invoked_subcommand is not None:
        return
    session: Session = ctx.obj
    filters = {"state": state, "severity": severity, "rule": rule, "agent": agent}
    query = {name: value for name, value in filters.items() if value is not None}
    found = list(session.rest.pages("/v1/alerts", {**query, "limit": _PAGE}))
    if as_json:
        session.print_json({"items": found, "next": None})
        return
    from muster.cli.show import age, table  # noqa: PLC0415

    now = datetime.now(UTC)
    table(
        ("STATE", "SEVERITY", "RULE", "FOR", "ABOUT", "SUMMARY"),
        (
            (
                item["state"] + (" (silenced)" if item["silenced_by"] else ""),
                item["severity"],
                item["rule"],
                age(_since(item), now),
                " ".join(item["labels"].values()),
                item["summary"],
            )
            for item in sorted(found, key=_urgency)
        ),
        empty="no alerts",
    )


def silence(
    ctx: typer.Context,
    matchers: Annotated[
        list[str],
        typer.Argument(metavar="MATCHER…", help="agent=a1, rule=~cpu_.*, severity!=critical"),
    ],
    duration: Annotated[str, typer.Option("--for", help="E.g. 2h.")] = "1h",
    comment: Annotated[str, typer.Option(help="Why.")] = "",
    as_json: AsJson = False,
) -> None:
    """Let nobody be told of the alerts that all matchers match. Prints the silence's id."""
    session: Session = ctx.obj
    body = {"matchers": matchers, "duration": duration, "comment": comment}
    # Made twice it would have to be ended twice.
    answer = session.rest.post("/v1/silences", body, repeatable=False)
    if as_json:
        session.print_json(answer)
    else:
        print(answer["id"])


def silences(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List silences; those that are over for a day."""
    session: Session = ctx.obj
    answer = session.rest.get("/v1/silences")
    if as_json:
        session.print_json(answer)
        return
    from muster.cli.show import local_time, table  # noqa: PLC0415

    table(
        ("SILENCE", "STATE", "ENDS", "BY", "MATCHERS", "COMMENT"),
        (
            (
                item["id"],
                item["state"],
                local_time(item["ends_at"]),
                item["author"],
                " ".join(item["matchers"]),
                item["comment"],
            )
            for item in answer["items"]
        ),
        empty="no silences",
    )


def unsilence(
    ctx: typer.Context,
    ident: Annotated[str, typer.Argument(metavar="ID", help="The silence's id.")],
    as_json: AsJson = False,
) -> None:
    """End a silence now."""
    session: Session = ctx.obj
    answer = session.rest.delete(f"/v1/silences/{quote(ident, safe='')}")
    if as_json:
        session.print_json(answer)
    else:
        print(f"{ident} ended")


def _urgency(alert: dict[str, Any]) -> tuple[int, int, str]:
    """Firing before pending before resolved, critical before the others, then the newest."""
    places = [
        names.index(alert[key]) if alert[key] in names else len(names)
        for key, names in (("state", _STATES), ("severity", _SEVERITIES))
    ]
    return (places[0], places[1], "".join(chr(0x10FFFF - ord(c)) for c in _since(alert) or ""))


def _since(alert: dict[str, Any]) -> str | None:
    """When it came into its state."""
    by_state = {"resolved": "resolved_at", "firing": "fired_at"}
    since: str | None = alert.get(by_state.get(alert["state"], "started_at"))
    return since
