"""Tables of settings, limits, fields, routes and metrics say what the code says."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from muster.agent import config as agent_config
from muster.domain.errors import ConfigurationError
from muster_gateway import config as gateway_config
from muster_gateway.roles import ACCESS
from muster_gateway.task_body import TaskIn
from muster_monitor import config as monitor_config
from muster_registry import config as registry_config
from muster_scheduler import config as scheduler_config
from muster_storage import config as storage_config

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"

_SECRET = "0123456789abcdef"
# For each process: its page, the heading above its table, how it is configured, and a smallest
# environment that it accepts.
PROCESSES: dict[str, tuple[str, str, Any, dict[str, str]]] = {
    "storage": (
        "running.md",
        "### Storage",
        storage_config.Config,
        {"MUSTER_JOIN_SECRET": _SECRET, "MUSTER_STATE_DIR": "/x"},
    ),
    "registry": (
        "running.md",
        "### Registry",
        registry_config.Config,
        {
            "MUSTER_JOIN_SECRET": _SECRET,
            "MUSTER_ETCD_ENDPOINTS": "127.0.0.1:1",
            "MUSTER_STORAGE": "127.0.0.1:1",
        },
    ),
    "monitor": (
        "running.md",
        "### Monitor",
        monitor_config.Config,
        {
            "MUSTER_JOIN_SECRET": _SECRET,
            "MUSTER_STORAGE": "127.0.0.1:1",
            "MUSTER_REGISTRY": "127.0.0.1:1",
        },
    ),
    "scheduler": (
        "running.md",
        "### Scheduler",
        scheduler_config.Config,
        {
            "MUSTER_JOIN_SECRET": _SECRET,
            "MUSTER_ETCD_ENDPOINTS": "127.0.0.1:1",
            "MUSTER_STORAGE": "127.0.0.1:1",
            "MUSTER_REGISTRY": "127.0.0.1:1",
        },
    ),
    "gateway": (
        "running.md",
        "### Gateway",
        gateway_config.Config,
        {
            "MUSTER_JOIN_SECRET": _SECRET,
            "MUSTER_STORAGE": "127.0.0.1:1",
            "MUSTER_SCHEDULERS": "127.0.0.1:1",
        },
    ),
    "agent": (
        "agents.md",
        "## Settings",
        agent_config.AgentConfig,
        {"MUSTER_JOIN_SECRET": _SECRET, "MUSTER_REGISTRY": "127.0.0.1:1"},
    ),
}


def rows_under(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head."""
    text = (DOCS / page).read_text()
    assert f"\n{heading}\n" in text, f"{page} has no heading {heading!r}"
    section = text.partition(f"\n{heading}\n")[2]
    lines = section.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    assert rows
    return rows


def settings_of(name: str) -> dict[str, str]:
    """Variable to default, as the page has them."""
    page, heading, _, _ = PROCESSES[name]
    return {row[0].strip("`"): row[1] for row in rows_under(page, heading)}


@pytest.mark.parametrize("name", PROCESSES)
def test_every_setting_is_in_its_table(name: str) -> None:
    source = Path(importlib.import_module(PROCESSES[name][2].__module__).__file__ or "").read_text()
    known = set(re.findall(r"MUSTER_[A-Z_]+[A-Z]", source))
    if name == "agent":
        known = set(agent_config._VARIABLES.values())
    # It is read by the server that all services share.
    known.add("MUSTER_JOIN_SECRET")
    assert set(settings_of(name)) == known


@pytest.mark.parametrize("name", PROCESSES)
def test_defaults_are_those_of_the_code(name: str) -> None:
    _, _, config, least = PROCESSES[name]
    usual = config.from_env(least)
    for variable, default in settings_of(name).items():
        if default == "needed":
            without = {k: v for k, v in least.items() if k != variable}
            if variable == "MUSTER_JOIN_SECRET" and name in ("storage", "registry", "monitor"):
                # Their server refuses it.
                continue
            with pytest.raises(ConfigurationError, match=variable):
                config.from_env(without)
        elif re.fullmatch(r"`[^`$]+`", default):
            given = config.from_env({**least, variable: default.strip("`")})
            assert given == usual, f"{variable} is not {default} when nothing is said"


_UNITS = {
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "ms": 0.001,
    "s": 1,
    "min": 60,
    "h": 3600,
    "": 1,
}


def amount_of(text: str) -> float:
    """`10,000`, `64 KiB`, `3.5 s`: in bytes, seconds, or one."""
    match = re.fullmatch(r"([\d,.]+)(?: ([A-Za-z]+))?", text)
    assert match is not None, f"{text!r} is no amount"
    return float(match[1].replace(",", "")) * _UNITS[match[2] or ""]


def limits() -> list[list[str]]:
    text = (DOCS / "guarantees.md").read_text()
    return [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.partition("\n## Limits\n")[2].splitlines()
        if line.startswith("|") and "`" in line
    ]


@pytest.mark.parametrize("row", limits(), ids=lambda row: row[2].strip("`"))
def test_limits_are_those_of_the_code(row: list[str]) -> None:
    module, _, constant = row[2].strip("`").rpartition(".")
    value = float(getattr(importlib.import_module(module), constant))
    if constant.endswith("_MS"):
        value /= 1000
    assert amount_of(row[1]) == value


def test_every_limit_has_its_row() -> None:
    """Limits of what a client submits; those of the inside have their reasons beside them."""
    task = importlib.import_module("muster.domain.task")
    shown = {row[2].strip("`") for row in limits()}
    # Bounds on texts that nobody meets.
    left_out = {"MAX_ERROR_CHARS", "MAX_PRIORITY", "MAX_DURATION_MS"}
    named = {name for name in vars(task) if name.startswith("MAX_")} - left_out
    assert {f"muster.domain.task.{name}" for name in named} <= shown


def test_every_field_of_a_task_is_in_its_table() -> None:
    rows = rows_under("rest.md", "### The fields of a task")
    assert {row[0].strip("`") for row in rows} == set(TaskIn.__struct_fields__)
    defaults = dict(zip(TaskIn.__struct_fields__[1:], TaskIn.__struct_defaults__, strict=True))
    shown = {row[0].strip("`"): row[1].strip("`") for row in rows}
    for name, default in defaults.items():
        if isinstance(default, int):
            assert shown[name] == str(default)


def test_every_route_is_in_its_table() -> None:
    text = (DOCS / "rest.md").read_text()
    shown = {
        (method, path): role
        for method, path, role in re.findall(r"\| `([A-Z]+) (/\S+)` \| (\w+) \|", text)
    }
    assert shown == {route: role.text if role else "none" for route, role in ACCESS.items()}


def metrics_in_the_code() -> set[str]:
    """Names as they are scraped, by the calls that make them."""
    names: set[str] = set()
    makes = re.compile(r'\b(Counter|Gauge|Histogram)(?:MetricFamily)?\(\s*"(muster_\w+)"')
    listed = re.compile(r'^\s+\("(muster_\w+)", "', re.MULTILINE)
    for folder in ("src", "services"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            text = path.read_text()
            for kind, name in makes.findall(text):
                counted = kind == "Counter" and not name.endswith("_total")
                names.add(f"{name}_total" if counted else name)
            names.update(listed.findall(text))
    return names


def test_metrics_to_watch_exist() -> None:
    rows = rows_under("running.md", "## What to watch")
    shown = {name for row in rows for name in re.findall(r"`(muster_\w+)`", row[0])}
    assert shown <= metrics_in_the_code(), shown - metrics_in_the_code()
