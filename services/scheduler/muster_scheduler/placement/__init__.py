"""Where tasks go: pure planning over a snapshot of agents, with strategies chosen by name.

Importing the package imports every module in it, and so registers every strategy: a new strategy
is a new file with `@register("name")`, and nothing here changes. A module whose libraries are
heavy or optional imports them when it plans, not at its top.
"""

from importlib import import_module
from pkgutil import iter_modules

from muster_scheduler.placement.classes import ClassTable, Demand, TaskBatch, TaskClass, TaskMix
from muster_scheduler.placement.explain import explain
from muster_scheduler.placement.objective import Score, evaluate
from muster_scheduler.placement.plan import Plan, Policy, Unplaceable
from muster_scheduler.placement.snapshot import AgentTable, Snapshot
from muster_scheduler.placement.strategy import Strategy, get, names, register

__all__ = [
    "AgentTable",
    "ClassTable",
    "Demand",
    "Plan",
    "Policy",
    "Score",
    "Snapshot",
    "Strategy",
    "TaskBatch",
    "TaskClass",
    "TaskMix",
    "Unplaceable",
    "evaluate",
    "explain",
    "get",
    "names",
    "register",
]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
