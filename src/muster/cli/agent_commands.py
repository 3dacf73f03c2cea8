"""Commands on agents: `agents`, `agent`, `cordon`, `uncordon`, `drain`, `restart`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

import typer

from muster.cli.session import Session

AsJson = Annotated[bool, typer.Option("--json", help="Print the REST interface's JSON.")]
AgentArgument = Annotated[str, typer.Argument(metavar="ID", help="The agent's id.")]

_ACTIONS = {
    "cordon": "Give an agent no new tasks; those it has go on.",
    "uncordon": "Give an agent tasks again, after cordon or drain.",
    "restart": "Start an agent's runtime anew; its tasks begin again.",
}
_PAGE = 1000
# So many names of skills fit beside the rest.
_SHOWN_SKILLS = 6
# Of a timeline: less silence than between beats, and no suspicion, are left out.
_SILENT_MS = 1_500
_PHI = 0.5


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    app.command()(agents)
    app.command(context_settings={"ignore_unknown_options": False})(agent)
    for name, text in _ACTIONS.items():
        _add_action(app, name, text)
    app.command()(drain)


def agents(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the agents, what they are up to and how full they are."""
    session: Session = ctx.obj
    found = list(session.rest.pages("/v1/agents", {"limit": _PAGE}))
    if as_json:
        session.print_json({"items": found, "next": None})
        return
    from muster.cli.show import table  # noqa: PLC0415

    table(
        ("AGENT", "STATE", "TASKS", "CPU", "MEMORY", "HEALTH", "SKILLS"),
        (
            (
                item["id"],
                item["state"],
                _tasks_of(item),
                _share(item, "cpu"),
                _share(item, "memory"),
                _health(item.get("health")),
                _skills(item.get("skills")),
            )
            for item in found
        ),
        empty="no agents",
    )


def agent(
    ctx: typer.Context,
    ident: Annotated[
        str, typer.Argument(metavar="ID", help="The agent's id; `run` runs one (see `run --help`).")
    ],
    as_json: AsJson = False,
) -> None:
    """Show an agent, or with `agent run` be one."""
    session: Session = ctx.obj
    found = session.rest.get(f"/v1/agents/{quote(ident, safe='')}")
    if as_json:
        session.print_json(found)
    else:
        _print_agent(found)


def _print_agent(agent: dict[str, Any]) -> None:
    from muster.cli.show import age, local_time, pairs, table  # noqa: PLC0415

    now = datetime.now(UTC)
    capacity, used = agent.get("capacity") or {}, agent.get("used") or {}
    metrics = agent.get("metrics") or {}
    pairs(
        (
            ("agent", agent["id"]),
            ("state", agent["state"]),
            ("wish", agent.get("wish") if agent.get("wish") != "NONE" else None),
            ("health", _health(agent.get("health"))),
            ("because of", "; ".join(agent.get("health_reasons") or [])),
            ("phi", agent.get("phi")),
            ("incarnation", agent.get("incarnation")),
            ("since", local_time(agent.get("registered_at"))),
            ("seen", _ago(age(metrics.get("last_seen_at"), now))),
            ("host", f"{agent.get('host', '')} (pid {agent.get('pid')})"),
            ("version", agent.get("version")),
            ("labels", " ".join(f"{k}={v}" for k, v in (agent.get("labels") or {}).items())),
            ("skills", " ".join(agent.get("skills") or [])),
            ("tasks", _tasks_of(agent)),
            *((name, f"{used.get(name, 0)} of {amount}") for name, amount in capacity.items()),
            *((name, _figure(value)) for name, value in (metrics.get("values") or {}).items()),
        )
    )
    evidence = agent.get("evidence") or []
    if evidence:
        print()
        table(
            ("WHEN", "WHAT", "STATE", "SILENT", "PHI", "WHO", "WHY"),
            (
                (
                    local_time(item.get("at")),
                    item.get("what") or "",
                    item["state"],
                    _silence(item.get("silent_ms")),
                    _phi(item.get("phi")),
                    item.get("who") or "",
                    item["why"],
                )
                for item in evidence
            ),
            empty="",
        )


def _add_action(app: typer.Typer, name: str, text: str) -> None:
    def act(ctx: typer.Context, ident: AgentArgument, as_json: AsJson = False) -> None:
        session: Session = ctx.obj
        path = f"/v1/agents/{quote(ident, safe='')}/{name}"
        # A second restart would throw away what the first one has begun.
        answer = session.rest.post(path, repeatable=name != "restart")
        if as_json:
            session.print_json(answer)
        else:
            print(f"{ident} {answer['state']}")

    app.command(name, help=text)(act)


def drain(
    ctx: typer.Context,
    ident: AgentArgument,
    deadline: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="What still runs after so long goes back to the queue, e.g. 60s."
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Give an agent no new tasks, let it finish, and let it go."""
    session: Session = ctx.obj
    body = {"deadline": deadline} if deadline else None
    answer = session.rest.post(f"/v1/agents/{quote(ident, safe='')}/drain", body)
    if as_json:
        session.print_json(answer)
    else:
        print(f"{ident} {answer['state']}")


def _tasks_of(agent: dict[str, Any]) -> str:
    return f"{agent.get('running_tasks', 0)} of {(agent.get('capacity') or {}).get('slots', '?')}"


def _share(agent: dict[str, Any], resource: str) -> str:
    used = (agent.get("used") or {}).get(resource, "0")
    return f"{used}/{(agent.get('capacity') or {}).get(resource, '0')}"


def _health(health: object) -> str:
    return f"{health:.2f}" if isinstance(health, int | float) else ""


def _silence(silent_ms: object) -> str:
    """How long it had not been heard, where that is worth a word."""
    from muster.cli.show import duration  # noqa: PLC0415

    known = isinstance(silent_ms, int | float) and silent_ms >= _SILENT_MS
    return duration(float(silent_ms) / 1000) if known else ""  # type: ignore[arg-type]


def _phi(phi: object) -> str:
    return f"{phi:.1f}" if isinstance(phi, int | float) and phi >= _PHI else ""


def _skills(skills: list[str] | None) -> str:
    names = skills or []
    more = len(names) - _SHOWN_SKILLS
    return " ".join(names[:_SHOWN_SKILLS]) + (f" +{more}" if more > 0 else "")


def _figure(value: object) -> object:
    """A metric without digits that mean nothing."""
    if not isinstance(value, float):
        return value
    return int(value) if abs(value) >= 100 or value.is_integer() else float(f"{value:.3g}")


def _ago(text: str) -> str:
    return f"{text} ago" if text else ""
