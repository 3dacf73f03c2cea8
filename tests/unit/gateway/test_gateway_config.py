"""Configuration fails by key, value and what is accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from muster.domain.errors import ConfigurationError
from muster_gateway.bootstrap import read_bootstrap_key
from muster_gateway.config import Config

GOOD = {
    "MUSTER_JOIN_SECRET": "s" * 32,
    "MUSTER_STORAGE": "127.0.0.1:1,127.0.0.1:2",
    "MUSTER_SCHEDULERS": " 127.0.0.1:3 ",
}


def test_the_least_configuration_is_enough() -> None:
    config = Config.from_env(GOOD)
    assert config.http_listen == "127.0.0.1:8080"
    assert config.storage == ("127.0.0.1:1", "127.0.0.1:2")
    assert config.schedulers == ("127.0.0.1:3",)
    assert (config.registry, config.monitors, config.bootstrap_key_file) == ((), (), None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MUSTER_JOIN_SECRET", ""),
        ("MUSTER_JOIN_SECRET", "short"),
        ("MUSTER_STORAGE", ""),
        ("MUSTER_STORAGE", "nowhere"),
        ("MUSTER_STORAGE", "host:99999"),
        ("MUSTER_SCHEDULERS", "host:-1"),
        ("MUSTER_SCHEDULERS", ":80"),
        ("MUSTER_HTTP_LISTEN", "8080"),
        ("MUSTER_HTTP_LISTEN", "127.0.0.1:http"),
        ("MUSTER_METRICS_LISTEN", "x"),
        ("MUSTER_MONITORS", "a:1,b"),
        ("MUSTER_REGISTRY", "a:b:c"),
    ],
)
def test_a_bad_value_names_its_key(key: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Config.from_env({**GOOD, key: value})
    assert caught.value.key == key


def test_secrets_are_not_quoted() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Config.from_env({**GOOD, "MUSTER_JOIN_SECRET": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_a_bootstrap_file_must_hold_a_key(tmp_path: Path) -> None:
    path = tmp_path / "admin.key"
    with pytest.raises(ConfigurationError, match="MUSTER_BOOTSTRAP_KEY_FILE"):
        read_bootstrap_key(path)
    path.write_text("mst_0a_tooshort-but-secret\n")
    with pytest.raises(ConfigurationError) as caught:
        read_bootstrap_key(path)
    assert "tooshort" not in str(caught.value)
    path.write_text("mst_0a_" + "b" * 64 + "\n")
    assert read_bootstrap_key(path).id == "0a"
