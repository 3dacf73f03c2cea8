"""Devices: what is free on each is exact through any history, and pickers stay within it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.domain.errors import InvalidInput
from muster.domain.resources import MAX_DEVICES, ResourceVector
from muster_scheduler.placement import AgentTable
from muster_scheduler.placement.devices import (
    Devices,
    device_count,
    device_fits,
    pick_devices,
)

SKILLS = frozenset({"echo"})


def agent(table: AgentTable, name: str, **amounts: int) -> int:
    return table.upsert(name, ResourceVector.of(amounts), SKILLS, {}, placeable=True)


@dataclass
class Books:
    """The same cluster kept by hand: thousandths used by (agent, resource, device)."""

    capacity: dict[str, dict[str, int]] = field(default_factory=dict)
    used: dict[tuple[str, str, int], int] = field(default_factory=dict)

    def free(self, name: str, resource: str, width: int) -> list[int]:
        offered = self.capacity.get(name, {}).get(resource, 0)
        return [
            max(0, min(1000, offered - 1000 * index)) - self.used.get((name, resource, index), 0)
            for index in range(width)
        ]


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_free_devices_follow_every_history(data: st.DataObject) -> None:
    table, books = AgentTable(), Books()
    held: list[tuple[str, ResourceVector, np.ndarray, Devices]] = []
    agents = [f"a{index}" for index in range(4)]
    for _ in range(data.draw(st.integers(1, 40))):
        step = data.draw(st.sampled_from(["upsert", "take", "take", "take", "give", "remove"]))
        name = data.draw(st.sampled_from(agents))
        if step == "upsert":
            amounts = {
                resource: data.draw(st.sampled_from([0, 500, 1000, 2500, 4000, 8000]))
                for resource in ("gpu", "gpu.a100")
            }
            capacity = ResourceVector.of({"cpu": 1000, **amounts})
            table.upsert(name, capacity, SKILLS, {}, placeable=True)
            books.capacity[name] = amounts
        elif step == "remove" and name in table:
            table.remove(name)
            books.capacity.pop(name)
            books.used = {key: used for key, used in books.used.items() if key[0] != name}
            held = [entry for entry in held if entry[0] != name]
        elif step == "take" and name in table:
            amount = data.draw(st.sampled_from([110, 460, 1000, 2000, 3000]))
            resource = data.draw(st.sampled_from(["gpu", "gpu.a100"]))
            demand = ResourceVector.of({resource: amount})
            row, demand_row = table.row_of(name), table.demand_row(demand)
            devices = table.devices_for(row, demand_row)
            table.take(row, demand_row, devices)
            held.append((name, demand, demand_row, devices))
            for index in devices.get(resource, ()):
                key = (name, resource, index)
                books.used[key] = books.used.get(key, 0) + min(amount, 1000)
        elif step == "give" and held:
            name, demand, demand_row, devices = held.pop(data.draw(st.integers(0, len(held) - 1)))
            table.give_back(table.row_of(name), demand_row, devices)
            for resource, indices in devices.items():
                for index in indices:
                    books.used[name, resource, index] -= min(demand.get(resource), 1000)
        view = table.view()
        for column, free in view.device_free.items():
            for row in range(view.row_count):
                expected = books.free(view.agent_ids[row], view.names[column], free.shape[1])
                assert free[row].tolist() == expected


@given(
    free=st.lists(st.integers(0, 1000), max_size=8),
    amount=st.one_of(st.integers(1, 1000), st.sampled_from([2000, 3000, 8000])),
)
def test_a_pick_is_found_exactly_where_the_demand_fits(free: list[int], amount: int) -> None:
    indices = pick_devices(free, amount)
    fits = bool(device_fits(np.array([free], np.int64), amount)[0])
    assert (indices is not None) == fits
    if indices is not None:
        assert len(set(indices)) == len(indices) == device_count(amount)
        assert all(free[index] >= min(amount, 1000) for index in indices)


def test_a_fraction_goes_to_the_fullest_device_that_has_room() -> None:
    assert pick_devices([1000, 300, 500, 500], 400) == (2,)
    assert pick_devices([1000, 300, 1000], 2000) == (0, 2)
    assert pick_devices([900, 900], 1000) is None


def test_a_frozen_view_keeps_its_devices() -> None:
    table = AgentTable()
    row = agent(table, "a", gpu=2000)
    frozen = table.view().freeze()
    demand_row = table.demand_row(ResourceVector.of({"gpu": 1000}))
    table.take(row, demand_row, {"gpu": (1,)})
    column = table.view().columns["gpu"]
    assert table.view().device_free[column].tolist() == [[1000, 0]]
    assert frozen.device_free[column].tolist() == [[1000, 1000]]


def test_more_devices_than_are_kept_are_refused_and_change_nothing() -> None:
    table = AgentTable()
    with pytest.raises(InvalidInput, match=f"at most {MAX_DEVICES} devices"):
        agent(table, "a", gpu=1000 * (MAX_DEVICES + 1))
    assert "a" not in table
    assert not table.view().device_free


def test_a_task_without_devices_touches_none() -> None:
    table = AgentTable()
    row = agent(table, "a", gpu=1000, cpu=1000)
    table.take(row, table.demand_row(ResourceVector.of({"gpu": 1000})))
    view = table.view()
    column = view.columns["gpu"]
    assert view.free[row, column] == 0
    assert view.device_free[column].tolist() == [[1000]]
