"""Which cluster a client speaks to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import muster
from muster import AsyncClient, Client
from muster.client.errors import NoCluster
from muster.client.target import find_target
from muster.domain.errors import InvalidInput
from muster.local.profile import Profile, write_profile


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"MUSTER_PROFILE": str(tmp_path / "profile.json")}


def test_arguments_win_over_the_environment_and_that_over_the_profile(
    environ: dict[str, str],
) -> None:
    write_profile(Profile("http://p:1", "pk", "/state"), environ)
    assert find_target(None, None, environ) == Profile("http://p:1", "pk", "/state")
    both = environ | {"MUSTER_URL": "http://e:2", "MUSTER_API_KEY": "ek"}
    assert find_target(None, None, both) == Profile("http://e:2", "ek")
    assert find_target("http://a:3", "ak", both) == Profile("http://a:3", "ak")
    assert find_target(None, "ak", both) == Profile("http://e:2", "ak")
    assert find_target(None, "ak", environ).api_key == "ak"
    assert find_target("http://p:1/", None, environ).api_key == "pk"


def test_the_profiles_key_is_not_sent_elsewhere(environ: dict[str, str]) -> None:
    write_profile(Profile("http://p:1", "pk", ""), environ)
    with pytest.raises(NoCluster, match="for another URL") as caught:
        find_target("http://other", None, environ)
    assert not caught.value.missing


def test_what_is_missing_is_named(environ: dict[str, str]) -> None:
    for url, key, said in (
        (None, None, "muster up"),
        ("http://x", None, "MUSTER_API_KEY is not set"),
        (None, "k", "MUSTER_URL is not set"),
    ):
        with pytest.raises(NoCluster, match=said) as caught:
            find_target(url, key, environ)
        assert caught.value.missing
    Path(environ["MUSTER_PROFILE"]).write_text("[]")
    with pytest.raises(NoCluster, match="cannot be read"):
        Client(environ=environ)


@pytest.mark.parametrize("url", ["x", "ftp://x", "http://", "http://[::1", "http://x:y"])
def test_a_url_of_no_use_is_told(url: str) -> None:
    with pytest.raises(NoCluster, match="URL"):
        Client(url, "key")


@pytest.mark.parametrize("key", ["a b", "a\nb", "ü"])
def test_a_key_that_no_header_can_carry_is_told_without_showing_it(key: str) -> None:
    with pytest.raises(NoCluster, match="API key") as caught:
        AsyncClient("http://x", key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_times_have_bounds(seconds: float) -> None:
    with pytest.raises(InvalidInput, match="timeout"):
        Client("http://x", "k", timeout=seconds)


def test_no_proxy_sees_the_key_of_a_cluster_on_this_machine() -> None:
    with Client("http://127.0.0.1:1", "k") as near, Client("http://far.example", "k") as far:
        assert (near._http.trust_env, far._http.trust_env) == (False, True)


def test_importing_muster_imports_nothing_large() -> None:
    code = (
        "import sys, muster\n"
        "found = {'httpx', 'msgspec', 'asyncio', 'pydantic'} & set(sys.modules)\n"
        "assert not found, found\n"
        "from muster import Client, AsyncClient, Context, AsyncContext\n"
        "found = {'grpc', 'pydantic', 'redis', 'numpy'} & set(sys.modules)\n"
        "assert not found, found\n"
        "from muster.skill import skill\n"
        "assert callable(skill)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_muster_offers() -> None:
    assert set(muster.__all__) <= set(dir(muster))
    assert muster.Client is Client
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = muster.nonsense
