"""Commands on how tasks are placed: `policy get`, `policy set`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from muster.cli.session import Session
from muster.domain.errors import InvalidInput
from muster.domain.policy import RECOVERIES, STRATEGIES, parse_policy

AsJson = Annotated[bool, typer.Option("--json", help="Print the REST interface's JSON.")]

# Of a policy's document; the gateway takes no larger one.
_MAX_FILE_BYTES = 16 * 1024


def add_to(app: typer.Typer) -> None:
    """Registers the group."""
    policy = typer.Typer(help="Show and change how tasks are placed.", no_args_is_help=False)
    policy.command("get")(get)
    policy.command("set")(set_policy)
    app.add_typer(policy, name="policy")


def get(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Show the policy by which tasks are placed."""
    session: Session = ctx.obj
    _show(session, session.rest.get("/v1/policy"), as_json)


def set_policy(
    ctx: typer.Context,
    file: Annotated[
        str | None,
        typer.Option("--file", metavar="FILE", help="A whole policy as JSON; - is standard input."),
    ] = None,
    strategy: Annotated[str | None, typer.Option(help=f"One of {', '.join(STRATEGIES)}.")] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(metavar="t|u|b=NUMBER", help="All of them anew; those left out are 0."),
    ] = None,
    bound: Annotated[
        list[str] | None,
        typer.Option(metavar="T|U|B|J=NUMBER", help="All of them anew."),
    ] = None,
    no_bounds: Annotated[bool, typer.Option("--no-bounds", help="Drop all bounds.")] = False,
    penalty: Annotated[float | None, typer.Option(help="Weight of unplaced work in J.")] = None,
    objective: Annotated[str | None, typer.Option(help="J, T or makespan.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="What an improving strategy may take, e.g. 200ms.")
    ] = None,
    recovery: Annotated[
        str | None, typer.Option(help=f"Of agents that are down: {', '.join(RECOVERIES)}.")
    ] = None,
    recovery_bound: Annotated[
        list[str] | None,
        typer.Option(metavar="T|U|B=NUMBER", help="What a recovery may cost; all of them anew."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change the policy; the leader places by it within a second.

    Options change what they name and leave the rest. --file replaces the whole policy, before the
    options.
    """
    session: Session = ctx.obj
    changes = {
        "strategy": strategy,
        "weights": _numbers("--weight", weight),
        "bounds": {} if no_bounds else _numbers("--bound", bound),
        "penalty": penalty,
        "objective": objective,
        "budget": budget,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    if no_bounds and bound:
        raise InvalidInput("--no-bounds", "--bound", "give one of them")
    if file is None and not (changes or recovery or recovery_bound):
        raise InvalidInput("policy set", "", "give --file or what to change")
    if file is not None:
        document, etag = _read(file), ""
    else:
        document, etag = session.rest.get_tagged("/v1/policy")
    document = {**document, **changes}
    of_recovery = {
        "policy": recovery,
        "bounds": _numbers("--recovery-bound", recovery_bound),
    }
    of_recovery = {name: value for name, value in of_recovery.items() if value is not None}
    if of_recovery:
        before = document.get("recovery")
        document["recovery"] = {**(before if isinstance(before, dict) else {}), **of_recovery}
    parse_policy(document)
    _show(session, session.rest.put("/v1/policy", document, if_match=etag), as_json)


def _read(file: str) -> dict[str, Any]:
    try:
        if file == "-":
            text = sys.stdin.read(_MAX_FILE_BYTES + 1)
        else:
            with Path(file).open(encoding="utf-8") as source:
                text = source.read(_MAX_FILE_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("--file", file, f"cannot be read: {error}") from error
    if len(text) > _MAX_FILE_BYTES:
        raise InvalidInput("--file", file, f"a policy has at most {_MAX_FILE_BYTES} bytes")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("--file", file, f"must be JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidInput("--file", file, "must hold a JSON object")
    return document


def _numbers(option: str, pairs: Sequence[str] | None) -> dict[str, float] | None:
    if not pairs:
        return None
    found: dict[str, float] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            found[name] = float(text)
        except ValueError:
            raise InvalidInput(option, pair, "must be NAME=NUMBER") from None
    return found


def _show(session: Session, document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        session.print_json(document)
        return
    from muster.cli.show import pairs  # noqa: PLC0415

    weights, bounds = document["weights"], document["bounds"]
    # A gateway of an older version says nothing of it.
    recovery = document.get("recovery") or {}
    limits = recovery.get("bounds") or {}
    pairs(
        (
            ("strategy", document["strategy"]),
            ("weights", ", ".join(f"{name} {value:g}" for name, value in weights.items())),
            ("penalty", f"{document['penalty']:g}"),
            ("objective", document["objective"]),
            ("bounds", ", ".join(f"{n} {v:g}" for n, v in bounds.items()) or "none"),
            ("budget", document["budget"]),
            ("recovery", recovery.get("policy")),
            ("recovery bounds", ", ".join(f"{n} {v:g}" for n, v in limits.items())),
        )
    )
