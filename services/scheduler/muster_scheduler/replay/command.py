"""`muster replay TRACE --strategy A --strategy B …`: what other policies would have done."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from muster.cli.failure import Failure
from muster.cli.session import Session
from muster.domain.errors import InvalidInput, MusterError
from muster.domain.resources import ResourceVector
from muster_scheduler.placement import strategy as strategies
from muster_scheduler.placement.plan import Policy
from muster_scheduler.replay import azure, history, openb
from muster_scheduler.replay.plot import check_plot, save_plot
from muster_scheduler.replay.report import Figures, figures, table
from muster_scheduler.replay.simulator import ORACLE, Run, simulate
from muster_scheduler.replay.trace import MAX_TASKS, Trace, TraceAgent, checked, thinned

EXIT_FAILED = 1
EXIT_USAGE = 2
DEFAULT_STRATEGIES = ("worst_fit", "greedy", "learned")
_DEFAULT_AGENTS = 16
_MAX_STEPS = 1_000_000
# Tasks of one answer of the cluster.
_PAGE = 500
_SPEEDS = re.compile(r"([0-9]+(?:\.[0-9]+)?)(?:-([0-9]+(?:\.[0-9]+)?))?")


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 0, 1 for what is missing here, 2 for a wrong value or file."""
    args = _parser().parse_args(argv)
    try:
        chosen = _checked_strategies(args.strategy or DEFAULT_STRATEGIES)
        if args.plot is not None:
            check_plot(args.plot)
        trace = read_trace(args)
        runs: list[Run] = []
        rows: list[Figures] = []
        if not args.json:
            _say(trace)
        for name in chosen:
            runs.append(simulate(trace, name, Policy(strategy=name), args.seed, args.steps))
            rows.append(figures(trace, runs[-1], args.skip))
            if args.json:
                print(json.dumps(msgspec.to_builtins(rows[-1])), flush=True)
        if not args.json:
            print(table(rows))
        if args.plot is not None:
            save_plot(trace, runs, args.plot)
    except InvalidInput as error:
        return _fail(str(error), EXIT_USAGE)
    except MusterError as error:
        return _fail(str(error), EXIT_FAILED)
    except Failure as failure:
        return _fail(str(failure), failure.exit_code)
    return 0


def read_trace(args: argparse.Namespace) -> Trace:
    """The trace of the command line, with its agents."""
    if args.skip < 0:
        raise InvalidInput("--skip", args.skip, "must be at least 0")
    if not 0 <= args.steps <= _MAX_STEPS:
        raise InvalidInput("--steps", args.steps, f"must be from 0 to {_MAX_STEPS}")
    if (args.trace is None) != args.history:
        raise InvalidInput("TRACE", str(args.trace or ""), "give a file, or --history without one")
    if args.history:
        return _bounded(history.history_of("history", _fetched(), _agents(args, "muster")), args)
    kind = args.format if args.format != "auto" else _kind_of(args.trace)
    agents = _agents(args, kind)
    if kind == "openb":
        trace = openb.read_openb(args.trace, agents or ())
    elif kind == "azure":
        trace = azure.read_azure(args.trace, agents or (), hide_answer=args.hide_answer)
    else:
        trace = history.read_history(args.trace, agents)
    return _bounded(trace, args)


