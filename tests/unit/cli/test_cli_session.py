"""Which cluster a command speaks to, and what it says when there is none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
from tests.unit.cli.conftest import Muster, answer, problem

from muster.cli.app import run
from muster.local.profile import Profile, write_profile
from muster.local.state import ClusterLock, open_state_dir


class Seen:
    """A cluster that notes who asks."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return httpx.Response(200, json={"leader": "l", "tasks": {}})


def status(environ: Mapping[str, str], handler: Seen) -> int:
    return run(["status", "--json"], environ, httpx.MockTransport(handler))


def refuse(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("Connection refused")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"MUSTER_PROFILE": str(tmp_path / "profile.json")}


def test_the_profile_is_enough(environ: dict[str, str]) -> None:
    write_profile(Profile("http://127.0.0.1:7", "mst_p_q", ""), environ)
    seen = Seen()
    assert status(environ, seen) == 0
    assert str(seen.requests[0].url) == "http://127.0.0.1:7/v1/cluster"
    assert seen.requests[0].headers["authorization"] == "Bearer mst_p_q"


def test_the_environment_wins(environ: dict[str, str]) -> None:
    write_profile(Profile("http://127.0.0.1:7", "mst_p_q", ""), environ)
    seen = Seen()
    own = {"MUSTER_URL": "https://far.example/", "MUSTER_API_KEY": "mst_a_b"}
    assert status(environ | own, seen) == 0
    assert str(seen.requests[0].url) == "https://far.example/v1/cluster"
    assert seen.requests[0].headers["authorization"] == "Bearer mst_a_b"


def test_a_key_alone_goes_to_the_profiles_cluster(environ: dict[str, str]) -> None:
    write_profile(Profile("http://127.0.0.1:7", "mst_p_q", ""), environ)
    seen = Seen()
    assert status(environ | {"MUSTER_API_KEY": "mst_a_b"}, seen) == 0
    assert seen.requests[0].headers["authorization"] == "Bearer mst_a_b"


def test_the_profiles_key_is_not_sent_elsewhere(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_profile(Profile("http://127.0.0.1:7", "mst_p_q", ""), environ)
    seen = Seen()
    assert status(environ | {"MUSTER_URL": "http://other.example"}, seen) == 1
    assert "MUSTER_API_KEY" in capsys.readouterr().err
    assert seen.requests == []


def test_no_cluster_is_known(environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status(environ, Seen()) == 3
    err = capsys.readouterr().err
    assert "muster up" in err
    assert err.count("\n") == 1


def test_half_of_the_environment_is_told(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(environ | {"MUSTER_URL": "http://x"}, Seen()) == 3
    assert capsys.readouterr().err == "muster: MUSTER_API_KEY is not set\n"


def test_a_cluster_that_is_gone_is_told_at_once(
    environ: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    write_profile(Profile("http://127.0.0.1:7", "mst_p_q", str(state)), environ)
    assert run(["status"], environ, httpx.MockTransport(refuse)) == 3
    expected = f"the cluster of {state} is not running; `muster up --state-dir {state}` starts it"
    assert expected in capsys.readouterr().err


def test_a_cluster_that_runs_but_does_not_answer_is_waited_for(
    muster: Muster, tmp_path: Path
) -> None:
    environ = {"MUSTER_PROFILE": str(tmp_path / "profile.json")}
    state = tmp_path / "state"
    write_profile(Profile("http://127.0.0.1:7", "mst_p_q", str(state)), environ)
    lock = ClusterLock(open_state_dir(state))
    lock.acquire()
    try:
        muster.environ = environ
        muster.on("GET /v1/cluster", httpx.ConnectError("refused"), answer({"leader": "l"}))
        assert muster("status", "--json").json == {"leader": "l"}
    finally:
        lock.release()
    assert len(muster.requests) == 2


def test_a_wrong_key_is_told(muster: Muster) -> None:
    muster.on("GET /v1/cluster", problem(401, "the API key is unknown or revoked"))
    ran = muster("status")
    assert (ran.code, ran.err) == (1, "muster: the API key is unknown or revoked\n")


def test_something_else_that_answers_is_told(muster: Muster) -> None:
    muster.on("GET /v1/cluster", httpx.Response(200, html="<h1>It works!</h1>"))
    ran = muster("status")
    assert ran.code == 1
    assert "not JSON; is it a Muster?" in ran.err


def test_an_error_page_is_told_in_one_line(muster: Muster) -> None:
    muster.on("GET /v1/cluster", httpx.Response(500, text="oh\nno\n" + "x" * 5000))
    ran = muster("status")
    assert ran.code == 1
    assert ran.err.startswith("muster: oh no xxx")
    assert len(ran.err) < 600


def test_a_failure_inside_names_the_request(muster: Muster) -> None:
    muster.on("GET /v1/cluster", problem(500, "the gateway's log has the details", request_id="r1"))
    assert "(r1)" in muster("status").err


def test_overload_is_waited_out(muster: Muster) -> None:
    muster.on("GET /v1/cluster", problem(429, "too much"), answer({"leader": "l"}))
    assert muster("status", "--json").code == 0
    muster.on("GET /v1/cluster", problem(503, "no leader"))
    ran = muster("status")
    assert (ran.code, ran.err) == (3, "muster: no leader\n")


@pytest.mark.parametrize("url", ["not a url", "http://[::1", "ftp://x"])
def test_a_url_of_no_use_is_one_sentence(
    url: str, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"MUSTER_URL": url, "MUSTER_API_KEY": "k"}
    assert run(["status"], environ | own) in (1, 3)
    assert capsys.readouterr().err.count("\n") == 1


def test_a_damaged_profile_is_one_sentence(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(environ["MUSTER_PROFILE"]).write_text(json.dumps(["no"]))
    assert status(environ, Seen()) == 1
    assert "muster up" in capsys.readouterr().err


def test_env_is_what_a_shell_needs(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_profile(Profile("http://127.0.0.1:7", "mst_p_q", ""), environ)
    assert run(["env"], environ) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["export MUSTER_URL=http://127.0.0.1:7", "export MUSTER_API_KEY=mst_p_q"]
    assert run(["env", "--json"], environ) == 0
    told = json.loads(capsys.readouterr().out)
    url = "http://127.0.0.1:7"
    assert told == {"url": url, "api_key": "mst_p_q", "urls": [url]}
