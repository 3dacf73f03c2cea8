"""Each fault of the oracle in its short form, on one cluster whose links can be cut.

The long forms are `make chaos`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.oracle.catalogue import FAULTS
from benchmarks.oracle.cluster import Cluster
from benchmarks.oracle.far_network import why_no_network
from benchmarks.oracle.scene import run_fault

# A second without other work; far more on a machine that runs other tests beside.
pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.timeout(300)]
TASKS = 150


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder, wired = tmp_path_factory.mktemp("chaos"), not why_no_network()
    with Cluster(folder, agents=3, proxied=True, wired=wired, clocked=True) as started:
        yield started


# The others stand on stores of their own: test_chaos_stores.py.
@pytest.mark.parametrize("number", [n for n, make in FAULTS.items() if not make().stores.special])
def test_the_books_balance_after(number: str, cluster: Cluster, tmp_path: Path) -> None:
    fault = FAULTS[number]()
    if why_not := fault.why_not():
        pytest.skip(why_not)
    run = run_fault(fault, cluster, tmp_path, seed=1, tasks=TASKS, short=True)
    assert run.violations == []
    assert run.problems == []
    assert run.tasks >= TASKS