def _fetched() -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The tasks that the cluster still knows, newest first, as it lists them."""
    session = Session(os.environ)
    try:
        rows = session.rest.pages("/v1/tasks", {"limit": _PAGE})
        yield from enumerate(islice(rows, MAX_TASKS + 1), 1)
    finally:
        session.close()


def _bounded(trace: Trace, args: argparse.Namespace) -> Trace:
    trace = checked(thinned(trace, args.rate, args.limit))
    if args.skip >= len(trace.tasks):
        raise InvalidInput("--skip", args.skip, f"the trace has {len(trace.tasks)} tasks")
    return trace


def _agents(args: argparse.Namespace, kind: str) -> tuple[TraceAgent, ...] | None:
    """None: those that the history itself names."""
    if args.nodes is not None:
        if kind != "openb":
            raise InvalidInput("--nodes", str(args.nodes), "goes with an openb trace only")
        return openb.read_nodes(args.nodes)
    if kind == "muster" and args.agents is None:
        return None
    slots = args.slots or (openb.SLOTS if kind == "openb" else azure.SLOTS)
    amounts = {"cpu": args.cpu, "memory": args.memory, "network": "10G", "gpu": args.gpu}
    capacity = ResourceVector.parse({**amounts, "slots": slots}, field="--")
    match = _SPEEDS.fullmatch(args.speeds)
    if match is None:
        raise InvalidInput("--speeds", args.speeds, "must be LOW-HIGH, e.g. 1-8, or one number")
    speeds = float(match[1]), float(match[2] or match[1])
    count = _DEFAULT_AGENTS if args.agents is None else args.agents
    if count < 1:
        raise InvalidInput("--agents", count, "must be at least 1")
    return azure.equal_agents(count, capacity, speeds, args.seed)


def _kind_of(path: Path) -> str:
    """By the first line."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            head = file.readline(4096)
    except OSError as error:
        raise InvalidInput("TRACE", str(path), f"cannot be read: {error.strerror}") from None
    if "ContextTokens" in head:
        return "azure"
    if "num_gpu" in head:
        return "openb"
    if head.lstrip()[:1] in ("{", "["):
        return "muster"
    limit = "is no trace that is known by its first line; --format azure, openb or muster says"
    raise InvalidInput("TRACE", str(path), limit)


def _checked_strategies(chosen: Sequence[str]) -> Sequence[str]:
    known = (*strategies.names(), ORACLE)
    for name in chosen:
        if name not in known:
            raise InvalidInput("--strategy", name, "one of " + ", ".join(known))
    return list(dict.fromkeys(chosen))


def _say(trace: Trace) -> None:
    hours = trace.tasks[-1].arrival_s / 3600
    print(f"{len(trace.tasks)} tasks in {hours:.2f} h on {len(trace.agents)} agents")
    for note in trace.notes:
        print(f"({note})")
    print()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "muster replay",
        description="Runs a recorded trace in virtual time through the placement of the live "
        "cluster, once for each strategy, and prints what each would have given.",
        epilog="Formats: azure (CSV of LLM requests: TIMESTAMP, ContextTokens, GeneratedTokens), "
        "openb (CSV of pods), muster (what `muster tasks --all --json` prints). Strategy "
        "`oracle` is `learned` given the true run times.",
    )
    add = parser.add_argument
    add("trace", metavar="TRACE", type=Path, nargs="?")
    add("--history", action="store_true", help="instead of TRACE: what the cluster has run")
    add("--strategy", action="append", metavar="NAME", help="repeatable")
    add("--format", choices=("auto", "azure", "openb", "muster"), default="auto")
    add("--agents", type=int, help="equal agents (default: those of the history, else 16)")
    add("--nodes", type=Path, metavar="CSV", help="openb's list of nodes, instead of --agents")
    add("--cpu", default="64", help="of each agent of --agents (default 64)")
    add("--memory", default="256Gi", help="likewise (default 256Gi)")
    add("--gpu", default="0", help="likewise (default 0)")
    add("--slots", type=int, help="tasks at once, likewise (default 4, openb 1000)")
    add("--speeds", default="1", help="LOW-HIGH: hidden speeds of --agents (default 1, all equal)")
    add("--rate", type=float, default=1.0, help="tasks arrive so many times as fast")
    add("--limit", type=int, help="only the first so many tasks")
    add("--skip", type=int, default=0, help="leave the first so many out of the figures")
    add("--hide-answer", action="store_true", help="azure: nobody knows how long answers will be")
    add("--steps", type=int, default=0, help="steps that an improving strategy may take a plan")
    add("--seed", type=int, default=0)
    add("--json", action="store_true", help="one JSON object a strategy")
    add("--plot", type=Path, metavar="FILE", help=".png, .svg or .pdf (needs matplotlib)")
    return parser


def _fail(sentence: str, code: int) -> int:
    print(f"muster: {sentence}", file=sys.stderr)
    return code
