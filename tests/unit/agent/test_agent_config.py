"""The agent's configuration."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from muster.agent.config import AgentConfig
from muster.agent.registration import instance_key
from muster.domain.errors import ConfigurationError

GOOD = {
    "MUSTER_REGISTRY": "127.0.0.1:7001, registry:7002",
    "MUSTER_JOIN_SECRET": "sixteen-letters-",
    "MUSTER_STATE_DIR": "/var/lib/muster-agent",
}


def config(**values: str) -> AgentConfig:
    return AgentConfig.from_env({**GOOD, **values})


def test_defaults_come_from_the_machine() -> None:
    found = config()
    assert found.registry == ("127.0.0.1:7001", "registry:7002")
    assert found.capacity.get("cpu") >= 1000
    assert found.capacity.get("memory") > 1024**2
    assert found.capacity.get("network") == 10**9
    assert (found.slots, found.drain_s, found.builtin, found.commands) == (64, 30.0, True, None)
    assert found.id == config().id
    assert found.id != config(MUSTER_STATE_DIR="/elsewhere").id


def test_everything_can_be_set_and_survives_the_way_to_the_runtime() -> None:
    found = config(
        MUSTER_AGENT_ID="a1",
        MUSTER_SKILLS="pkg.bots, path/to/file.py",
        MUSTER_AGENT_CPU="500m",
        MUSTER_AGENT_MEMORY="1Gi",
        MUSTER_AGENT_NETWORK="10M",
        MUSTER_AGENT_SLOTS="2",
        MUSTER_AGENT_RESOURCES="gpu=2,tokens_per_minute=600",
        MUSTER_AGENT_LABELS="zone=a,disk=ssd",
        MUSTER_AGENT_COMMANDS="ls,/bin/true",
        MUSTER_AGENT_PASS_ENV="OPENAI_*,X",
        MUSTER_AGENT_DRAIN_S="2.5",
        MUSTER_AGENT_MAX_RESULT="1Mi",
        MUSTER_AGENT_ADDRESS_SPACE="2Gi",
        MUSTER_AGENT_MAX_FILES="100",
    )
    assert found.capacity.as_dict() == {
        "cpu": 500,
        "memory": 1024**3,
        "network": 10**7,
        "slots": 2,
        "gpu": 2000,
        "tokens_per_minute": 600,
    }
    assert found.labels == (("disk", "ssd"), ("zone", "a"))
    assert found.commands == ("ls", "/bin/true")
    assert (found.drain_s, found.max_result_bytes) == (2.5, 1024**2)
    assert AgentConfig.from_json(found.to_json()) == found
    assert "sixteen" not in repr(found)


def test_overrides_win_over_the_environment() -> None:
    found = AgentConfig.from_env(
        {**GOOD, "MUSTER_AGENT_SLOTS": "2"},
        slots=3,
        skills=["a", "b"],
        labels={"zone": "z"},
        builtin=False,
        drain_s=None,
    )
    assert (found.slots, found.skills, found.builtin) == (3, ("a", "b"), False)
    assert found.labels == (("zone", "z"),)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("MUSTER_REGISTRY", "", "addresses of the registry are needed"),
        ("MUSTER_REGISTRY", "nohost", "host:port"),
        ("MUSTER_REGISTRY", "a:99999", "host:port"),
        ("MUSTER_JOIN_SECRET", "", "at least 16"),
        ("MUSTER_JOIN_SECRET", "short", "at least 16"),
        ("MUSTER_AGENT_ID", "Bad_Id", "an agent id is"),
        ("MUSTER_AGENT_CPU", "0", "above zero"),
        ("MUSTER_AGENT_CPU", "-1", "at least 0"),
        ("MUSTER_AGENT_CPU", "NaN", "a number"),
        ("MUSTER_AGENT_MEMORY", "0", "above zero"),
        ("MUSTER_AGENT_MEMORY", "1e400", "at most"),
        ("MUSTER_AGENT_SLOTS", "0", "above zero"),
        ("MUSTER_AGENT_SLOTS", "100000", "from 1 to 4096"),
        ("MUSTER_AGENT_RESOURCES", "gpu", "name=value"),
        ("MUSTER_AGENT_RESOURCES", "cpu=2", "MUSTER_AGENT_CPU sets this one"),
        ("MUSTER_AGENT_RESOURCES", "gpu=1.5", "whole number of devices"),
        ("MUSTER_AGENT_LABELS", "Zone=a", "a label's key"),
        ("MUSTER_AGENT_BUILTIN", "yes", "1 or 0"),
        ("MUSTER_AGENT_DRAIN_S", "soon", "a duration"),
        ("MUSTER_AGENT_DRAIN_S", "-1", "a duration"),
        ("MUSTER_AGENT_MAX_RESULT", "0", "at least"),
        ("MUSTER_AGENT_MAX_FILES", "2", "at least 64"),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_it(key: str, value: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config(**{key: value})
    assert caught.value.key == key
    assert words in str(caught.value)


def test_tasks_see_a_minimal_environment() -> None:
    seen = config(MUSTER_AGENT_PASS_ENV="OPENAI_*,ONE").task_environ(
        {
            "PATH": "/bin",
            "LC_ALL": "C",
            "MUSTER_JOIN_SECRET": "s",
            "AWS_SECRET": "s",
            "OPENAI_KEY": "k",
            "ONE": "1",
            "ONES": "2",
        }
    )
    assert seen["PATH"] == "/bin"
    assert seen["OPENAI_KEY"] == "k"
    assert seen["ONE"] == "1"
    assert not {"MUSTER_JOIN_SECRET", "AWS_SECRET", "ONES"} & seen.keys()


def test_the_instance_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    key = instance_key(tmp_path)
    assert len(key) == 32
    assert instance_key(tmp_path) == key
    assert stat.S_IMODE((tmp_path / "instance.key").stat().st_mode) == 0o600
    (tmp_path / "instance.key").write_bytes(b"short")
    with pytest.raises(ConfigurationError):
        instance_key(tmp_path)
