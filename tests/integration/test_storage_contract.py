"""One suite for both stores: what holds in memory holds in a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.polling import HANG_S
from tests.real_servers import RedisServer
from tests.storage_records import (
    NOW_MS,
    PREFIX,
    SHA_A,
    SHA_B,
    TENANT,
    changes,
    creations,
    ident,
    notices,
    progress,
    status,
    task,
    transition,
)

from muster.api.v1 import storage_pb2 as pb
from muster.api.v1 import task_pb2
from muster.domain.errors import StaleTerm
from muster_storage.blobs import BlobFiles
from muster_storage.memory_store import MemoryStore
from muster_storage.records import (
    APPLIED,
    MISSING,
    Drop,
    LogRef,
    Removal,
    TaskFilter,
    Value,
    VerdictCode,
)
from muster_storage.redis_store import RedisStore
from muster_storage.sweep import KEPT_AT_LEAST_MS, Sweeper, Swept
from muster_storage.task_store import Store

EVENTS_KEPT = 1_000
ANY = TaskFilter()
SUCCEEDED = task_pb2.Outcome(kind=task_pb2.OUTCOME_KIND_SUCCEEDED, output_json=b"1")


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


async def connected(store: RedisStore) -> None:
    async with asyncio.timeout(HANG_S):
        while store.why_not_ready():  # noqa: ASYNC110  what is waited for is another process
            await asyncio.sleep(0.005)


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryStore(EVENTS_KEPT)
        return
    server: RedisServer = request.getfixturevalue("shared_redis")
    found = RedisStore(server.url, events_kept=EVENTS_KEPT, timeout_s=50.0)
    running = asyncio.create_task(found.run())
    try:
        await connected(found)
        await found._link.call("FLUSHALL")
        yield found
    finally:
        running.cancel()
        await asyncio.wait([running])


async def new_term(store: Store) -> int:
    term, _ = await store.cluster.acquire_term("7:1:", b"")
    return term


async def stored(store: Store, index: int) -> task_pb2.Task:
    row = (await store.tasks.get(TENANT, [ident(index)], 10**6))[0]
    assert row is not None
    return task_pb2.Task(
        spec=task_pb2.TaskSpec.FromString(row.spec),
        status=task_pb2.TaskStatus.FromString(row.status),
        outcome=task_pb2.Outcome.FromString(row.outcome),
        progress=task_pb2.TaskProgress.FromString(row.progress),
    )


async def listed(store: Store, wanted: TaskFilter = ANY, **kwargs: Any) -> list[int]:
    """Indexes of all tasks that match, over pages of 3."""
    kwargs.setdefault("newest_first", False)
    found, cursor = [], ""
    while True:
        page = await store.tasks.page(TENANT, wanted, cursor, 3, **kwargs)
        assert len(page.rows) <= 3
        found += [task_pb2.TaskSpec.FromString(row.spec).id for row in page.rows]
        cursor = page.next
        if not cursor:
            return [[ident(n) for n in range(100)].index(i) for i in found]


async def events_of(store: Store, after: int = 0) -> list[pb.Event]:
    return [pb.Event.FromString(e.event) for e in await store.events.after(after, 100_000)]


async def finish(
    store: Store, term: int, index: int, outcome: task_pb2.Outcome = SUCCEEDED
) -> None:
    verdicts = await store.tasks.apply(
        term, changes([transition(index, (1, 0), status(4), outcome=outcome)], term)
    )
    assert verdicts == [APPLIED]


# --- create ---------------------------------------------------------------------------------


async def test_a_new_task_is_stored_whole_and_announced(store: Store) -> None:
    wanted = task(1, labels={"zone": "a", "x": "y=z"}, input_json=b'{"n":1}')
    created = await store.tasks.create(0, creations([wanted]))
    assert created.standing == [b""]
    assert await stored(store, 1) == task_pb2.Task(
        spec=wanted.spec,
        status=wanted.status,
        outcome=task_pb2.Outcome(),
        progress=task_pb2.TaskProgress(),
    )
    (event,) = await events_of(store)
    assert (event.kind, event.task_id, event.state, event.term, event.skill, event.at_ms) == (
        *(pb.EVENT_KIND_TASK_CREATED, ident(1), task_pb2.TASK_STATE_PENDING, 0, "echo", NOW_MS),
    )


async def test_an_id_that_exists_stands(store: Store) -> None:
    await store.tasks.create(0, creations([task(1)]))
    again = await store.tasks.create(0, creations([task(1, skill="other"), task(2)]))
    assert again.standing == [status().SerializeToString(), b""]
    assert (await stored(store, 1)).spec.skill == "echo"
    assert await listed(store, TaskFilter(skill="other")) == []
    assert len(await events_of(store)) == 2


async def test_an_id_twice_in_one_call_is_created_once(store: Store) -> None:
    created = await store.tasks.create(0, creations([task(1), task(1)]))
    assert created.standing == [b"", status().SerializeToString()]
    assert await store.events.last() == 1


async def test_the_clock_of_creation_is_stamped_when_it_is_missing(store: Store) -> None:
    term = await new_term(store)
    for clock_ms, advance_ms in ((300, 300), (10_300, 10_000)):
        await store.cluster.confirm_term(term, advance_ms)
        created = await store.tasks.create(
            0, creations([task(clock_ms, clock_ms=0), task(clock_ms + 1)])
        )
        assert created.clock_ms == clock_ms
        assert (await stored(store, clock_ms)).status.created_clock_ms == clock_ms
        assert (await stored(store, clock_ms + 1)).status.created_clock_ms == 7


async def test_an_assigned_task_is_created_under_the_term(store: Store) -> None:
    term = await new_term(store)
    new = task(1, state=2, attempt=1, agent="agent-1")
    await store.tasks.create(term, creations([new], term))
    assert await listed(store, TaskFilter(state=2, agent="agent-1")) == [1]
    assert (await events_of(store))[-1].term == term


async def test_the_devices_of_an_attempt_are_kept_with_it(store: Store) -> None:
    term = await new_term(store)
    new = task(1, state=2, attempt=1, agent="agent-1")
    new.status.devices.add(resource="gpu", indices=[0, 3])
    new.status.devices.add(resource="gpu.a100", indices=[15])
    await store.tasks.create(term, creations([new], term))
    runs = task_pb2.TaskStatus()
    runs.CopyFrom(new.status)
    runs.state = task_pb2.TASK_STATE_RUNNING
    assert (await stored(store, 1)).status == new.status
    change = transition(1, (2, 1), runs)
    assert await store.tasks.apply(term, changes([change], term)) == [APPLIED]
    assert (await stored(store, 1)).status == runs
    page = await store.tasks.page(TENANT, TaskFilter(state=3), "", 9, newest_first=False)
    assert [task_pb2.TaskStatus.FromString(row.status) for row in page.rows] == [runs]
    for expect, after in (((3, 1), status(1, 1)), ((1, 1), status(2, 2, "agent-2"))):
        await store.tasks.apply(term, changes([transition(1, expect, after)], term))
        assert not (await stored(store, 1)).status.devices


@pytest.mark.parametrize("offset", [-1, 1])
async def test_a_creation_under_another_term_changes_nothing(store: Store, offset: int) -> None:
    await new_term(store)
    term = await new_term(store)
    before = await store.events.last()
    with pytest.raises(StaleTerm) as caught:
        await store.tasks.create(term + offset, creations([task(1)], term + offset))
    assert (caught.value.given, caught.value.current) == (term + offset, term)
    assert await store.tasks.get(TENANT, [ident(1)], 1) == [None]
    assert await store.events.last() == before


async def test_ten_thousand_tasks_in_one_call(store: Store) -> None:
    new = [task(n, labels={"n": str(n % 7)}) for n in range(10_000)]
    created = await store.tasks.create(0, creations(new))
    assert created.standing == [b""] * 10_000
    assert (await store.tasks.count(TENANT))[1] == 10_000
    rows = await store.tasks.get(TENANT, [ident(n) for n in range(10_000)], 10**9)
    assert [row is not None for row in rows] == [True] * 10_000
    assert await store.events.last() == 10_000


# --- apply ----------------------------------------------------------------------------------


async def test_a_task_goes_through_its_life(store: Store) -> None:
    term = await new_term(store)
    await store.tasks.create(0, creations([task(1)]))
    steps = [
        ((1, 0), status(2, 1, "agent-1")),
        ((2, 1), status(3, 1, "agent-1")),
        ((3, 1), status(1, 1)),
        ((1, 1), status(2, 2, "agent-2")),
        ((2, 2), status(4, 2, "agent-2")),
    ]
    for expect, after in steps:
        outcome = SUCCEEDED if after.state == 4 else None
        change = transition(1, expect, after, outcome=outcome)
        assert await store.tasks.apply(term, changes([change], term)) == [APPLIED]
        assert (await stored(store, 1)).status == after
        for state in range(1, 9):
            assert await listed(store, TaskFilter(state=state)) == [1] * (state == after.state)
        for agent in ("agent-1", "agent-2"):
            assert await listed(store, TaskFilter(agent=agent)) == [1] * (agent == after.agent)
    assert (await stored(store, 1)).outcome == SUCCEEDED
    assert [(e.state, e.attempt) for e in (await events_of(store))[2:]] == [
        (after.state, after.attempt) for _, after in steps
    ]


async def test_several_changes_of_one_task_in_one_call(store: Store) -> None:
    term = await new_term(store)
    await store.tasks.create(0, creations([task(1)]))
    chain = [
        transition(1, (1, 0), status(2, 1, "agent-1")),
        transition(1, (2, 1), status(1, 1)),
        transition(1, (2, 1), status(3, 1, "agent-1")),
        transition(1, (1, 1), status(2, 2, "agent-1")),
    ]
    verdicts = await store.tasks.apply(term, changes(chain, term))
    assert [v.code for v in verdicts] == [
        *(VerdictCode.OK, VerdictCode.OK, VerdictCode.STALE, VerdictCode.OK),
    ]
    assert await listed(store, TaskFilter(state=2, agent="agent-1")) == [1]
    assert await listed(store, TaskFilter(state=1)) == []
    assert await listed(store, TaskFilter(state=3)) == []


@pytest.mark.parametrize("expect", [(1, 1), (2, 0), (2, 2), (3, 1)])
async def test_a_stale_change_is_answered_with_what_stands(
    store: Store, expect: tuple[int, int]
) -> None:
    term = await new_term(store)
    standing = status(2, 1, "agent-1")
    await store.tasks.create(term, creations([task(1, state=2, attempt=1, agent="agent-1")], term))
    before = await stored(store, 1), await store.events.last()
    change = transition(1, expect, status(4, max(1, expect[1])), outcome=SUCCEEDED)
    (verdict,) = await store.tasks.apply(term, changes([change], term))
    assert verdict.code is VerdictCode.STALE
    assert task_pb2.TaskStatus.FromString(verdict.standing) == standing
    assert (await stored(store, 1), await store.events.last()) == before


async def test_each_change_has_its_own_verdict(store: Store) -> None:
    term = await new_term(store)
    await store.tasks.create(0, creations([task(1), task(2)]))
    verdicts = await store.tasks.apply(
        term,
        changes(
            [
                transition(1, (2, 1), status(4, 1)),
                transition(9, (1, 0), status(2, 1, "a")),
                transition(2, (1, 0), status(2, 1, "a")),
            ],
            term,
        ),
    )
    assert [v.code for v in verdicts] == [VerdictCode.STALE, VerdictCode.NOT_FOUND, VerdictCode.OK]
    assert verdicts[1] == MISSING
    assert await listed(store, TaskFilter(agent="a")) == [2]


async def test_a_repeated_change_is_done_once(store: Store) -> None:
    term = await new_term(store)
    await store.tasks.create(0, creations([task(1)]))
    await finish(store, term, 1)
    last = await store.events.last()
    await finish(store, term, 1)
    assert await store.events.last() == last


@pytest.mark.parametrize("offset", [-1, 1])
async def test_a_change_under_another_term_changes_nothing(store: Store, offset: int) -> None:
    await new_term(store)
    term = await new_term(store)
    await store.tasks.create(0, creations([task(1)]))
    before = await stored(store, 1), await store.events.last()
    with pytest.raises(StaleTerm) as caught:
        await store.tasks.apply(
            term + offset, changes([transition(1, (1, 0), status(2, 1, "a"))], term + offset)
        )
    assert (caught.value.given, caught.value.current) == (term + offset, term)
    assert (await stored(store, 1), await store.events.last()) == before


async def test_an_outcome_is_kept_until_the_next_one(store: Store) -> None:
    term = await new_term(store)
    failed = task_pb2.Outcome(kind=task_pb2.OUTCOME_KIND_FAILED, error="no")
    await store.tasks.create(0, creations([task(1)]))
    steps = [
        transition(1, (1, 0), status(2, 1, "a")),
        transition(1, (2, 1), status(1, 1), outcome=failed),
        transition(1, (1, 1), status(2, 2, "a")),
    ]
    await store.tasks.apply(term, changes(steps, term))
    assert (await stored(store, 1)).outcome == failed


# --- progress -------------------------------------------------------------------------------


async def test_progress_of_the_attempt_under_way_is_kept_and_announced(store: Store) -> None:
    term = await new_term(store)
    await store.tasks.create(term, creations([task(1, state=2, attempt=1, agent="a")], term))
    last = await store.events.last()
    partial = pb.Event(
        kind=pb.EVENT_KIND_TASK_PROGRESS,
        tenant=TENANT,
        task_id=ident(1),
        attempt=1,
        # As agents send it: unknown.
        fraction=-1,
        partial_json=b'"x"',
    )
    assert await store.tasks.publish(0, notices([progress(1, 1, 0.5), partial])) == 2
    assert (await stored(store, 1)).progress == task_pb2.TaskProgress(fraction=0.5, at_ms=NOW_MS)
    assert [(e.fraction, e.partial_json) for e in await events_of(store, last)] == [
        (0.5, b""),
        (-1.0, b'"x"'),
    ]


async def test_progress_of_anything_else_is_dropped(store: Store) -> None:
    term = await new_term(store)
    await store.tasks.create(term, creations([task(1, state=2, attempt=2, agent="a")], term))
    await store.tasks.create(0, creations([task(2)]))
    last = await store.events.last()
    late = [progress(1, 1, 0.5), progress(1, 3, 0.5), progress(2, 0, 0.5), progress(9, 1, 0.5)]
    assert await store.tasks.publish(0, notices(late)) == 0
    assert (await stored(store, 1)).progress == task_pb2.TaskProgress()
    assert await store.events.last() == last
    with pytest.raises(StaleTerm):
        await store.tasks.publish(99, notices([progress(1, 2, 0.5, term=99)]))
    assert await store.events.last() == last


async def test_a_new_attempt_starts_without_progress(store: Store) -> None:
    term = await new_term(store)
    await store.tasks.create(term, creations([task(1, state=2, attempt=1, agent="a")], term))
    await store.tasks.publish(0, notices([progress(1, 1, 0.5)]))
    steps = [transition(1, (2, 1), status(1, 1)), transition(1, (1, 1), status(2, 2, "a"))]
    await store.tasks.apply(term, changes(steps[:1], term))
    assert (await stored(store, 1)).progress.fraction == 0.5
    await store.tasks.apply(term, changes(steps[1:], term))
    assert (await stored(store, 1)).progress == task_pb2.TaskProgress()


# --- reads ----------------------------------------------------------------------------------


async def test_rows_come_in_the_order_asked(store: Store) -> None:
    await store.tasks.create(0, creations([task(n) for n in range(5)]))
    rows = await store.tasks.get(TENANT, [ident(n) for n in (3, 99, 0)], 10**6)
    assert [row and task_pb2.TaskSpec.FromString(row.spec).id for row in rows] == [
        *(ident(3), None, ident(0)),
    ]
    assert await store.tasks.get("other", [ident(0)], 10**6) == [None]


async def test_a_read_ends_after_the_row_that_reaches_its_bound(store: Store) -> None:
    await store.tasks.create(0, creations([task(n, input_json=b"1" * 1000) for n in range(5)]))
    rows = await store.tasks.get(TENANT, [ident(n) for n in range(5)], 2_500)
    assert len(rows) == 3


async def test_lists_by_every_filter_in_both_directions(store: Store) -> None:
    term = await new_term(store)
    new = [
        task(n, skill=("echo", "sleep")[n % 2], labels={"zone": "abc"[n % 3], "all": "1"})
        for n in range(20)
    ]
    await store.tasks.create(0, creations(new))
    await store.tasks.create(0, creations([task(50, tenant="other")]))
    await store.tasks.apply(
        term, changes([transition(n, (1, 0), status(2, 1, "a")) for n in range(0, 20, 4)], term)
    )
    cases: list[tuple[TaskFilter, list[int]]] = [
        (TaskFilter(), list(range(20))),
        (TaskFilter(state=2), list(range(0, 20, 4))),
        (TaskFilter(skill="sleep"), list(range(1, 20, 2))),
        (TaskFilter(agent="a"), list(range(0, 20, 4))),
        (TaskFilter(labels=("zone=a",)), list(range(0, 20, 3))),
        (TaskFilter(labels=("all=1", "zone=b")), list(range(1, 20, 3))),
        (TaskFilter(state=1, skill="echo", labels=("zone=a",)), [6, 18]),
        (TaskFilter(skill="sleep", agent="a"), []),
        (TaskFilter(labels=("zone=z",)), []),
    ]
    for wanted, expected in cases:
        assert await listed(store, wanted) == expected, wanted
        assert await listed(store, wanted, newest_first=True) == expected[::-1], wanted


async def test_a_page_says_when_it_is_the_last(store: Store) -> None:
    await store.tasks.create(0, creations([task(n) for n in range(4)]))
    first = await store.tasks.page(TENANT, TaskFilter(), "", 2, newest_first=True)
    assert first.next == ident(2)
    second = await store.tasks.page(TENANT, TaskFilter(), first.next, 2, newest_first=True)
    assert (len(second.rows), second.next) == (2, "")


async def test_a_page_is_bounded_in_bytes(store: Store) -> None:
    large = b"1" * (3 * 1024 * 1024)
    for n in range(5):
        await store.tasks.create(0, creations([task(n, input_json=large)]))
    page = await store.tasks.page(TENANT, TaskFilter(), "", 100, newest_first=False)
    assert (len(page.rows), page.next) == (3, ident(2))
    assert await listed(store) == [0, 1, 2, 3, 4]


async def test_rare_matches_are_found_among_many_tasks(store: Store) -> None:
    await store.tasks.create(
        0,
        creations(
            task(n, labels={"a": "1"} if n >= 3_500 else {"b": "1"} if n < 3_400 else {})
            for n in range(7_000)
        ),
    )
    term = await new_term(store)
    await store.tasks.apply(
        term, changes([transition(n, (1, 0), status(2, 1, "x")) for n in (5, 90, 6_999)], term)
    )
    wanted = TaskFilter(state=1, labels=("a=1",))
    found, cursor, pages = 0, "", 0
    while True:
        page = await store.tasks.page(TENANT, wanted, cursor, 1_000, newest_first=False)
        found, cursor, pages = found + len(page.rows), page.next, pages + 1
        if not cursor:
            break
    assert (found, pages) == (3_499, 4)
    assert await listed(store, TaskFilter(state=2, labels=("b=1",))) == [5, 90]


async def test_counts_by_state_of_one_and_of_all_tenants(store: Store) -> None:
    term = await new_term(store)
    await store.tasks.create(0, creations([task(1), task(2), task(3, tenant="other")]))
    await finish(store, term, 1)
    one, every = await store.tasks.count(TENANT), await store.tasks.count("")
    assert one == {1: 1, 2: 0, 3: 0, 4: 1, 5: 0, 6: 0, 7: 0, 8: 0}
    assert every == {**one, 1: 2}
    assert await store.tasks.tenants() == [TENANT, "other"]


# --- events ---------------------------------------------------------------------------------


async def test_events_are_numbered_without_holes(store: Store) -> None:
    assert await store.events.last() == 0
    await store.tasks.create(0, creations([task(n) for n in range(5)]))
    await new_term(store)
    entries = await store.events.after(2, 3)
    assert [entry.seq for entry in entries] == [3, 4, 5]
    assert [entry.head for entry in entries] == [b"1:0:default"] * 3
    assert await store.events.last() == 6
    assert await store.events.after(6, 10) == []


async def test_a_wait_ends_with_the_next_event_or_without_one(store: Store) -> None:
    assert await store.events.wait_beyond(0, 0.02) == 0
    waiting = asyncio.create_task(store.events.wait_beyond(0, 30.0))
    await asyncio.sleep(0)
    await store.tasks.create(0, creations([task(1)]))
    assert await waiting == 1
    assert await store.events.wait_beyond(0, 30.0) == 1


async def test_old_events_are_trimmed(store: Store) -> None:
    for n in range(0, 3_000, 500):
        await store.tasks.create(0, creations([task(n + i) for i in range(500)]))
    kept = [entry.seq for entry in await store.events.after(0, 10_000)]
    # Redis trims whole nodes of its stream, so a few more than asked may stay.
    assert EVENTS_KEPT <= len(kept) < 2 * EVENTS_KEPT
    assert kept == list(range(3_001 - len(kept), 3_001))


# --- requests -------------------------------------------------------------------------------


async def test_a_request_is_fixed_by_who_comes_first(store: Store) -> None:
    first = await store.tasks.reserve(TENANT, "key:1", b"h" * 32, 5)
    again = await store.tasks.reserve(TENANT, "key:1", b"h" * 32, 6)
    other_body = await store.tasks.reserve(TENANT, "key:1", b"g" * 32, 7)
    other_tenant = await store.tasks.reserve("other", "key:1", b"g" * 32, 8)
    assert first == (5, True, False, False)
    assert again == (5, False, False, False)
    assert other_body == (5, False, True, False)
    assert other_tenant == (8, True, False, False)


async def test_a_request_whose_tasks_were_removed_says_so(store: Store) -> None:
    """Else its repetition would make anew, and run again, what has run."""
    term = await new_term(store)
    await store.tasks.reserve(TENANT, "tests", b"h" * 32, NOW_MS)
    await store.tasks.reserve(TENANT, "other", b"h" * 32, NOW_MS)
    await store.tasks.create(0, creations([task(1), task(2)]))
    await finish(store, term, 1)
    assert await store.tasks.remove([Removal(TENANT, ident(1), "echo", ())]) == 1
    again = await store.tasks.reserve(TENANT, "tests", b"h" * 32, NOW_MS + 9)
    assert again == (NOW_MS, False, False, True)
    other_body = await store.tasks.reserve(TENANT, "tests", b"g" * 32, NOW_MS + 9)
    assert other_body == (NOW_MS, False, True, False)
    other = await store.tasks.reserve(TENANT, "other", b"h" * 32, NOW_MS + 9)
    assert other == (NOW_MS, False, False, False)


# --- the cluster's own records --------------------------------------------------------------


async def test_terms_grow_and_announce_themselves(store: Store) -> None:
    for expected in (1, 2, 3):
        assert await store.cluster.acquire_term("7:1:", pb.Event(note="n").SerializeToString()) == (
            expected,
            0,
        )
    assert await store.cluster.term() == 3
    assert [(e.term, e.note) for e in await events_of(store)] == [(1, "n"), (2, "n"), (3, "n")]


async def test_only_the_present_term_moves_the_clock(store: Store) -> None:
    assert await store.cluster.confirm_term(1, 10) == (False, 0)
    old = await new_term(store)
    assert await store.cluster.confirm_term(old, 10) == (True, 10)
    term = await new_term(store)
    assert await store.cluster.confirm_term(old, 10) == (False, 10)
    assert await store.cluster.confirm_term(term + 1, 10) == (False, 10)
    assert await store.cluster.confirm_term(term, 5) == (True, 15)
    assert await store.cluster.clock_ms() == 15


async def test_incarnations_grow_per_agent(store: Store) -> None:
    found = [await store.cluster.next_incarnation(agent) for agent in ("a", "a", "b", "a")]
    assert found == [1, 2, 1, 3]


async def test_the_policy_is_compared_and_set(store: Store) -> None:
    assert await store.cluster.policy() == (b"", "0")
    assert await store.cluster.put_policy(b"1", "0", "5:0:", b"") == (True, "1")
    assert await store.cluster.put_policy(b"2", "0", "5:0:", b"") == (False, "1")
    assert await store.cluster.policy() == (b"1", "1")
    assert await store.cluster.put_policy(b"3", "", "5:0:", b"") == (True, "2")
    assert await store.events.last() == 2


async def test_wishes_of_operators(store: Store) -> None:
    for agent, wish in (("a", 2), ("b", 3), ("a", 3), ("b", 1), ("c", 1)):
        await store.cluster.set_wish(agent, wish, "who:me", "6:0:", b"")
    assert await store.cluster.wishes() == {"a": 3}
    assert [e.head for e in await store.events.after(0, 9)] == [b"6:0:"] * 5


async def test_api_keys(store: Store) -> None:
    assert await store.cluster.api_key("k1") is None
    assert await store.cluster.create_api_key("k1", b"one")
    assert not await store.cluster.create_api_key("k1", b"two")
    assert await store.cluster.create_api_key("k2", b"two")
    await store.cluster.revoke_api_key("k1", 5)
    await store.cluster.revoke_api_key("k1", 6)
    await store.cluster.touch_api_keys({"k1": 9, "k2": 3, "unknown": 1})
    await store.cluster.touch_api_keys({"k1": 8, "k2": 4})
    await store.cluster.touch_api_keys({})
    assert await store.cluster.api_keys() == [(b"one", 5, 9), (b"two", 0, 4)]
    assert await store.cluster.api_key("k1") == (b"one", 5, 9)


# --- values ---------------------------------------------------------------------------------


async def put(store: Store, key: str, value: bytes, *, match: str = "", none: bool = False) -> Any:
    return await store.values.put_value(
        TENANT, key, Value(value, "text/plain", ""), if_match=match, if_none_match=none
    )


async def test_values_are_compared_and_set(store: Store) -> None:
    assert await store.values.value(TENANT, "k") is None
    assert (await put(store, "k", b"0", match="*"))[:2] == (False, "")
    assert (await put(store, "k", b"0", match="1"))[:2] == (False, "")
    first = await put(store, "k", b"1", none=True)
    assert (first.written, first.created) == (True, True)
    assert await put(store, "k", b"2", none=True) == (False, first.etag, False)
    assert await put(store, "k", b"2", match="nonsense") == (False, first.etag, False)
    second = await put(store, "k", b"2", match=first.etag)
    assert (second.written, second.created) == (True, False)
    assert second.etag != first.etag
    third = await put(store, "k", b"\x00\xff", match="*")
    assert await store.values.value(TENANT, "k") == (b"\x00\xff", "text/plain", third.etag)
    assert await store.values.value("other", "k") is None


async def test_a_deleted_value_comes_back_with_a_new_etag(store: Store) -> None:
    first = await put(store, "k", b"1")
    assert await store.values.delete_value(TENANT, "k", "nonsense") == (False, first.etag)
    assert await store.values.delete_value(TENANT, "k", first.etag) == (True, first.etag)
    assert await store.values.delete_value(TENANT, "k", "") == (False, "")
    assert await store.values.value_keys(TENANT, "", "", 10) == ([], "")
    assert (await put(store, "k", b"1")).etag != first.etag


async def test_keys_are_listed_by_prefix(store: Store) -> None:
    keys = ["a", "a/1", "a/2", "a/é", "a/😀", "b", "é"]
    for key in keys[::-1]:
        await put(store, key, b"")
    assert await store.values.value_keys(TENANT, "", "", 100) == (keys, "")
    assert await store.values.value_keys(TENANT, "a/", "", 2) == (["a/1", "a/2"], "a/2")
    assert await store.values.value_keys(TENANT, "a/", "a/2", 2) == (["a/é", "a/😀"], "")
    assert await store.values.value_keys(TENANT, "b", "a/2", 2) == (["b"], "")
    assert await store.values.value_keys("other", "", "", 2) == ([], "")


# --- blobs, logs and the sweep --------------------------------------------------------------


async def doomed(store: Store, clock_ms: int = 10**12) -> list[tuple[str, str]]:
    return sorted(await store.blobs.doom_blobs(clock_ms, 0, 100))


def with_blob(sha256: str) -> task_pb2.Outcome:
    return task_pb2.Outcome(kind=task_pb2.OUTCOME_KIND_SUCCEEDED, output_blob=sha256)


def log_ref(index: int, attempt: int, sha256: str, rank: int = 0) -> LogRef:
    record = f"{attempt}{sha256[:1]}".encode()
    return LogRef(TENANT, ident(index), attempt, sha256, record, rank)


async def test_a_blob_that_nobody_refers_to_is_doomed_once_idle_for_long(store: Store) -> None:
    term = await new_term(store)
    await store.cluster.confirm_term(term, 100)
    assert await store.blobs.claim_blob(TENANT, SHA_A, 1, pinned=False)
    assert await store.blobs.claim_blob(TENANT, SHA_B, 1, pinned=True)
    assert await doomed(store, 100) == []
    assert await doomed(store, 101) == [(TENANT, SHA_A)]
    assert await doomed(store) == []
    # Until it is buried nobody puts a file of that name in place.
    assert not await store.blobs.claim_blob(TENANT, SHA_A, 1, pinned=False)
    await store.blobs.buried([(TENANT, SHA_A)])
    assert await store.blobs.claim_blob(TENANT, SHA_A, 1, pinned=False)


async def test_the_dead_of_another_sweep_are_taken_over(store: Store) -> None:
    await store.blobs.claim_blob(TENANT, SHA_A, 1, pinned=False)
    assert await doomed(store) == [(TENANT, SHA_A)]
    assert await store.blobs.doom_blobs(0, 0, 10) == []
    assert await store.blobs.doom_blobs(0, 1, 10) == [(TENANT, SHA_A)]


async def test_a_result_holds_its_blob_until_the_task_goes(store: Store) -> None:
    term = await new_term(store)
    await store.tasks.create(0, creations([task(1), task(2)]))
    await store.blobs.claim_blob(TENANT, SHA_A, 1, pinned=False)
    await finish(store, term, 1, with_blob(SHA_A))
    await finish(store, term, 2, with_blob(SHA_A))
    assert await doomed(store) == []
    assert await store.blobs.drop_blob(TENANT, SHA_A) is Drop.HELD
    assert await store.tasks.remove([Removal(TENANT, ident(1), "echo", ())]) == 1
    assert await doomed(store) == []
    assert await store.tasks.remove([Removal(TENANT, ident(2), "echo", ())]) == 1
    assert await doomed(store) == [(TENANT, SHA_A)]


async def test_a_later_outcome_lets_go_of_the_blob_of_an_earlier_one(store: Store) -> None:
    term = await new_term(store)
    await store.tasks.create(0, creations([task(1)]))
    for sha256 in (SHA_A, SHA_B):
        await store.blobs.claim_blob(TENANT, sha256, 1, pinned=False)
    steps = [
        transition(1, (1, 0), status(2, 1, "a")),
        transition(1, (2, 1), status(1, 1), outcome=with_blob(SHA_A)),
        transition(1, (1, 1), status(2, 2, "a")),
    ]
    await store.tasks.apply(term, changes(steps, term))
    await store.tasks.apply(
        term, changes([transition(1, (2, 2), status(4, 2), outcome=with_blob(SHA_B))], term)
    )
    assert await doomed(store) == [(TENANT, SHA_A)]


async def test_a_pinned_blob_stays_until_it_is_dropped(store: Store) -> None:
    assert await store.blobs.drop_blob(TENANT, SHA_A) is Drop.UNKNOWN
    await store.blobs.claim_blob(TENANT, SHA_A, 1, pinned=True)
    await store.blobs.claim_blob(TENANT, SHA_A, 1, pinned=False)
    assert await doomed(store) == []
    assert await store.blobs.drop_blob(TENANT, SHA_A) is Drop.DOOMED
    assert await store.blobs.drop_blob(TENANT, SHA_A) is Drop.UNKNOWN


async def test_logs_of_attempts_hold_their_blobs(store: Store) -> None:
    await store.tasks.create(0, creations([task(1)]))
    for sha256 in (SHA_A, SHA_B):
        await store.blobs.claim_blob(TENANT, sha256, 1, pinned=False)
    refs = [log_ref(1, 10, SHA_A), log_ref(1, 2, SHA_A), log_ref(9, 1, SHA_B)]
    assert await store.blobs.set_logs(refs) == 2
    assert await store.blobs.set_logs([]) == 0
    assert await store.blobs.logs(TENANT, ident(1)) == [b"2a", b"10a"]
    assert await store.blobs.logs(TENANT, ident(9)) == []
    assert await doomed(store) == [(TENANT, SHA_B)]
    await store.blobs.buried([(TENANT, SHA_B)])
    await store.blobs.claim_blob(TENANT, SHA_B, 1, pinned=False)
    assert await store.blobs.set_logs([log_ref(1, 10, SHA_B)]) == 1
    assert await doomed(store) == []
    assert await store.blobs.set_logs([log_ref(1, 2, SHA_B)]) == 1
    assert await doomed(store) == [(TENANT, SHA_A)]


async def test_a_log_that_knows_less_replaces_none_that_knows_more(store: Store) -> None:
    await store.tasks.create(0, creations([task(1)]))
    for sha256 in (SHA_A, SHA_B):
        await store.blobs.claim_blob(TENANT, sha256, 1, pinned=False)
    assert await store.blobs.set_logs([log_ref(1, 1, SHA_A, rank=21)]) == 1
    assert await store.blobs.set_logs([log_ref(1, 1, SHA_B, rank=20)]) == 0
    assert await store.blobs.logs(TENANT, ident(1)) == [b"1a"]
    # Another attempt is another log.
    assert await store.blobs.set_logs([log_ref(1, 2, SHA_B, rank=2)]) == 1
    assert await store.blobs.set_logs([log_ref(1, 1, SHA_B, rank=21)]) == 1
    assert await store.blobs.logs(TENANT, ident(1)) == [b"1b", b"2b"]
    assert await doomed(store) == [(TENANT, SHA_A)]


@pytest.fixture
def sweeper(store: Store, tmp_path: Path) -> Sweeper:
    return Sweeper(
        store,
        BlobFiles(tmp_path, store.blobs),
        retention_ms=1_000,
        retain_tasks=1_000,
        request_retention_ms=2_000,
        grace_ms=500,
    )


async def test_the_sweep_removes_all_of_an_old_ended_task(store: Store, sweeper: Sweeper) -> None:
    term = await new_term(store)
    new = [task(n, labels={"zone": "a"}) for n in range(250)]
    await store.tasks.create(0, creations(new))
    await store.blobs.claim_blob(TENANT, SHA_A, 1, pinned=False)
    await store.blobs.set_logs([log_ref(1, 1, SHA_A)])
    ends = [transition(n, (1, 0), status(4, 0, "a"), outcome=SUCCEEDED) for n in range(248)]
    await store.tasks.apply(term, changes(ends, term))
    await store.cluster.confirm_term(term, 1_000)
    assert await sweeper.sweep() == Swept(0, 0, 0)
    await store.cluster.confirm_term(term, 1)
    assert await sweeper.sweep() == Swept(248, 0, 0)
    filters = (TaskFilter(), TaskFilter(skill="echo"), TaskFilter(labels=("zone=a",)))
    for wanted in filters:
        page = await store.tasks.page(TENANT, wanted, "", 500, newest_first=False)
        assert [task_pb2.TaskSpec.FromString(row.spec).id for row in page.rows] == [
            *(ident(248), ident(249)),
        ]
    assert await listed(store, TaskFilter(agent="a")) == []
    assert await store.blobs.logs(TENANT, ident(1)) == []
    await store.cluster.confirm_term(term, 501)
    assert await sweeper.sweep() == Swept(0, 0, 1)
    assert (await store.tasks.count(TENANT))[4] == 0


async def test_surplus_is_what_ended_first_of_all_tenants(store: Store) -> None:
    term = await new_term(store)
    await store.tasks.create(0, creations([task(n) for n in range(6)]))
    assert await store.tasks.surplus(0, 1_000_000, 100) == []
    for n in (3, 1, 4, 0):
        await finish(store, term, n)
        await store.cluster.confirm_term(term, 10)

    async def surplus(kept: int, clock_ms: int = 1_000_000, limit: int = 100) -> list[str]:
        return [task.id for task in await store.tasks.surplus(kept, clock_ms, limit)]

    assert await surplus(4) == []
    assert await surplus(3) == [ident(3)]
    assert await surplus(0) == [ident(3), ident(1), ident(4), ident(0)]
    assert await surplus(1, limit=2) == [ident(3), ident(1)]
    # The second ended 10 ms after the first.
    assert await surplus(0, clock_ms=10) == [ident(3)]
    (found,) = await store.tasks.surplus(3, 1_000_000, 100)
    assert task_pb2.TaskSpec.FromString(found.spec).skill == "echo"


async def test_of_many_ended_tasks_the_oldest_go_when_they_have_settled(
    store: Store, tmp_path: Path
) -> None:
    sweeper = Sweeper(
        store,
        BlobFiles(tmp_path, store.blobs),
        retention_ms=10 * KEPT_AT_LEAST_MS,
        retain_tasks=100,
        request_retention_ms=10 * KEPT_AT_LEAST_MS,
        grace_ms=500,
    )
    term = await new_term(store)
    await store.tasks.create(0, creations([task(n) for n in range(351)]))
    for first, last in ((0, 150), (150, 350)):
        ends = [
            transition(n, (1, 0), status(4, 0, "a"), outcome=SUCCEEDED) for n in range(first, last)
        ]
        await store.tasks.apply(term, changes(ends, term))
        await store.cluster.confirm_term(term, 1_000)
    await store.cluster.confirm_term(term, KEPT_AT_LEAST_MS - 2_000)
    assert await sweeper.sweep() == Swept(0, 0, 0)
    await store.cluster.confirm_term(term, 1)
    assert await sweeper.sweep() == Swept(150, 0, 0)
    await store.cluster.confirm_term(term, 1_000)
    assert await sweeper.sweep() == Swept(100, 0, 0)
    assert await sweeper.sweep() == Swept(0, 0, 0)
    left = await store.tasks.page(TENANT, ANY, "", 500, newest_first=False)
    assert [task_pb2.TaskSpec.FromString(row.spec).id for row in left.rows] == [
        ident(n) for n in range(250, 351)
    ]


async def test_an_open_task_is_never_removed(store: Store) -> None:
    await store.tasks.create(0, creations([task(1)]))
    assert await store.tasks.remove([Removal(TENANT, ident(1), "echo", ())]) == 0
    assert await listed(store) == [1]


async def test_a_request_is_forgotten_after_its_last_task(store: Store, sweeper: Sweeper) -> None:
    term = await new_term(store)
    # The ids of the tests' tasks follow from this key and time.
    await store.tasks.reserve(TENANT, "tests", b"h" * 32, NOW_MS)
    await store.tasks.reserve(TENANT, "empty", b"h" * 32, NOW_MS)
    await store.tasks.create(0, creations([task(1)]))
    assert task(1).spec.id.startswith(PREFIX)
    await store.cluster.confirm_term(term, 2_001)
    assert await sweeper.sweep() == Swept(0, 1, 0)
    again = await store.tasks.reserve(TENANT, "tests", b"h" * 32, NOW_MS + 9)
    assert again == (NOW_MS, False, False, False)
    await finish(store, term, 1)
    for _ in range(400):
        await store.cluster.confirm_term(term, 10_000)
    assert await sweeper.sweep() == Swept(1, 1, 0)
    again = await store.tasks.reserve(TENANT, "tests", b"h" * 32, NOW_MS + 9)
    assert again == (NOW_MS + 9, True, False, False)
