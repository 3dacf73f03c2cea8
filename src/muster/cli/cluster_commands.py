"""Commands on the whole cluster: `status`, `events`, `env`, `cluster accept-store`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from muster.cli.failure import Failure
from muster.cli.session import Session

AsJson = Annotated[bool, typer.Option("--json", help="Print the REST interface's JSON.")]


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    app.command()(status)
    app.command()(events)
    app.command()(env)
    group = typer.Typer(help="Decide for the whole cluster.", no_args_is_help=False)
    group.command("accept-store")(accept_store)
    app.add_typer(group, name="cluster")


def status(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Show the cluster: its leader, agents, tasks and load."""
    session: Session = ctx.obj
    answer = session.rest.get("/v1/cluster")
    if as_json:
        session.print_json(answer)
        return
    from muster.cli.show import pairs  # noqa: PLC0415

    capacity, used = answer.get("capacity") or {}, answer.get("used") or {}
    rate = answer.get("tasks_per_s")
    pairs(
        (
            ("cluster", session.rest.url),
            ("HALTED", answer.get("halted")),
            *((f"ALARM {name}", why) for name, why in _alarms(answer)),
            ("leader", answer.get("leader") or "none: tasks are accepted and wait"),
            ("term", answer.get("term")),
            ("version", answer.get("version")),
            ("strategy", answer.get("strategy")),
            ("T, U, B", _objective(answer.get("objective"))),
            ("agents", _counts(answer.get("agents"), "none")),
            ("tasks", _counts(answer.get("tasks"), "none")),
            ("ended per s", f"{rate:.1f}" if isinstance(rate, int | float) else None),
            *(
                (name, f"{used.get(name, 0)} of {amount}")
                for name, amount in capacity.items()
                if amount != "0"
            ),
        )
    )


def _alarms(answer: dict[str, Any]) -> list[tuple[str, str]]:
    """What the halt does not say already."""
    alarms: dict[str, str] = answer.get("alarms") or {}
    return [(name, why) for name, why in alarms.items() if why != answer.get("halted")]


def accept_store(
    ctx: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; else only what it means.")] = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a Redis that was rolled back.

    What it has lost is lost, and what it believes to be open runs again.
    """
    session: Session = ctx.obj
    if not yes:
        halted = session.rest.get("/v1/cluster").get("halted")
        if not halted:
            raise Failure("the store was not rolled back: there is nothing to accept")
        raise Failure(
            f"{halted}. To accept: tasks that this Redis does not know are lost, and tasks that it"
            " believes to be open run again. Repeat with --yes"
        )
    answer = session.rest.post("/v1/cluster/accept-store")
    if as_json:
        session.print_json(answer)
    else:
        print(f"accepted: {answer['accepted']}")


def _objective(now: dict[str, float] | None) -> str | None:
    return f"{now['T']:.1f} s, {now['U']:.3f}, {now['B']:.3f}" if now else None


def _counts(by_state: dict[str, Any] | None, empty: str) -> str:
    if by_state is None:
        return "unknown"
    return ", ".join(f"{n} {state}" for state, n in by_state.items() if n) or empty


def env(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Print the URL and the key for a shell.

    `eval "$(muster env)"` sets both, for curl and for programs.
    """
    from shlex import quote  # noqa: PLC0415

    session: Session = ctx.obj
    target = session.target
    if as_json:
        session.print_json({"url": target.url, "api_key": target.api_key, "urls": target.urls})
    else:
        print(f"export MUSTER_URL={quote(','.join(target.urls))}")
        print(f"export MUSTER_API_KEY={quote(target.api_key)}")


def events(
    ctx: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print what has happened lately; with --follow what happens from now on."""
    from muster.cli.streams import print_events  # noqa: PLC0415

    session: Session = ctx.obj
    print_events(session, follow=follow, as_json=as_json)
