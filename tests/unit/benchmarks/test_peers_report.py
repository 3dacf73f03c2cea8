"""The peers' tables as they are printed."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.catalog import AOF_ALWAYS, PEERS
from benchmarks.peers.figures import Document, Row, new_row
from benchmarks.peers.report import BEGIN, END, into_page, render, title


def test_a_measured_peer_has_its_figures_with_their_spread() -> None:
    row = _row("taskiq", AOF_ALWAYS, speed=[_run(1000.4), _run(2000.0), _run(1500.0)])
    assert (
        "| taskiq (Redis, appendfsync always) | on disk, synced | 1,500 (1,000 … 2,000) "
        "| 1.50 (1.50 … 1.50) | 9.00 (9.00 … 9.00) | 2% (2% … 2%) |"
    ) in render(_document(row))


def test_a_peer_that_failed_is_a_row_with_the_reason() -> None:
    row = _row("dask", failures={"speed": "not installed: no | such\nthing"})
    printed = render(_document(row))
    assert "failed: not installed: no \\| such thing |" in printed
    assert _columns_agree(printed)


def test_a_run_that_failed_is_not_hidden_by_one_that_came_off() -> None:
    row = _row("dask", speed=[_run(10.0)], failures={"speed": "not done after 300 s"})
    printed = render(_document(row))
    assert "| 10 (10 … 10) |" in printed
    assert "failed: not done after 300 s" in printed


def test_a_death_that_failed_is_a_row_with_the_reason() -> None:
    printed = render(_document(_row("pool", failures={"workers": "not done after 240 s"})))
    assert "| Python's process pool |  |  |  | failed: not done after 240 s |  |  |" in printed


def test_deaths_stand_with_settings_results_and_time() -> None:
    death = {
        "case": "one agent",
        "killed": "1 of 2 agents",
        "results": 20,
        "naps": 20,
        "last_s": 9.26,
        "executions": 21,
    }
    printed = render(_document(_row("muster", AOF_ALWAYS, kill=[death])))
    assert "| 1 of 2 agents | 1 | 20 of 20 | 9.3 | 21 |" in printed
    assert "undisturbed this takes 5 s" in printed
    assert "### Speed" not in printed


def test_several_deaths_of_a_case_are_one_row_with_the_worst_and_the_best() -> None:
    deaths = [
        {
            "case": "one agent",
            "killed": "1 of 2 agents",
            "results": results,
            "naps": 20,
            "last_s": last_s,
            "executions": 21,
        }
        for results, last_s in [(20, 9.0), (19, 12.0), (20, 10.0)]
    ]
    printed = render(_document(_row("muster", AOF_ALWAYS, kill=deaths)))
    assert "| 1 of 2 agents | 3 | 19 … 20 of 20 | 10.0 (9.0 … 12.0) | 21 |" in printed
    assert _columns_agree(printed)


def test_no_result_has_no_time() -> None:
    death = {
        "case": "workers",
        "killed": "2",
        "results": 0,
        "naps": 20,
        "last_s": 0.0,
        "executions": 2,
    }
    assert "| 1 | 0 of 20 |  | 2 |" in render(_document(_row("pool", kill=[death])))


def test_rows_stand_in_the_catalogs_order_and_every_table_is_rectangular() -> None:
    rows = [_row(peer.name, peer.variants[-1], speed=[_run(10.0)]) for peer in reversed(PEERS)]
    printed = render(_document(*rows))
    places = [printed.index(f"| {title(row)} |") for row in reversed(rows)]
    assert places == sorted(places)
    assert _columns_agree(printed)
    for peer in PEERS:
        assert printed.count(f"| {peer.title} | ") >= 1


def test_versions_and_differences_are_said() -> None:
    row = _row("dramatiq", AOF_ALWAYS, versions={"redis": "8.1.0", "dramatiq": "2.2.1"})
    printed = render({**_document(row), "differs": ["tasks: 10000 | 5"]})
    assert "Python 3.11.7, Redis 6.2.14, dramatiq 2.2.1, redis-py 8.1.0." in printed
    assert "Not measured alike: tasks: 10000 | 5." in printed


def test_the_load_of_others_is_said() -> None:
    runs = [_run(1.0), _run(1.0), _run(1.0) | {"others_cpu": 0.31}]
    printed = render(_document(_row("dask", speed=runs)))
    assert "| 2% (2% … 31%) |" in printed
    del runs[0]["others_cpu"], runs[1]["others_cpu"], runs[2]["others_cpu"]
    assert "| not known |" in render(_document(_row("dask", speed=runs)))


def test_a_page_keeps_what_is_around_the_marks() -> None:
    page = f"# Peers\n\nBefore.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n"
    put = into_page(page, "new\n")
    assert put.startswith(f"# Peers\n\nBefore.\n\n{BEGIN}\n\nnew\n")
    assert put.endswith(f"{END}\n\nAfter.\n")
    assert "old" not in put
    assert into_page(put, "new\n") == put


def test_a_page_without_marks_is_replaced_by_the_tables() -> None:
    assert into_page("", "new\n") == f"{BEGIN}\n\nnew\n\n{END}\n"


def _columns_agree(printed: str) -> bool:
    tables = [part.splitlines() for part in printed.split("\n\n") if part.startswith("|")]
    assert tables
    return all(len({line.replace("\\|", "").count("|") for line in lines}) == 1 for lines in tables)


def _run(rate: float) -> dict[str, float]:
    return {
        "tasks_per_s": rate,
        "latency_ms_median": 1.5,
        "latency_ms_p99": 9.0,
        "others_cpu": 0.02,
    }


def _row(peer: str, variant: str = "", **parts: Any) -> Row:
    return {**new_row(peer, variant), **parts}


def _document(*rows: Row) -> Document:
    return {
        "machine": {
            "cpu": "CPU",
            "cores": 2,
            "memory_gib": 23.5,
            "kernel": "6.18",
            "file_system": "ext4",
            "fsync_ms": 0.2,
        },
        "python": "3.11.7",
        "redis": "6.2.14",
        "tasks": 10_000,
        "latency_tasks": 500,
        "workers": 2,
        "kill": {"naps": 20, "nap_s": 0.5, "kill_after_s": 2.0, "give_up_s": 120.0},
        "rows": list(rows),
    }
