"""`muster agent run` and `muster service NAME`: this process becomes the daemon.

No typer and no rich here: a daemon keeps in memory what it has imported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from muster.domain.errors import MusterError

_SERVICES = "muster.services"
_EXIT_CONFIGURATION = 78
_EXIT_USAGE = 2

# Flag, environment variable, what it is for.
_AGENT_FLAGS = (
    ("--id", "MUSTER_AGENT_ID", "the agent's name (a-z 0-9 - .)"),
    ("--state-dir", "MUSTER_STATE_DIR", "folder of the agent: its instance key, its outbox"),
    ("--registry", "MUSTER_REGISTRY", "host:port of the registry, several with commas"),
    ("--cpu", "MUSTER_AGENT_CPU", "cpu that it offers, e.g. 4 or 500m"),
    ("--memory", "MUSTER_AGENT_MEMORY", "memory that it offers, e.g. 8Gi"),
    ("--network", "MUSTER_AGENT_NETWORK", "network that it offers in bit/s, e.g. 1G"),
    ("--slots", "MUSTER_AGENT_SLOTS", "how many tasks it holds at once"),
    ("--resources", "MUSTER_AGENT_RESOURCES", "others, e.g. gpu=2,tokens_per_minute=90000"),
    ("--labels", "MUSTER_AGENT_LABELS", "e.g. zone=a,disk=ssd"),
)


def run_agent(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """`muster agent run`: flags go before the environment."""
    parser = argparse.ArgumentParser(
        "muster agent run",
        description="Runs an agent in the foreground. Each option has a variable of the "
        "environment; the join secret is read from MUSTER_JOIN_SECRET, or from a file.",
    )
    for flag, variable, text in _AGENT_FLAGS:
        parser.add_argument(flag, dest=variable, metavar="VALUE", help=f"{text} ({variable})")
    parser.add_argument(
        "--skills",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module, or a .py file, whose skills it offers (repeatable; MUSTER_SKILLS)",
    )
    parser.add_argument("--join-secret-file", type=Path, metavar="FILE")
    given = vars(parser.parse_args(argv))
    settings = {name: given[name] for _, name, _ in _AGENT_FLAGS if given[name] is not None}
    if given["skills"]:
        settings["MUSTER_SKILLS"] = ",".join(given["skills"])
    if (secret_file := given["join_secret_file"]) is not None:
        try:
            settings["MUSTER_JOIN_SECRET"] = secret_file.read_text().strip()
        except OSError as error:
            return _fail(f"--join-secret-file {secret_file}: {error.strerror}", _EXIT_USAGE)
    return _become_agent({**environ, **settings})


def _become_agent(environ: Mapping[str, str]) -> int:
    import os  # noqa: PLC0415

    # The agent's own processes read the same environment.
    os.environ.update(environ)
    sys.argv = ["muster-agent"]
    from muster.agent.__main__ import main  # noqa: PLC0415

    main()
    return 0


def run_service(argv: Sequence[str]) -> int:
    """`muster service NAME`: the service that an installed package contributes."""
    services = {entry.name: entry for entry in entry_points(group=_SERVICES)}
    names = ", ".join(sorted(services)) or "none is installed"
    parser = argparse.ArgumentParser(
        "muster service",
        description=f"Runs a service in the foreground, configured by MUSTER_*: {names}.",
    )
    parser.add_argument("name", metavar="NAME")
    args = parser.parse_args(argv)
    entry = services.get(args.name)
    if entry is None:
        return _fail(f"there is no service {args.name!r}; there is {names}", _EXIT_USAGE)
    return _become_service(entry)


def _become_service(entry: EntryPoint) -> int:
    try:
        main = entry.load()
    except (ImportError, AttributeError) as error:
        return _fail(f"service {entry.name} cannot be loaded: {error}", _EXIT_CONFIGURATION)
    sys.argv = [f"muster-{entry.name}"]
    try:
        main()
    except MusterError as error:
        return _fail(f"service {entry.name}: {error}", 1)
    return 0


def _fail(sentence: str, code: int) -> int:
    print(f"muster: {sentence}", file=sys.stderr)
    return code
