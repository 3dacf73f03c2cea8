"""The command line of `muster up` and `muster down`.

argparse and not typer: the parent of a cluster lives long and stays small.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from muster.domain.errors import ConfigurationError, InvalidInput
from muster.domain.quantity import parse_quantity
from muster.domain.resources import unit_of
from muster.local.machine import cpu_count, fair_share, memory_bytes
from muster.local.profile import read_profile
from muster.local.state import default_state_dir

DEFAULT_AGENTS = 4
# Each agent is three processes or more; past this one machine only swaps.
MAX_AGENTS = 256
# More of a service than this on one machine guards against nothing that fewer do not.
MAX_REPLICAS = 5

_UP = """\
Starts a whole cluster on this machine: etcd, Redis (every write on disk before it is answered),
the five services and N agents, each a process of its own on loopback. A second `up` on the same
state directory continues where it was.

Each agent offers all cores and its share of the memory: one machine, shared by its agents."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What `muster up` was asked for, checked."""

    state_dir: Path
    agents: int
    replicas: int
    agent_cpu: str
    agent_memory: str
    skills: tuple[str, ...]
    port: int | None
    detach: bool
    as_json: bool


@dataclass(frozen=True, slots=True)
class DownOptions:
    """What `muster down` was asked for."""

    state_dir: Path
    as_json: bool


def parse_up(argv: Sequence[str], environ: Mapping[str, str]) -> UpOptions:
    """Exits with 2 on a wrong command line; raises ConfigurationError on a value of no use."""
    parser = argparse.ArgumentParser(
        "muster up", description=_UP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--agents",
        type=int,
        default=DEFAULT_AGENTS,
        metavar="N",
        help=f"how many agents, 0 to {MAX_AGENTS} (default {DEFAULT_AGENTS})",
    )
    add(
        "--replicas",
        type=int,
        default=1,
        metavar="N",
        help=f"how many processes of each service, 1 to {MAX_REPLICAS} (default 1)",
    )
    add(
        "--skills",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module, or a .py file, whose skills every agent offers (repeatable)",
    )
    add("--agent-cpu", metavar="CPU", help="cpu of each agent (default: all cores)")
    add("--agent-memory", metavar="MEM", help="memory of each agent (default: its share)")
    add("--port", type=int, metavar="P", help="port of the REST API (default: a free one, kept)")
    add("--state-dir", type=Path, metavar="DIR", help="default: ~/.local/state/muster")
    add("--detach", action="store_true", help="return when it is ready and leave it running")
    add("--json", action="store_true", help="print one JSON line when it is ready")
    args = parser.parse_args(argv)
    if not 0 <= args.agents <= MAX_AGENTS:
        parser.error(f"--agents: {args.agents} is not accepted; 0 to {MAX_AGENTS}")
    if not 1 <= args.replicas <= MAX_REPLICAS:
        parser.error(f"--replicas: {args.replicas} is not accepted; 1 to {MAX_REPLICAS}")
    if args.port is not None and not 1 <= args.port <= 65535:
        parser.error(f"--port: {args.port} is not accepted; 1 to 65535")
    return UpOptions(
        state_dir=args.state_dir or default_state_dir(environ),
        agents=args.agents,
        replicas=args.replicas,
        agent_cpu=_quantity("cpu", args.agent_cpu) or str(cpu_count()),
        agent_memory=_quantity("memory", args.agent_memory)
        or fair_share(args.agents, memory_bytes()),
        skills=tuple(_skill_source(name) for name in args.skills),
        port=args.port,
        detach=args.detach,
        as_json=args.json,
    )


def parse_down(argv: Sequence[str], environ: Mapping[str, str]) -> DownOptions:
    """The state directory is the option's, else that of the last `up`, else the default."""
    parser = argparse.ArgumentParser(
        "muster down",
        description="Ends a cluster that `muster up` started; does nothing when none runs.",
    )
    parser.add_argument(
        "--state-dir", type=Path, metavar="DIR", help="default: that of the last `muster up`"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    args = parser.parse_args(argv)
    state_dir: Path | None = args.state_dir
    if state_dir is None:
        profile = read_profile(environ)
        known = profile.state_dir if profile else ""
        state_dir = Path(known) if known else default_state_dir(environ)
    return DownOptions(state_dir.expanduser().absolute(), args.json)


def _quantity(resource: str, text: str | None) -> str:
    if text is None:
        return ""
    key = f"--agent-{resource}"
    try:
        amount = parse_quantity(text, field=key, unit=unit_of(resource))
    except InvalidInput as error:
        raise ConfigurationError(key, text, error.limit) from error
    if amount == 0:
        raise ConfigurationError(key, text, "an agent needs more than 0")
    return text


def _skill_source(name: str) -> str:
    if not name or "," in name:
        raise ConfigurationError("--skills", name, "the name of a module, or a path to a .py file")
    if name.endswith(".py"):
        path = Path(name).expanduser().absolute()
        if not path.is_file():
            raise ConfigurationError("--skills", name, "there is no such file")
        return str(path)
    return name
