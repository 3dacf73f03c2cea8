"""Choosing peers, their environments, and what drivers say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.peers.catalog import PEERS, chosen
from benchmarks.peers.driven import last_words, measured_in
from benchmarks.peers.drivers.measuring import Job, journal_lines, note_nap
from benchmarks.peers.environments import (
    InstallFailed,
    default_cache,
    environment_folder,
    python_of,
    reason_in,
)
from benchmarks.peers.machine_load import (
    CpuSeconds,
    cpu_seconds,
    others_share,
    process_ticks,
)


def test_names_and_cases_are_unique_and_every_driver_exists() -> None:
    drivers = Path(__file__).resolve().parents[3] / "benchmarks" / "peers" / "drivers"
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    for peer in PEERS:
        assert (drivers / f"{peer.driver}.py").exists()
        assert len({case.name for case in peer.cases}) == len(peer.cases)
        # A failure of the speed and one of a case are kept under their names.
        assert "speed" not in {case.name for case in peer.cases}


def test_peers_of_one_environment_ask_for_the_same_packages() -> None:
    packages: dict[str, tuple[str, ...]] = {}
    for peer in PEERS:
        assert packages.setdefault(peer.environment, peer.packages) == peer.packages


def test_chosen_by_name_or_environment_in_the_catalogs_order() -> None:
    assert chosen("") == PEERS
    assert [peer.name for peer in chosen("dask, ray")] == ["ray-tasks", "ray-actors", "dask"]
    assert [peer.name for peer in chosen("ray-actors,muster")] == ["muster", "ray-actors"]


def test_chosen_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="--only: dusk is not accepted; any of celery, dask"):
        chosen("ray,dusk")


def test_cache_is_where_the_environment_says_unless_that_is_relative(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert default_cache({"XDG_CACHE_HOME": "/var/c"}) == Path("/var/c/muster-peers")
    assert default_cache({"XDG_CACHE_HOME": "c"}) == Path("/home/ada/.cache/muster-peers")
    assert default_cache({}) == Path("/home/ada/.cache/muster-peers")


def test_environment_changes_with_its_packages_and_not_with_their_order() -> None:
    one = environment_folder(Path("/c"), "ray", ("a==1", "b==2"))
    assert one == environment_folder(Path("/c"), "ray", ("b==2", "a==1"))
    assert one != environment_folder(Path("/c"), "ray", ("a==1", "b==3"))


def test_an_environment_that_cannot_be_made_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    occupied = environment_folder(tmp_path / "cache", "x", ("nothing==0",))
    occupied.symlink_to(tmp_path / "nowhere" / "deeper")
    with pytest.raises(InstallFailed) as caught:
        python_of(tmp_path / "cache", "x", ("nothing==0",))
    assert "\n" not in str(caught.value)
    assert str(caught.value)


def test_reason_is_the_last_error_line_of_pip() -> None:
    said = "Looking\nERROR: no match for x\nERROR: nothing found for x==9\n\nnotice: pip 99\n"
    assert reason_in(said) == "ERROR: nothing found for x==9"
    assert reason_in("first\nlast\n") == "last"
    assert reason_in("\n") == "no output"


def test_measured_is_the_last_line_that_a_driver_said() -> None:
    said = [
        "a library says hello",
        json.dumps({"measured": {"tasks_per_s": 1}}),
        json.dumps({"measured": {"tasks_per_s": 2}}),
        json.dumps({"else": 1}),
        json.dumps([1]),
        "bye",
    ]
    assert measured_in("\n".join(said)) == {"tasks_per_s": 2}
    assert measured_in("\n".join(said[3:])) is None
    assert measured_in("") is None


def test_last_words_are_a_tracebacks_sentence() -> None:
    assert last_words("Traceback:\n  File x\nValueError: no\n\n", 1) == "ValueError: no"
    assert last_words(" \n", -9) == "ended with code -9 and said nothing"
    assert len(last_words("x" * 10_000, 1)) < 1000


def test_a_job_survives_the_command_line(tmp_path: Path) -> None:
    given = {
        "kind": "kill",
        "case": "defaults",
        "tasks": 10,
        "latency_tasks": 5,
        "workers": 2,
        "folder": str(tmp_path),
        "redis_url": "",
        "packages": ["a", "b"],
    }
    job = Job.parse(json.dumps(given))
    assert (job.folder, job.packages) == (tmp_path, ("a", "b"))
    assert journal_lines(job.journal) == []
    note_nap(3, str(job.journal))
    note_nap(3, str(job.journal))
    assert [number for number, _ in journal_lines(job.journal)] == [3, 3]


def test_others_share_is_what_they_and_the_hypervisor_had() -> None:
    before = CpuSeconds(others=100.0, stolen=1.0, offered=1000.0)
    after = CpuSeconds(others=104.0, stolen=2.0, offered=1020.0)
    assert others_share(before, after) == pytest.approx((4 + 1) / 20)
    # A process that nobody waited for takes its time with it.
    assert others_share(before, CpuSeconds(others=90.0, stolen=1.0, offered=1020.0)) == 0.0
    assert others_share(before, before) == 0.0


def test_process_ticks_are_of_a_process_and_its_ended_children() -> None:
    stat = "42 (a) (odd name) S 1 42 42 0 -1 4194304 99 98 97 96 5 6 7 8 20 0 1 0 1000 1 2"
    assert process_ticks(stat) == 5 + 6 + 7 + 8


def test_cpu_seconds_grow_with_the_time() -> None:
    before = cpu_seconds()
    after = cpu_seconds()
    assert after.offered > before.offered
    assert after.others > 0
    assert 0.0 <= others_share(before, after) <= 1.0
