"""`muster plan`: where the tasks of a file would go, without submitting them."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Annotated, Any

import typer

from muster.cli.failure import EXIT_USAGE, Failure
from muster.cli.session import Session
from muster.cli.task_body import parse_task_lines, read_text
from muster.domain.durations import parse_duration_ms

Option = typer.Option

# Of what is shown; --json has all.
_SHOWN_AGENTS = 40
_SHOWN_REASONS = 20
# Beside the budget, for starting and for the way.
_GRACE_S = 150.0
_BUDGET_S = 5.0


def plan(
    ctx: typer.Context,
    file: Annotated[
        str,
        Option("--file", "-f", help="One task per line (JSON): a file, or - for standard input."),
    ],
    strategy: Annotated[
        str | None, Option(help="E.g. search; as the policy has it if not given.")
    ] = None,
    weight: Annotated[
        list[str] | None, Option(help="Of J: t=NUMBER, u=NUMBER or b=NUMBER (repeatable).")
    ] = None,
    bound: Annotated[
        list[str] | None, Option(help="T=, B= or J= at most, U= at least (repeatable).")
    ] = None,
    objective: Annotated[str | None, Option(help="J, T or makespan.")] = None,
    budget: Annotated[str | None, Option(help="What planning may take (default 5s).")] = None,
    seed: Annotated[int, Option(help="Equal seeds repeat a plan.")] = 0,
    max_steps: Annotated[int, Option(help="Of improvement; 0 = as the budget lets.")] = 0,
    front: Annotated[bool, Option("--front", help="The Pareto front of T and B as well.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print the REST interface's JSON.")] = False,
) -> None:
    """Show where tasks would go as things stand; nothing is submitted.

    T is the sum of run times in seconds, U the used share of the cluster, B how unevenly the
    agents are loaded, and J weighs the three: smaller is better.
    """
    session: Session = ctx.obj
    body: dict[str, Any] = {"tasks": parse_task_lines(read_text(file, "--file"), file, {})}
    weights, bounds = _numbers(weight, "--weight"), _numbers(bound, "--bound")
    fields = {
        "strategy": strategy,
        "weights": weights or None,
        "bounds": bounds or None,
        "objective": objective,
        "budget": budget,
        "seed": seed or None,
        "max_steps": max_steps or None,
        "front": front or None,
    }
    body |= {name: value for name, value in fields.items() if value is not None}
    wait_s = parse_duration_ms(budget, field="--budget") / 1000 if budget else _BUDGET_S
    answer = session.rest.post("/v1/plans", body, read_s=wait_s + _GRACE_S)
    if as_json:
        session.print_json(answer)
    else:
        _print_plan(answer)


def _numbers(given: list[str] | None, option: str) -> dict[str, float]:
    numbers = {}
    for text in given or ():
        name, _, number = text.partition("=")
        try:
            numbers[name] = float(number)
        except ValueError:
            raise Failure(
                f"{option} {text!r} is not accepted; it reads NAME=NUMBER", EXIT_USAGE
            ) from None
    return numbers


def _print_plan(answer: dict[str, Any]) -> None:
    from muster.cli.show import duration, pairs  # noqa: PLC0415

    placements = answer["placements"]
    bound = answer.get("lower_bound")
    pairs(
        (
            ("strategy", answer["strategy"]),
            ("placed", f"{len(placements) - answer['unplaced']} of {len(placements)}"),
            ("T", f"{answer['T']:.6g} s of run time"),
            ("U", f"{answer['U']:.4f} of the cluster used, with what runs"),
            ("B", f"{answer['B']:.4f} uneven"),
            ("J", f"{answer['J']:.6g}"),
            (
                "bound",
                None if bound is None else f"{answer['objective']} is at least {bound:.6g}",
            ),
            ("took", duration(answer["elapsed_s"])),
            ("waiting", f"{answer['queued']} other tasks" if answer["queued"] else None),
        )
    )
    _print_agents(placements)
    _print_reasons(answer["reasons"])
    if answer.get("front") is not None:
        _print_front(answer["front"])


def _print_agents(placements: list[dict[str, Any]]) -> None:
    from muster.cli.show import table  # noqa: PLC0415

    counts = Counter(p["agent"] for p in placements if p["agent"] is not None)
    devices: dict[str, Counter[str]] = defaultdict(Counter)
    for placement in placements:
        for name, indices in (placement.get("devices") or {}).items():
            devices[placement["agent"]].update(f"{name}[{index}]" for index in indices)
    if not counts:
        return
    print()
    columns = ["AGENT", "TASKS", "DEVICES"] if devices else ["AGENT", "TASKS"]
    rows = [
        (agent, count, " ".join(sorted(devices[agent])) if agent in devices else "")
        for agent, count in counts.most_common(_SHOWN_AGENTS)
    ]
    table(columns, (row[: len(columns)] for row in rows), empty="")
    _more(len(counts) - _SHOWN_AGENTS, "agents")


def _print_reasons(reasons: list[dict[str, Any]]) -> None:
    from muster.cli.show import table  # noqa: PLC0415

    if not reasons:
        return
    print()
    most = sorted(reasons, key=lambda reason: -reason["tasks"])[:_SHOWN_REASONS]
    table(["UNPLACED", "WHY"], ((r["tasks"], r["text"]) for r in most), empty="")
    _more(len(reasons) - _SHOWN_REASONS, "reasons")


def _print_front(points: list[dict[str, Any]]) -> None:
    from muster.cli.show import table  # noqa: PLC0415

    print()
    rows = (
        (f"{p['T']:.6g}", f"{p['U']:.4f}", f"{p['B']:.4f}", f"{p['J']:.6g}", p["unplaced"])
        for p in points
    )
    table(["T", "U", "B", "J", "UNPLACED"], rows, empty="no points")


def _more(count: int, what: str) -> None:
    if count > 0:
        print(f"… and {count} more {what}; --json has all")
