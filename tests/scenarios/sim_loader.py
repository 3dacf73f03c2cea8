"""Reads open tasks from storage: all of them at first, then those that others create or change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from tests.scenarios.sim_network import call

from muster.domain.ids import TaskId
from muster_scheduler.core import tasks

if TYPE_CHECKING:
    from tests.scenarios.sim_leader import SimLeader
    from tests.scenarios.sim_store import Row

PAGE = 4
PAGE_MS = 40


class SimLoader:
    """As the production loader: pages come one after the other while tasks go on."""

    def __init__(self, leader: SimLeader) -> None:
        self._leader = leader

    def load(self, *, first: bool = True) -> None:
        """`first` False: as after a gap in the events."""
        leader = self._leader

        def loaded(answer: object) -> None:
            rows, position = cast("tuple[list[Row], int]", answer)
            for number, start in enumerate(range(0, len(rows), PAGE)):
                page = rows[start : start + PAGE]
                leader.later(
                    number * PAGE_MS,
                    lambda page=page: self._take(page, held_too=first),  # type: ignore[misc]
                )
            pages = -(-len(rows) // PAGE)
            leader.later(pages * PAGE_MS + 1, lambda: self._loaded(first, position))

        call(leader, leader.store, leader.store.load_open, loaded)

    def load_again(self) -> None:
        """Events were missed."""
        if self._leader.ready:
            self.load(first=False)

    def _loaded(self, first: bool, position: int) -> None:
        store = self._leader.store
        if first:
            self._leader.begin()
            store.followers.append(self._on_created)
        for ident in store.by_gateways[position:]:
            self._on_created(ident)

    def _on_created(self, ident: TaskId) -> None:
        leader = self._leader
        leader.later(leader.kernel.delay_ms(), lambda: self.look_up(ident, held_too=False))

    def look_up(self, ident: TaskId, *, held_too: bool) -> None:
        """Takes over what storage says of one task."""
        leader = self._leader
        if ident in leader.state.tasks:
            return

        def found(answer: object) -> None:
            self._take([cast("Row", answer)], held_too=held_too)

        call(leader, leader.store, lambda: leader.store.row(ident), found)

    def _take(self, rows: Sequence[Row], *, held_too: bool) -> None:
        now = self._leader.now()
        for spec, status in rows:
            tasks.load(self._leader.state, spec, status, None, now, held_too=held_too)
