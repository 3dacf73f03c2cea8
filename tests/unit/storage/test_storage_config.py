"""The environment of a storage service, and the address of its Redis."""

from __future__ import annotations

from pathlib import Path

import pytest

from muster.domain.errors import ConfigurationError
from muster_storage.config import DAY_S, Config
from muster_storage.redis_link import RedisAddress


def test_defaults() -> None:
    config = Config.from_env({"MUSTER_STATE_DIR": "/state"})
    assert config.blob_dir == Path("/state/blobs")
    assert (config.retention_s, config.blob_grace_s) == (DAY_S, 3600)
    assert config.retain_tasks == 100_000
    assert (config.blob_max_bytes, config.events_kept) == (1024**3, 200_000)
    assert not config.allow_weak_redis


def test_requests_are_never_forgotten_within_a_day() -> None:
    env = {"MUSTER_STATE_DIR": "/state"}
    short = Config.from_env({**env, "MUSTER_RETENTION_S": "60"})
    long = Config.from_env({**env, "MUSTER_RETENTION_S": str(3 * DAY_S)})
    assert (short.retention_s, short.request_retention_s) == (60, DAY_S)
    assert (long.retention_s, long.request_retention_s) == (3 * DAY_S, 3 * DAY_S)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MUSTER_RETENTION_S", "0"),
        ("MUSTER_RETENTION_S", "nan"),
        ("MUSTER_RETENTION_S", "a day"),
        ("MUSTER_RETAIN_TASKS", "999"),
        ("MUSTER_EVENTS_KEPT", "10"),
        ("MUSTER_BLOB_MAX_BYTES", "-1"),
        ("MUSTER_REDIS_TIMEOUT_S", "inf"),
        ("MUSTER_ALLOW_WEAK_REDIS", "yes"),
        ("MUSTER_LISTEN", "here"),
        ("MUSTER_LISTEN", ":70000"),
        ("MUSTER_METRICS_LISTEN", "127.0.0.1:99999"),
        ("MUSTER_REDIS_URL", "http://127.0.0.1"),
        ("MUSTER_REDIS_URL", "redis://127.0.0.1:port"),
        ("MUSTER_REDIS_URL", "redis:///0"),
        ("MUSTER_REDIS_URL", "redis://127.0.0.1/first"),
    ],
)
def test_a_bad_setting_is_named(key: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Config.from_env({"MUSTER_STATE_DIR": "/state", key: value})
    assert caught.value.key == key


def test_blobs_need_a_folder() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Config.from_env({})
    assert caught.value.key == "MUSTER_BLOB_DIR"


def test_an_address_of_redis() -> None:
    assert RedisAddress.parse("redis://127.0.0.1") == RedisAddress(
        "127.0.0.1", 6379, tls=False, username="", password="", database=0
    )
    assert RedisAddress.parse("rediss://me:p%40ss@redis.example:7000/3") == RedisAddress(
        "redis.example", 7000, tls=True, username="me", password="p@ss", database=3
    )


def test_a_password_is_not_quoted() -> None:
    with pytest.raises(ConfigurationError) as caught:
        RedisAddress.parse("http://:hunter2@127.0.0.1")
    assert "hunter2" not in str(caught.value)
