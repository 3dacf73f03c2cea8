"""`policy get` and `policy set`."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from tests.unit.cli.conftest import Muster, answer, problem

from muster.domain.policy import Policy, parse_policy, policy_document

NOW = policy_document(Policy("best_fit", bounds={"B": 0.2}))


def tagged() -> httpx.Response:
    return httpx.Response(200, json=NOW, headers={"ETag": '"7"'})


def test_get_in_words_and_as_json(muster: Muster) -> None:
    muster.on("GET /v1/policy", answer(NOW), answer(NOW))
    ran = muster("policy", "get")
    for text in ("best_fit", "t 0.4, u 0.3, b 0.3", "B 0.2", "100ms"):
        assert text in ran.out
    assert muster("policy", "get", "--json").json == NOW


def test_set_changes_what_is_named_and_leaves_the_rest(muster: Muster) -> None:
    muster.on("GET /v1/policy", tagged())
    muster.on("PUT /v1/policy", answer(NOW))
    ran = muster("policy", "set", "--strategy", "search", "--weight", "t=1", "--budget", "2s")
    assert ran.code == 0, ran.err
    request = muster.requests[-1]
    assert request.headers["if-match"] == '"7"'
    sent = parse_policy(json.loads(request.content))
    assert sent == Policy("search", w_t=1.0, w_u=0.0, w_b=0.0, bounds={"B": 0.2}, budget_s=2.0)


def test_set_from_a_file_replaces_the_whole(muster: Muster, tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text('{"strategy": "greedy", "bounds": {"U": 0.5}}')
    muster.on("PUT /v1/policy", answer(NOW))
    assert muster("policy", "set", "--file", str(file), "--no-bounds").code == 0
    request = muster.requests[-1]
    assert "if-match" not in request.headers
    assert json.loads(request.content) == {"strategy": "greedy", "bounds": {}}


def test_somebody_elses_change_meanwhile_is_told(muster: Muster) -> None:
    muster.on("GET /v1/policy", tagged())
    muster.on("PUT /v1/policy", problem(412, "if_match: the policy's etag is 8, not 7"))
    ran = muster("policy", "set", "--strategy", "greedy")
    assert ran.code != 0
    assert "etag is 8" in ran.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "give --file or what to change"),
        (("--strategy", "fastest"), "strategy: 'fastest' is not accepted; must be one of"),
        (("--weight", "t"), "--weight: 't' is not accepted; must be NAME=NUMBER"),
        (("--weight", "t=nan"), "weights.t: nan is not accepted; must be a number"),
        (("--bound", "L=1"), "bounds.L: 1.0 is not accepted; bounds knows T, U, B, J only"),
        (("--budget", "365d"), "budget: '365d' is not accepted; must be from 1ms to 1h"),
        (("--bound", "B=1", "--no-bounds"), "give one of them"),
        (("--file", "/nowhere/policy.json"), "cannot be read"),
    ],
)
def test_what_means_nothing_is_refused_before_it_is_sent(
    muster: Muster, argv: tuple[str, ...], said: str
) -> None:
    muster.on("GET /v1/policy", tagged())
    ran = muster("policy", "set", *argv)
    assert ran.code == 2
    assert said in " ".join(ran.err.split())
