"""Help, usage errors, and what is imported for what."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.unit.cli.conftest import Muster

from muster.cli.daemons import run_service
from muster.cli.show import age, clean, duration, parse_time
from muster.cli.task_body import batches, parse_constraint

COMMANDS = (
    *("up", "down", "status", "submit", "plan", "tasks", "task", "result", "cancel"),
    *("logs", "explain"),
    *(
        "agents",
        "agent",
        "cordon",
        "uncordon",
        "drain",
        "restart",
        "events",
        "env",
        "keys",
        "service",
    ),
)


def python(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, timeout=60, check=False
    )


def test_help_lists_every_command_and_the_exit_codes(muster: Muster) -> None:
    for argv in ((), ("--help",)):
        ran = muster(*argv)
        assert ran.code == 0
        listed = [line.split()[0] for line in ran.out.splitlines() if line.startswith("  ")]
        assert set(COMMANDS) <= set(listed)
        assert "Exit codes: 0 done" in ran.out


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ("up", "down", "service")])
def test_every_client_command_has_help(muster: Muster, command: str) -> None:
    ran = muster(command, "--help")
    assert ran.code == 0
    assert f"muster {command}" in ran.out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nonsense"], "nonsense"),
        (["task"], "ID"),
        (["tasks", "--limit", "0"], "--limit"),
        (["keys"], "keys"),
        (["cancel"], "ID"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_code_2(
    muster: Muster, argv: list[str], said: str
) -> None:
    ran = muster(*argv)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("muster: ")
    assert said in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("command", ["up", "down", "service"])
def test_daemons_are_dispatched_before_typer(command: str) -> None:
    code = (
        "import sys; from muster.cli import main; sys.argv = ['muster', sys.argv[1], '--help']\n"
        "try: main()\n"
        "except SystemExit as e: assert e.code == 0\n"
        "heavy = {'typer', 'rich', 'httpx', 'grpc', 'fastapi', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = python("-c", code, command)
    assert done.returncode == 0, done.stderr
    assert f"muster {command}" in done.stdout


def test_the_parent_of_a_cluster_is_light() -> None:
    code = (
        "import sys, muster.local.up, muster.local.cluster\n"
        "heavy = {'typer', 'rich', 'httpx', 'grpc', 'fastapi', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_help_needs_no_http() -> None:
    code = (
        "import sys, os; from muster.cli.app import run; assert run(['--help'], os.environ) == 0\n"
        "assert 'httpx' not in sys.modules"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_is_no_error(tmp_path: object) -> None:
    done = subprocess.run(
        f"{sys.executable} -m muster.cli --help | true",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""


def test_an_unknown_service_is_named_with_those_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_service(["nonsense"]) == 2
    err = capsys.readouterr().err
    assert "'nonsense'" in err
    assert "gateway, monitor, registry, scheduler, storage" in err


@pytest.mark.parametrize(
    ("text", "constraint"),
    [
        ("zone==a", ("zone", "==", ["a"])),
        ("zone != a", ("zone", "!=", ["a"])),
        ("cores>4", ("cores", ">", ["4"])),
        ("cores < 4", ("cores", "<", ["4"])),
        ("zone in a,b , c", ("zone", "in", ["a", "b", "c"])),
        ("zone not_in a", ("zone", "not_in", ["a"])),
        ("gpu exists", ("gpu", "exists", [])),
        ("gpu not_exists", ("gpu", "not_exists", [])),
        ("app max 2", ("app", "max", ["2"])),
    ],
)
def test_constraints(text: str, constraint: tuple[str, str, list[str]]) -> None:
    key, op, values = constraint
    assert parse_constraint(text) == {"key": key, "op": op, "values": values}


def test_batches_keep_order_and_bounds() -> None:
    tasks = [{"skill": "echo", "input": "x" * 1_500_000} for _ in range(5)]
    assert [len(batch) for batch in batches(tasks)] == [2, 2, 1]
    small = [{"skill": "echo", "input": n} for n in range(4001)]
    assert [len(batch) for batch in batches(small)] == [1000, 1000, 1000, 1000, 1]
    assert [task for batch in batches(small) for task in batch] == small


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.0, "0ms"), (-3, "0ms"), (0.0124, "12ms"), (3.44, "3.4s"), (59.94, "59.9s")),
        *((60, "1m"), (310, "5m10s"), (7500, "2h5m"), (276_000, "3d4h"), (86_400, "1d")),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_times_that_are_none_are_left_out() -> None:
    now = parse_time("2026-01-31T12:00:00.000Z")
    assert now is not None
    assert age(None, now) == age("soon", now) == ""
    assert age("2026-01-31T11:59:00.000Z", now) == "1m"


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert clean("a\x1b]0;x\x07\tb\nü") == "a\\x1b]0;x\\x07\tb\\nü"
    assert clean({"a": "\x1b"}) == '{"a": "\\u001b"}'
