"""Statistics and merging of the peers' benchmark."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.peers.figures import Document, Row, Spread, merge, new_row, note, speed_of, spread


def test_spread_is_median_and_extremes() -> None:
    assert spread([3.0, 1.0, 10.0]) == Spread(median=3.0, low=1.0, high=10.0)
    assert spread([2.0, 4.0]) == Spread(median=3.0, low=2.0, high=4.0)


def test_speed_of_takes_each_figure_over_the_runs() -> None:
    row = _row(speed=[_run(100.0), _run(300.0), _run(200.0)])
    assert speed_of(row)["tasks_per_s"] == Spread(200.0, 100.0, 300.0)
    assert list(speed_of(row)) == ["tasks_per_s", "latency_ms_median", "latency_ms_p99"]
    assert speed_of(_row()) == {}


def test_note_keeps_versions_once_per_row() -> None:
    row = new_row("ray-tasks", "")
    note(row, "speed", {**_run(1.0), "versions": {"ray": "2.60.0"}})
    note(row, "kill", {"case": "workers", "versions": {"ray": "2.60.0"}})
    assert row["versions"] == {"ray": "2.60.0"}
    assert row["speed"] == [_run(1.0)]
    assert row["kill"] == [{"case": "workers"}]


def test_merge_brings_parts_of_a_row_together() -> None:
    speed = _document(_row(speed=[_run(1.0)], versions={"a": "1"}))
    kill = _document(_row(kill=[{"case": "x", "results": 20}], versions={"b": "2"}))
    (row,) = merge([speed, kill])["rows"]
    assert row["speed"] == [_run(1.0)]
    assert row["kill"] == [{"case": "x", "results": 20}]
    assert row["versions"] == {"a": "1", "b": "2"}


def test_merge_lets_the_later_measurement_replace_the_same_part_only() -> None:
    first = _document(
        _row(
            speed=[_run(1.0)],
            kill=[{"case": "x", "results": 1}, {"case": "y", "results": 2}],
        )
    )
    second = _document(_row(speed=[_run(5.0), _run(6.0)], kill=[{"case": "x", "results": 9}]))
    (row,) = merge([first, second])["rows"]
    assert row["speed"] == [_run(5.0), _run(6.0)]
    assert row["kill"] == [{"case": "y", "results": 2}, {"case": "x", "results": 9}]


@pytest.mark.parametrize(
    ("earlier", "later", "speed", "failures"),
    [
        ({"failures": {"speed": "no"}}, {"speed": [1.0]}, [1.0], {}),
        ({"speed": [1.0]}, {"failures": {"speed": "no"}}, [], {"speed": "no"}),
        ({"speed": [1.0]}, {"failures": {"x": "no"}}, [1.0], {"x": "no"}),
    ],
)
def test_merge_forgets_a_failure_that_was_measured_again(
    earlier: dict[str, Any], later: dict[str, Any], speed: list[float], failures: dict[str, str]
) -> None:
    documents = [
        _document(
            _row(
                speed=[_run(rate) for rate in part.get("speed", ())],
                failures=part.get("failures", {}),
            )
        )
        for part in (earlier, later)
    ]
    (row,) = merge(documents)["rows"]
    assert row["speed"] == [_run(rate) for rate in speed]
    assert row["failures"] == failures


def test_merge_forgets_a_failed_death_that_came_off_later() -> None:
    failed = _document(_row(failures={"x": "no", "y": "no"}))
    came_off = _document(_row(kill=[{"case": "x", "results": 20}]))
    (row,) = merge([failed, came_off])["rows"]
    assert row["failures"] == {"y": "no"}


def test_merge_keeps_variants_apart_and_changes_no_argument() -> None:
    one = _document(_row(speed=[_run(1.0)], variant="Redis, AOF off"))
    two = _document(_row(speed=[_run(2.0)], variant="Redis, appendfsync always"))
    assert [row["speed"][0]["tasks_per_s"] for row in merge([one, two])["rows"]] == [1.0, 2.0]
    again = _document(_row(failures={"speed": "no"}, variant="Redis, AOF off"))
    merge([one, again])
    assert one["rows"][0]["speed"] == [_run(1.0)]


def test_merge_says_what_the_documents_do_not_agree_on() -> None:
    one, two = _document(_row()), _document(_row())
    assert merge([one, two])["differs"] == []
    two |= {"tasks": 5, "machine": {"cpu": "other", "fsync_ms": 9.0}}
    merged = merge([one, two])
    assert merged["differs"] == ["machine.cpu: one | other", "tasks: 10000 | 5"]
    # Merging again forgets nothing.
    assert set(merge([merged, two])["differs"]) == set(merged["differs"])


def test_merge_needs_a_document() -> None:
    with pytest.raises(ValueError, match="nothing to merge"):
        merge([])


def _run(rate: float) -> dict[str, float]:
    return {"tasks_per_s": rate, "latency_ms_median": 1.0, "latency_ms_p99": 2.0}


def _row(**parts: Any) -> Row:
    return {**new_row("taskiq", ""), **parts}


def _document(*rows: Row) -> Document:
    return {
        "machine": {"cpu": "one", "fsync_ms": 0.2},
        "python": "3.11.7",
        "redis": "6.2.14",
        "tasks": 10_000,
        "latency_tasks": 500,
        "workers": 2,
        "rows": list(rows),
    }
