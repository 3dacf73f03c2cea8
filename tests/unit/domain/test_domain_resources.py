"""Resource vectors: kinds and units by name, parsing, and the laws of the algebra."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.domain.errors import InvalidInput
from muster.domain.quantity import MAX_AMOUNT, Unit
from muster.domain.resources import (
    DEFAULT_AGENT_SLOTS,
    DEFAULT_TASK_RESOURCES,
    MAX_RESOURCE_NAMES,
    ResourceKind,
    ResourceVector,
    kind_of,
    unit_of,
)

names = st.sampled_from(["cpu", "memory", "network", "slots", "gpu", "gpu.a100", "licence"])
vectors = st.dictionaries(names, st.integers(0, 10**12), max_size=7).map(ResourceVector.of)
NOTHING = ResourceVector()


@pytest.mark.parametrize(
    ("name", "kind", "unit"),
    [
        ("cpu", ResourceKind.HELD, Unit.MILLI),
        ("memory", ResourceKind.HELD, Unit.BYTE),
        ("network", ResourceKind.HELD, Unit.BIT_PER_S),
        ("slots", ResourceKind.HELD, Unit.COUNT),
        ("gpu", ResourceKind.DEVICE, Unit.DEVICE_MILLI),
        ("gpu.a100", ResourceKind.DEVICE, Unit.DEVICE_MILLI),
        ("gpus", ResourceKind.HELD, Unit.COUNT),
        ("tokens_per_minute", ResourceKind.RATE, Unit.COUNT),
        ("calls_per_second", ResourceKind.RATE, Unit.COUNT),
        ("licence", ResourceKind.HELD, Unit.COUNT),
        ("a" * 63, ResourceKind.HELD, Unit.COUNT),
    ],
)
def test_kind_and_unit_follow_from_the_name(name: str, kind: ResourceKind, unit: Unit) -> None:
    assert kind_of(name) is kind
    assert unit_of(name) is unit


@pytest.mark.parametrize("name", ["", "CPU", "1cpu", "_x", "c pu", "cpu\n", "a" * 64, "größe"])
def test_a_bad_name_is_refused_everywhere(name: str) -> None:
    for build in (
        lambda: kind_of(name),
        lambda: unit_of(name),
        lambda: ResourceVector.of({name: 1}),
        lambda: ResourceVector.parse({name: 1}),
    ):
        with pytest.raises(InvalidInput) as caught:
            build()
        assert caught.value.field == "resource name"
        assert caught.value.value == name


def test_parse_reads_each_name_in_its_unit() -> None:
    vector = ResourceVector.parse(
        {"memory": "1.5Gi", "cpu": "500m", "gpu": 0.5, "network": "10M", "licence": 2, "slots": 0}
    )
    assert vector.items() == (
        ("cpu", 500),
        ("gpu", 500),
        ("licence", 2),
        ("memory", 1_610_612_736),
        ("network", 10_000_000),
    )
    assert vector.names() == ("cpu", "gpu", "licence", "memory", "network")
    assert vector.get("cpu") == 500
    assert vector.get("slots") == 0
    assert vector.formatted() == {
        "cpu": "500m",
        "gpu": "500m",
        "licence": "2",
        "memory": "1536Mi",
        "network": "10M",
    }


def test_parse_names_the_field_of_a_bad_quantity() -> None:
    with pytest.raises(InvalidInput) as caught:
        ResourceVector.parse({"cpu": 1, "memory": "1GiB"}, field="tasks[3].resources")
    assert caught.value.field == "tasks[3].resources.memory"
    assert caught.value.value == "1GiB"


def test_parse_bounds_the_number_of_names() -> None:
    at_limit = {f"r{i}": 1 for i in range(MAX_RESOURCE_NAMES)}
    assert len(ResourceVector.parse(at_limit).items()) == MAX_RESOURCE_NAMES
    with pytest.raises(InvalidInput, match="at most 32 names"):
        ResourceVector.parse({**at_limit, "one_more": 1})


@pytest.mark.parametrize(
    ("quantity", "millis"),
    [(1, 1000), ("2", 2000), ("0.25", 250), ("999m", 999), (0, 0), ("8", 8000)],
)
def test_devices_are_whole_or_a_fraction_of_one(quantity: str | int, millis: int) -> None:
    assert ResourceVector.parse({"gpu": quantity}).get("gpu") == millis


@pytest.mark.parametrize("quantity", ["1.5", "1001m", 2.001])
def test_devices_between_are_refused(quantity: str | float) -> None:
    with pytest.raises(InvalidInput, match="fraction of one"):
        ResourceVector.parse({"gpu.a100": quantity})


@pytest.mark.parametrize("amount", [-1, MAX_AMOUNT + 1, True, 1.0, "1"])
def test_of_takes_base_units_within_bounds(amount: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        ResourceVector.of({"cpu": amount})
    assert caught.value.field == "resources.cpu"
    assert ResourceVector.of({"cpu": MAX_AMOUNT}).get("cpu") == MAX_AMOUNT


def test_the_invariant_holds_for_whoever_builds_directly() -> None:
    for pairs in [(("b", 1), ("a", 1)), (("a", 1), ("a", 1)), (("a", 0),), (("a", -1),)]:
        with pytest.raises(AssertionError):
            ResourceVector(pairs)


def test_defaults() -> None:
    assert DEFAULT_TASK_RESOURCES.formatted() == {"cpu": "100m", "memory": "64Mi"}
    assert DEFAULT_AGENT_SLOTS == 64


@given(vectors)
def test_with_slot_adds_one_slot_once_and_nothing_else(vector: ResourceVector) -> None:
    slotted = vector.with_slot()
    assert slotted.get("slots") == max(1, vector.get("slots"))
    assert slotted.with_slot() == slotted
    assert {**slotted.as_dict(), "slots": 0} == {**vector.as_dict(), "slots": 0}


@given(st.dictionaries(names, st.integers(0, 5)))
def test_equality_ignores_order_and_zeros(amounts: dict[str, int]) -> None:
    backwards = dict(reversed(amounts.items()))
    without_zeros = {name: amount for name, amount in amounts.items() if amount}
    vector = ResourceVector.of(amounts)
    for other in (ResourceVector.of(backwards), ResourceVector.of(without_zeros)):
        assert vector == other
        assert hash(vector) == hash(other)
    assert vector.as_dict() == without_zeros


@given(st.dictionaries(names, st.integers(0, MAX_AMOUNT // 1000).map(lambda n: n * 1000)))
def test_formatted_parses_back(amounts: dict[str, int]) -> None:
    vector = ResourceVector.of(amounts)
    assert ResourceVector.parse(vector.formatted()) == vector


@given(vectors, vectors, vectors)
def test_addition_is_a_commutative_monoid_by_name(
    a: ResourceVector, b: ResourceVector, c: ResourceVector
) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + NOTHING == a
    for name in {*a.names(), *b.names()}:
        assert (a + b).get(name) == a.get(name) + b.get(name)


@given(vectors, vectors)
def test_minus_undoes_addition(a: ResourceVector, b: ResourceVector) -> None:
    assert (a + b).minus(b) == a
    assert a.minus(a) == NOTHING


@given(vectors, vectors)
def test_fits_shortfall_and_minus_agree(demand: ResourceVector, free: ResourceVector) -> None:
    missing = demand.shortfall(free)
    assert demand.fits_in(free) == (not missing)
    assert demand.fits_in(free) == all(demand.get(n) <= free.get(n) for n in demand.names())
    assert demand.fits_in(free + ResourceVector.of(missing))
    assert all(missing[name] == demand.get(name) - free.get(name) > 0 for name in missing)
    if missing:
        with pytest.raises(ValueError, match=next(iter(missing))):
            free.minus(demand)
    else:
        assert free.minus(demand) + demand == free


@given(vectors, vectors)
def test_dominant_share_is_at_most_one_exactly_when_it_fits(
    used: ResourceVector, capacity: ResourceVector
) -> None:
    assert (used.dominant_share(capacity) <= 1) == used.fits_in(capacity)


def test_dominant_share_by_example() -> None:
    used = ResourceVector.of({"cpu": 500, "memory": 10})
    assert used.dominant_share(ResourceVector.of({"cpu": 2000, "memory": 100, "gpu": 1})) == 0.25
    assert used.dominant_share(ResourceVector.of({"cpu": 2000})) == math.inf
    assert NOTHING.dominant_share(NOTHING) == 0.0
    assert NOTHING.dominant_share(used) == 0.0


def test_totals_of_a_cluster_may_pass_the_bound_of_one_quantity() -> None:
    big = ResourceVector.of({"memory": MAX_AMOUNT})
    assert (big + big).get("memory") == 2 * MAX_AMOUNT
    assert (big + big).minus(big) == big
