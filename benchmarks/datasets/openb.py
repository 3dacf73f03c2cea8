"""Nodes and pods of the openb trace (Alibaba, 2023), and the order in which pods arrive.

Node columns: sn, cpu_milli, memory_mib, gpu (count), model (blank: none). Pod columns: name,
cpu_milli, memory_mib, num_gpu (0 to 8), gpu_milli (of each GPU; below 1000 a share of one), and
perhaps gpu_spec ("T4|V100M16"; blank: any) and others that are not read.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muster.domain.errors import InvalidInput
from muster.domain.resources import ResourceVector
from muster.domain.task import Constraint
from muster_scheduler.placement.classes import ClassTable, TaskBatch, TaskClass, TaskMix
from muster_scheduler.placement.snapshot import AgentTable

# Far beyond any machine: a slip of a digit is told, and sums stay exact.
MAX_AMOUNT = 10**9
MAX_GPUS = 16
MAX_ROWS = 1_000_000
WHOLE = 1000
SKILL = "pod"
MODEL = "gpu.model"


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    cpu_milli: int
    memory_mib: int
    gpus: int
    model: str


@dataclass(frozen=True, slots=True)
class Pod:
    """`gpu_milli` is the sum: 460 for a share of one GPU, 8000 for eight. No `models`: any."""

    cpu_milli: int
    memory_mib: int
    gpu_milli: int
    models: tuple[str, ...]


def read_nodes(path: Path) -> list[Node]:
    """Raises InvalidInput naming row and column, or the file where it cannot be read."""
    nodes: dict[str, Node] = {}
    for where, row in _rows(path, ("sn", "cpu_milli", "memory_mib", "gpu", "model")):
        name = row["sn"]
        if not name or name in nodes:
            raise InvalidInput(f"{where}, column sn", name, "must be a name of its own")
        nodes[name] = Node(
            name,
            _number(where, row, "cpu_milli", MAX_AMOUNT),
            _number(where, row, "memory_mib", MAX_AMOUNT),
            _number(where, row, "gpu", MAX_GPUS),
            row["model"],
        )
    if not nodes:
        raise InvalidInput(str(path), "no rows", "must list at least one node")
    if not any(node.gpus for node in nodes.values()):
        raise InvalidInput(f"{path}, column gpu", "only 0", "at least one node must have a GPU")
    return list(nodes.values())


def read_pods(path: Path) -> list[Pod]:
    """Raises InvalidInput naming row and column, or the file where it cannot be read."""
    pods = []
    for where, row in _rows(path, ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")):
        count = _number(where, row, "num_gpu", MAX_GPUS)
        milli = _number(where, row, "gpu_milli", WHOLE)
        if count == 1 and not milli:
            raise InvalidInput(f"{where}, column gpu_milli", milli, "must be from 1 to 1000")
        if count > 1 and milli != WHOLE:
            limit = "must be 1000 where num_gpu is above 1"
            raise InvalidInput(f"{where}, column gpu_milli", milli, limit)
        spec = row.get("gpu_spec") or ""
        pods.append(
            Pod(
                _number(where, row, "cpu_milli", MAX_AMOUNT),
                _number(where, row, "memory_mib", MAX_AMOUNT),
                count * milli,
                tuple(sorted({model for model in spec.split("|") if model})),
            )
        )
    if not pods:
        raise InvalidInput(str(path), "no rows", "must list at least one pod")
    return pods


def arrivals(
    pods: list[Pod], capacity_milli: int, inflate: float, order: str, seed: int
) -> NDArray[np.int64]:
    """int64 [N], pods by index in the order of their arrival.

    The list itself comes first, as it stands in the file (`fixed`) or `shuffled`; pods drawn from
    it with replacement follow until the next would ask for more than `inflate` x the GPU capacity.
    Of a list that asks for more by itself, pods drawn at random are left out until it does not.
    So do the authors of FGD.
    """
    wanted = np.array([pod.gpu_milli for pod in pods], np.int64)
    if not wanted.any():
        raise InvalidInput("pods", "no GPU", "at least one pod must ask for a GPU")
    goal = inflate * capacity_milli
    rng = np.random.default_rng(seed)
    sequence = np.arange(len(pods), dtype=np.int64)
    if order == "shuffled":
        rng.shuffle(sequence)
    excess = int(wanted.sum()) - goal
    if excess > 0:
        drop = rng.permutation(len(pods))
        dropped = int(np.searchsorted(np.cumsum(wanted[drop]), excess)) + 1
        return sequence[~np.isin(sequence, drop[:dropped])]
    extra: list[int] = []
    total = int(wanted.sum())
    while True:
        index = int(rng.integers(len(pods)))
        total += int(wanted[index])
        if total > goal:
            return np.concatenate([sequence, np.array(extra, np.int64)])
        extra.append(index)


def cluster_of(nodes: list[Node]) -> AgentTable:
    """The nodes as agents, in the order of the file; the GPU's model is a label."""
    table = AgentTable()
    for node in nodes:
        capacity = {"cpu": node.cpu_milli, "memory": node.memory_mib, "gpu": node.gpus * WHOLE}
        labels = {MODEL: node.model} if node.model else {}
        table.upsert(
            node.name, ResourceVector.of(capacity), frozenset({SKILL}), labels, placeable=True
        )
    return table


def batch_of(pods: list[Pod], sequence: NDArray[np.int64]) -> TaskBatch:
    """The arrivals as one batch; its mix tells how often each kind of pod stands in the list."""
    classes = ClassTable()
    kinds = {pod: classes.intern(_class_of(pod)) for pod in dict.fromkeys(pods)}
    of_pod = np.array([kinds[pod] for pod in pods], np.int32)
    ids, counts = np.unique(of_pod, return_counts=True)
    count = len(sequence)
    return TaskBatch(
        classes,
        of_pod[sequence],
        np.zeros(count, np.int32),
        np.ones(count),
        mix=TaskMix(ids.astype(np.int32), counts.astype(np.float64)),
    )


def _class_of(pod: Pod) -> TaskClass:
    amounts = {"cpu": pod.cpu_milli, "memory": pod.memory_mib, "gpu": pod.gpu_milli}
    constraints = (Constraint(MODEL, "in", pod.models),) if pod.models else ()
    return TaskClass(SKILL, ResourceVector.of(amounts), constraints)


def _rows(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """(place, row) of each row, with the header checked; rows count from 1 after the header."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in needed if name not in (reader.fieldnames or ())]
            if missing:
                limit = "the first line must name the columns " + ", ".join(needed)
                raise InvalidInput(f"{path}, column {missing[0]}", "missing", limit)
            for number, row in enumerate(reader, 1):
                where = f"{path}, row {number}"
                if number > MAX_ROWS:
                    raise InvalidInput(where, number, f"must have at most {MAX_ROWS} rows")
                absent = [name for name, value in row.items() if name and value is None]
                if absent or None in row:
                    place = f"{where}, column {absent[0] if absent else len(row)}"
                    limit = "must have as many cells as the first line"
                    raise InvalidInput(place, "missing" if absent else "too many", limit)
                yield where, {name: value.strip() for name, value in row.items()}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(str(path), str(error), "must be a readable CSV file") from error


def _number(where: str, row: Mapping[str, str], column: str, most: int) -> int:
    text = row[column]
    if not (
        text.isascii() and text.isdigit() and len(text) <= len(str(most)) and int(text) <= most
    ):
        limit = f"must be a whole number from 0 to {most}"
        raise InvalidInput(f"{where}, column {column}", text, limit)
    return int(text)
