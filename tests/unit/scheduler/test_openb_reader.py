"""The openb files: what is read, and the sentences for what cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import openb
from benchmarks.datasets.openb import Pod, arrivals, batch_of, cluster_of, read_nodes, read_pods
from muster.domain.errors import InvalidInput

NODES = "sn,cpu_milli,memory_mib,gpu,model\n"
PODS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n"


def file(folder: Path, text: str) -> Path:
    path = folder / "list.csv"
    path.write_text(text)
    return path


def test_nodes_and_pods_become_agents_and_tasks(tmp_path: Path) -> None:
    nodes = read_nodes(file(tmp_path, NODES + "n0,64000,262144,2,P100\nn1,8000,1024,0,\n"))
    rows = "p0,100,10,1,460,\np1,100,10,8,1000,T4|P100\np2,100,10,0,0,\n"
    pods = read_pods(file(tmp_path, PODS + rows))
    assert [pod.gpu_milli for pod in pods] == [460, 8000, 0]
    assert pods[1].models == ("P100", "T4")
    view = cluster_of(nodes).view()
    assert view.device_free[view.columns["gpu"]].tolist() == [[1000, 1000], [0, 0]]
    batch = batch_of(pods, np.array([0, 1, 0], np.int64))
    assert batch.classes.eligible(int(batch.class_id[1]), view).tolist() == [True, False]
    assert batch.mix is not None
    assert batch.mix.weight.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("rows", "place"),
    [
        ("p0,100,10,1,460,\np1,many,10,0,0,\n", "row 2, column cpu_milli"),
        ("p0,100,-1,1,460,\n", "row 1, column memory_mib"),
        ("p0,100,10,17,1000,\n", "row 1, column num_gpu"),
        ("p0,100,10,2,500,\n", "row 1, column gpu_milli"),
        ("p0,100,10,1,0,\n", "row 1, column gpu_milli"),
        ("p0,100,10,1\n", "row 1, column gpu_milli"),
        ("p0,100,10,1,460,,7\n", "row 1, column 7"),
        ("p0,1e3,10,0,0,\n", "row 1, column cpu_milli"),
        ("", "no rows"),
    ],
)
def test_a_bad_row_is_named_with_its_column(tmp_path: Path, rows: str, place: str) -> None:
    with pytest.raises(InvalidInput, match=place):
        read_pods(file(tmp_path, PODS + rows))


def test_a_missing_column_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="column gpu_milli"):
        read_pods(file(tmp_path, "name,cpu_milli,memory_mib,num_gpu\n"))
    with pytest.raises(InvalidInput, match=r"absent\.csv"):
        read_nodes(tmp_path / "absent.csv")
    with pytest.raises(InvalidInput, match="row 2, column sn"):
        read_nodes(file(tmp_path, NODES + "n0,1,1,1,T4\nn0,1,1,1,T4\n"))


def test_arrivals_ask_for_the_capacity_times_the_inflation() -> None:
    pods = [Pod(100, 10, milli, ()) for milli in (460, 1000, 0, 2000)] * 5
    wanted = np.array([pod.gpu_milli for pod in pods])
    for inflate in (1.3, 0.4):
        for order in ("fixed", "shuffled"):
            sequence = arrivals(pods, 20_000, inflate, order, 7)
            assert 20_000 * inflate - 2000 <= wanted[sequence].sum() <= 20_000 * inflate
            assert sequence.tolist() == arrivals(pods, 20_000, inflate, order, 7).tolist()
    fixed = arrivals(pods, 20_000, 1.3, "fixed", 7)
    assert fixed[: len(pods)].tolist() == list(range(len(pods)))
    shuffled = arrivals(pods, 20_000, 1.3, "shuffled", 7)
    assert sorted(shuffled[: len(pods)].tolist()) == list(range(len(pods)))


def test_the_script_reports_a_run_and_refuses_nonsense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = tmp_path / "nodes.csv"
    nodes.write_text(NODES + "n0,8000,4096,4,T4\n")
    pods = file(tmp_path, PODS + "p0,1000,10,1,500,\n")
    flags = ["--nodes", str(nodes), "--pods", str(pods), "--strategy", "first_fit"]
    assert openb.main([*flags, "--json"]) == 0
    assert '"gpu_allocation_pct_at_130": 100.0' in capsys.readouterr().out
    assert openb.main([*flags, "--inflate", "nan"]) == 2
    assert openb.main([*flags[:-1], "magic"]) == 2
    assert "strategy" in capsys.readouterr().err
