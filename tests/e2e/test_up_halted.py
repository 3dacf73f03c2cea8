"""A cluster that is started on an old store: it halts, says so, and is let go on."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import hiredis
import pytest
from tests.e2e.test_up_cli import Cli, eventually
from tests.polling import HANG_S

from benchmarks.oracle.store_ground import RedisTalk

# The leader writes the cluster's clock to etcd every second, the last time when it ends or before.
_NOTED_MS = 2_500


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    cli = Cli(tmp_path)
    yield cli
    done = cli.run("down", "--state-dir", str(cli.state))
    assert done.returncode == 0, done.stderr


def _clock_ms(cli: Cli) -> int:
    remembered = json.loads((cli.state / "cluster.json").read_text())
    try:
        with RedisTalk(remembered["ports"]["redis"], remembered["redis_password"]) as redis:
            return int(redis("GET", "{m}:clock") or 0)
    except (OSError, hiredis.ReplyError):
        return 0


def _accepted(url: str, key: str) -> tuple[int, dict[str, object]]:
    request = urllib.request.Request(
        f"{url}/v1/cluster/accept-store", method="POST", headers={"Authorization": f"Bearer {key}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=HANG_S) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_up_on_an_old_store_says_what_to_do_and_goes_on_when_it_is_accepted(cli: Cli) -> None:
    ready = cli.up("--agents", "1")
    kept = cli.ok("submit", "echo", "--input", "1").strip()
    cli.ok("result", kept, "--wait")
    code, problem = _accepted(ready["url"], ready["api_key"])
    assert (code, "nothing to accept" in str(problem["detail"])) == (409, True)
    cli.ok("down", "--state-dir", str(cli.state))
    shutil.copytree(cli.state / "redis", cli.folder / "old")

    cli.up("--agents", "1")
    begun_ms = _clock_ms(cli)
    lost = cli.ok("submit", "echo", "--input", "2").strip()
    cli.ok("result", lost, "--wait")
    eventually(lambda: _clock_ms(cli) > begun_ms + _NOTED_MS)
    cli.ok("down", "--state-dir", str(cli.state))
    shutil.rmtree(cli.state / "redis")
    shutil.copytree(cli.folder / "old", cli.state / "redis")

    said = cli.ok("up", "--detach", "--agents", "1", "--state-dir", str(cli.state))
    assert "is up and schedules nothing" in said
    assert "Halted: " in said
    assert "rolled back by" in said
    assert "muster cluster accept-store" in said
    assert "rolled back by" in cli.json("status")["halted"]
    # What is there can be read; nothing is taken.
    assert json.loads(cli.ok("result", kept)) == 1
    refused = cli.run("submit", "echo", "--input", "3")
    assert refused.returncode != 0
    assert "rolled back" in refused.stderr
    asked = cli.run("cluster", "accept-store")
    assert asked.returncode == 1
    assert "Repeat with --yes" in asked.stderr

    code, answer = _accepted(ready["url"], ready["api_key"])
    assert (code, "rolled back by" in str(answer["accepted"])) == (200, True)
    eventually(lambda: cli.json("status").get("halted") is None)
    assert json.loads(cli.at_last("submit", "echo", "--input", "4", "--wait")) == 4
    assert cli.run("task", lost).returncode == 1
    again = cli.run("cluster", "accept-store", "--yes")
    assert again.returncode == 1
    assert "nothing to accept" in again.stderr
