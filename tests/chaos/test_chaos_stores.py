"""The faults that need stores of their own, in their short form: disks whose power can be cut, and
calls that can be answered with errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.oracle.catalogue import FAULTS
from benchmarks.oracle.cluster import Cluster
from benchmarks.oracle.power_disk import why_no_disks
from benchmarks.oracle.scene import run_fault
from benchmarks.oracle.store_ground import Stores

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.timeout(300)]
TASKS = 100


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    stores = Stores(disks=not why_no_disks(), tapped=True)
    with Cluster(tmp_path_factory.mktemp("stores"), agents=3, stores=stores) as started:
        yield started


@pytest.mark.parametrize("number", [n for n, make in FAULTS.items() if make().stores.special])
def test_the_books_balance_after(number: str, cluster: Cluster, tmp_path: Path) -> None:
    fault = FAULTS[number]()
    if why_not := fault.why_not():
        pytest.skip(why_not)
    run = run_fault(fault, cluster, tmp_path, seed=1, tasks=TASKS, short=True)
    assert run.violations == []
    assert run.problems == []
    assert run.tasks >= TASKS
