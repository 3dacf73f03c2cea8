"""What a placement strategy is, and the strategies by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from numpy.random import Generator

from muster.domain.errors import InvalidInput
from muster_scheduler.placement.classes import TaskBatch
from muster_scheduler.placement.plan import Plan, Policy
from muster_scheduler.placement.snapshot import Snapshot


class Strategy(Protocol):
    """Pure: equal arguments, the generator's state among them, give an equal plan."""

    @property
    def name(self) -> str:
        """The name that it is registered by."""

    def plan(
        self,
        snapshot: Snapshot,
        tasks: TaskBatch,
        policy: Policy,
        now_s: float,
        rng: Generator,
        stop: Callable[[], bool],
        max_steps: int,
    ) -> Plan:
        """Place what can be placed, and change neither snapshot nor tasks.

        `stop` is asked between steps and ends the work with what was found so far. `max_steps`
        bounds the steps of improvement; building the first plan is no step, every strategy owes
        one.
        """


_S = TypeVar("_S", bound=Strategy)
_strategies: dict[str, Strategy] = {}


def register(name: str) -> Callable[[type[_S]], type[_S]]:
    """Class decorator: makes the strategy known as `name`; the class takes no arguments."""

    def add(strategy_type: type[_S]) -> type[_S]:
        strategy = strategy_type()
        assert strategy.name == name, f"{strategy.name} registers as {name}"
        assert name not in _strategies, f"two strategies are called {name}"
        _strategies[name] = strategy
        return strategy_type

    return add


def get(name: str) -> Strategy:
    """Raises InvalidInput naming the strategies that there are."""
    strategy = _strategies.get(name)
    if strategy is None:
        raise InvalidInput("strategy", name, "one of " + ", ".join(names()))
    return strategy


def names() -> tuple[str, ...]:
    """In alphabetical order."""
    return tuple(sorted(_strategies))
