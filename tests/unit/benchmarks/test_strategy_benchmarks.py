"""The scripts that compare strategies: what they read, and the sentences for what they cannot."""

from __future__ import annotations

import sys
from pathlib import Path

import orjson
import pytest

from benchmarks import gap, hcsp, objective, strategies
from benchmarks.placement_instances import read_gap, read_hcsp
from muster.domain.errors import InvalidInput

HCSP = "3 2\n1.0\n2\n3\n4\n5\n6.5\n"
GAP = "2 3\n1 2 3\n4 5 6\n7 8 9\n1 2 3\n20 30\n"
BEST = "Path,Best known solution value\nx/g,7\n"


def file(folder: Path, text: str, name: str = "list") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_instances_are_read(tmp_path: Path) -> None:
    file(tmp_path, "", "u.0_MS_9,5.sol")
    found = read_hcsp(file(tmp_path, HCSP, "u.0"))
    assert found.tasks.response_s is not None
    assert found.tasks.response_s.tolist() == [[1, 2], [3, 4], [5, 6.5]]
    assert found.best == 9.5
    found = read_gap(file(tmp_path, GAP, "g"), gap.best_known(file(tmp_path, BEST)))
    assert found.tasks.response_s is not None
    assert found.tasks.response_s.tolist() == [[1, 4], [2, 5], [3, 6]]
    assert found.snapshot.capacity[:, 0].tolist() == [20, 30]
    assert found.best == 7.0


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "ends after 0 numbers"),
        ("0 2\n", "line 1, column 1"),
        ("3 x\n", "line 1, column 2"),
        (HCSP.replace("4", "-4"), "line 5, column 1"),
        (HCSP.replace("4", "nan"), "line 5, column 1"),
        (HCSP.replace("6.5", ""), "ends after 7 numbers"),
        (HCSP + "7\n", "line 8, column 1"),
        ("999999 999999\n", "ends after 2 numbers"),
    ],
)
def test_a_bad_hcsp_file_is_refused_with_the_place(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(InvalidInput, match=place):
        read_hcsp(file(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (GAP.replace("5", "five"), "line 3, column 2.*cost"),
        (GAP.replace("8", "8.5"), "line 4, column 2.*weight"),
        (GAP.replace("20", "1e99"), "line 6, column 1.*capacity"),
        (GAP.replace("20 30", "20"), "a capacity is complete"),
    ],
)
def test_a_bad_gap_file_is_refused_with_the_place(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(InvalidInput, match=place):
        read_gap(file(tmp_path, text), {})


@pytest.mark.parametrize(
    ("text", "place"),
    [("Path\nx\n", "no column"), (BEST.replace("7", "?"), "row 1, column Best known")],
)
def test_a_bad_list_of_best_values_is_refused(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(InvalidInput, match=place):
        gap.best_known(file(tmp_path, text))


@pytest.mark.parametrize(
    ("main", "flags", "sentence"),
    [
        (hcsp.main, ["absent"], "cannot be read"),
        (gap.main, ["absent", "--best-known", "absent.csv"], "absent.csv"),
        (hcsp.main, ["list", "--strategy", "magic"], "one of annealing"),
        (gap.main, ["list", "--seconds", "0"], "budget_s"),
        (hcsp.main, ["list", "--seconds", "nan"], "budget_s"),
        (objective.main, ["--strategy", "magic"], "one of annealing"),
        (objective.main, ["--fill", "0"], "--fill"),
        (objective.main, ["--seed", "-1"], "--seed"),
        (strategies.main, ["--results", "list"], "line 1"),
        (strategies.main, ["--results", "r", "--strategy", "magic"], "one of annealing"),
        (strategies.main, ["--results", "r", "--seeds", "0"], "--seeds"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    main: object,
    flags: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file(tmp_path, HCSP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script", *flags])
    assert callable(main)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


def test_the_table_goes_on_where_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, results = file(tmp_path, GAP, "g"), tmp_path / "r.jsonl"
    best = file(tmp_path, BEST.replace("7", "6"))
    flags = ["--gap", str(path), "--best-known", str(best), "--results", str(results)]
    flags += ["--no-objective", "--seeds", "2", "--seconds", "0.05", "--strategy", "annealing"]
    monkeypatch.setattr(sys, "argv", ["script", *flags, "--spend", "0"])
    strategies.main()
    assert "2 of 2 runs are missing" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["script", *flags])
    strategies.main()
    once = results.read_text()
    strategies.main()
    assert results.read_text() == once
    rows = [orjson.loads(line) for line in once.splitlines()]
    # Two of three tasks fit on the cheap agent: 1 + 2 + 3 + 3 against a best of 6 that we claim.
    assert [(row["seed"], row["value"], row["gap_pct"]) for row in rows] == [
        (42, pytest.approx(9.0), pytest.approx(50.0)),
        (43, pytest.approx(9.0), pytest.approx(50.0)),
    ]
    assert "| g | 50.00 (50.00 to 50.00) |" in capsys.readouterr().out
