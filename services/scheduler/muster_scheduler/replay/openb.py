"""Traces of pods with GPUs, as openb of Alibaba has them (Weng et al., USENIX ATC 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from muster.domain.errors import InvalidInput
from muster.domain.resources import ResourceVector
from muster.domain.task import Constraint
from muster_scheduler.learning.attempts import TaskFeatures
from muster_scheduler.replay.rows import Row, read_rows
from muster_scheduler.replay.trace import Trace, TraceAgent, TraceTask, checked

POD_COLUMNS = (
    "name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "gpu_spec", "creation_time",
    "deletion_time", "scheduled_time",
)  # fmt: skip
NODE_COLUMNS = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
SKILL = "pod"
# The label that pods ask GPU models of.
MODEL_LABEL = "gpu_model"
# Pods are bound by cpu, memory and GPUs; slots must not bind them too.
SLOTS = 1000
_MIB = 1024 * 1024
_MAX_GPUS = 64
_WHOLE = 1000


def read_openb(path: Path, agents: Sequence[TraceAgent]) -> Trace:
    """Pods run from their scheduling (else their creation) to their deletion, at least a second.

    Raises InvalidInput naming row and column.
    """
    tasks = sorted(
        (_task(row) for row in read_rows(path, POD_COLUMNS)), key=lambda task: task.arrival_s
    )
    first_s = tasks[0].arrival_s if tasks else 0.0
    shifted = tuple(
        TraceTask(t.arrival_s - first_s, t.work_s, t.features, t.demand, 0, t.constraints)
        for t in tasks
    )
    note = "a pod runs as long as it did; agents do not differ in speed"
    return checked(Trace(shifted, tuple(agents), (note,)))


def read_nodes(path: Path) -> tuple[TraceAgent, ...]:
    """Raises InvalidInput naming row and column."""
    agents = []
    names: set[str] = set()
    for row in read_rows(path, NODE_COLUMNS):
        name, model = row.text("sn"), row.text("model")
        if not name or name in names:
            raise InvalidInput(row.place("sn"), name, "must be a name of its own")
        names.add(name)
        capacity = {
            "cpu": row.integer("cpu_milli"),
            "memory": row.integer("memory_mib", 0, 2**30) * _MIB,
            "slots": SLOTS,
            "gpu": row.integer("gpu", 0, _MAX_GPUS) * _WHOLE,
        }
        labels = {MODEL_LABEL: model} if model else {}
        agents.append(TraceAgent(name, ResourceVector.of(capacity), labels))
    return tuple(agents)


def _task(row: Row) -> TraceTask:
    created_s = row.number_of("creation_time")
    started_s = row.number_of("scheduled_time") if row.text("scheduled_time") else created_s
    deleted_s = row.number_of("deletion_time")
    if deleted_s < created_s:
        raise InvalidInput(row.place("deletion_time"), deleted_s, "is before the creation_time")
    count = row.integer("num_gpu", 0, _MAX_GPUS)
    part = row.integer("gpu_milli", 0, _WHOLE)
    if count > 1 and part < _WHOLE:
        raise InvalidInput(row.place("gpu_milli"), part, "only a single GPU is shared")
    gpu = count * part if count == 1 else count * _WHOLE
    demand = {
        "cpu": row.integer("cpu_milli"),
        "memory": row.integer("memory_mib", 0, 2**30) * _MIB,
        "gpu": gpu,
    }
    models = tuple(model for model in row.text("gpu_spec").split("|") if model)
    constraints = (Constraint(MODEL_LABEL, "in", models),) if models and gpu else ()
    fields = (("gpus", gpu / _WHOLE),)
    return TraceTask(
        created_s,
        max(1.0, deleted_s - started_s),
        TaskFeatures(SKILL, fields=fields),
        ResourceVector.of(demand),
        0,
        constraints,
    )
