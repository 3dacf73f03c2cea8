"""The command lines of up and down, and the profile."""

from __future__ import annotations

from pathlib import Path

import pytest

from muster.domain.errors import ConfigurationError
from muster.local.machine import cpu_count, fair_share, memory_bytes
from muster.local.options import DEFAULT_AGENTS, parse_down, parse_up
from muster.local.profile import Profile, profile_path, read_profile, write_profile

MIB = 1024 * 1024


def test_defaults_share_one_machine(tmp_path: Path) -> None:
    options = parse_up([], {"XDG_STATE_HOME": str(tmp_path)})
    assert options.state_dir == tmp_path / "muster"
    assert options.agents == DEFAULT_AGENTS
    assert options.agent_cpu == str(cpu_count())
    assert options.agent_memory == fair_share(DEFAULT_AGENTS, memory_bytes())
    assert (options.port, options.detach, options.as_json, options.skills) == (
        None,
        False,
        False,
        (),
    )


@pytest.mark.parametrize(
    ("agents", "memory", "share"),
    [(4, 4096 * MIB, "1024Mi"), (3, 1000 * MIB, "333Mi"), (0, 7 * MIB, "7Mi"), (9, MIB, "1Mi")],
)
def test_a_fair_share_is_whole(agents: int, memory: int, share: str) -> None:
    assert fair_share(agents, memory) == share


def test_options_are_taken_as_given(tmp_path: Path) -> None:
    skills = tmp_path / "bots.py"
    skills.write_text("")
    options = parse_up(
        [
            *("--agents", "2", "--agent-cpu", "1500m", "--agent-memory", "1Gi", "--port", "9000"),
            *("--skills", "a.b", "--skills", str(skills), "--detach", "--json"),
            *("--state-dir", str(tmp_path)),
        ],
        {},
    )
    assert (options.agents, options.agent_cpu, options.agent_memory) == (2, "1500m", "1Gi")
    assert options.skills == ("a.b", str(skills))
    assert (options.port, options.detach, options.as_json) == (9000, True, True)


@pytest.mark.parametrize(
    "argv",
    [
        ["--agents", "-1"],
        ["--agents", "257"],
        ["--port", "0"],
        ["--port", "70000"],
        ["--replicas", "6"],
        ["x"],
    ],
)
def test_a_wrong_command_line_is_a_usage_error(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_up(argv, {})
    assert ended.value.code == 2
    assert argv[-1] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--agent-cpu", "-1"], "--agent-cpu"),
        (["--agent-cpu", "nan"], "nan"),
        (["--agent-memory", "0"], "more than 0"),
        (["--agent-memory", "1Zi"], "1Zi"),
        (["--skills", "/no/such/file.py"], "no such file"),
        (["--skills", "a,b"], "a,b"),
        (["--skills", ""], "--skills"),
    ],
)
def test_a_value_of_no_use_is_named(argv: list[str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        parse_up(argv, {})


def test_down_ends_the_last_cluster_unless_told_otherwise(tmp_path: Path) -> None:
    environ = {"MUSTER_PROFILE": str(tmp_path / "p.json"), "XDG_STATE_HOME": str(tmp_path)}
    assert parse_down([], environ).state_dir == tmp_path / "muster"
    write_profile(Profile("http://x", "k", "/the/last"), environ)
    assert parse_down([], environ).state_dir == Path("/the/last")
    assert parse_down(["--state-dir", "/other", "--json"], environ).state_dir == Path("/other")


def test_the_profile_is_its_owners_alone(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert read_profile(environ) is None
    profile = Profile("http://127.0.0.1:1", "mst_a_b", "/state")
    path = write_profile(profile, environ)
    assert path == profile_path(environ) == tmp_path / "muster" / "profile.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_profile(environ) == profile


@pytest.mark.parametrize("text", ["", "[]", '{"url": "x"}', "\udcff"])
def test_a_damaged_profile_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigurationError, match="muster up"):
        read_profile({"MUSTER_PROFILE": str(path)})
