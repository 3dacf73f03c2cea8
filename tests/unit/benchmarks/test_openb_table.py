"""The openb table is made in pieces: what is kept is not run again."""

from __future__ import annotations

from pathlib import Path

from benchmarks.openb_table import Key, fill, kept, published, table, wanted

PUBLISHED = (
    "pod_list,policy,seed,gpu_allocation_pct_at_100,gpu_allocation_pct_at_130\n"
    "openb_pod_list_small,05-BestFit,42,90.0,91.0\n"
    "openb_pod_list_small,06-FGD,42,94.0,95.0\n"
    "openb_pod_list_small,06-FGD,43,95.0,96.0\n"
)


def row(key: Key) -> dict[str, object]:
    name, strategy, order, seed, inflate = key
    return {
        "pods": name,
        "strategy": strategy,
        "order": order,
        "seed": seed,
        "inflate": inflate,
        "gpu_allocation_pct_at_100": 90.0 + seed,
        "gpu_allocation_pct_at_130": 91.0 + seed,
        "seconds": 1.0,
    }


def test_runs_that_are_kept_are_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "results" / "openb.jsonl"
    keys = list(wanted(["openb_pod_list_small"], ["quota"], range(1, 3)))
    ran: list[Key] = []

    def run(key: Key) -> dict[str, object]:
        ran.append(key)
        return row(key)

    fill(path, iter(keys[:2]), run, 60.0)
    fill(path, iter(keys), run, 60.0)
    assert ran == keys
    assert set(kept(path)) == set(keys)


def test_no_time_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "openb.jsonl"
    fill(path, wanted(["a"], ["quota"], range(1)), row, 0.0)
    assert kept(path) == {}


def test_each_line_has_mean_and_deviation_beside_what_was_published(tmp_path: Path) -> None:
    peers = tmp_path / "published.csv"
    peers.write_text(PUBLISHED)
    keys = wanted(["openb_pod_list_small"], ["quota"], range(1, 3))
    lines = table({key: row(key) for key in keys}, published(peers)).splitlines()
    assert lines[2:] == [
        "| small | | FGD, published | | 94.50 ± 0.71 | 95.50 ± 0.71 | |",
        "| small | fixed | quota | 2 | 91.50 ± 0.71 | 92.50 ± 0.71 | 1 |",
        "| small | shuffled | quota | 2 | 91.50 ± 0.71 | 92.50 ± 0.71 | 1 |",
    ]
