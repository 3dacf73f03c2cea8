"""A scheduler's leader against real storage, Redis and etcd; agents speak by script."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest
from tests.integration.scheduler_cluster import (
    TENANT,
    Cluster,
    FakeAgent,
    Servers,
    cluster_of,
    soon,
    until,
)

from muster.api.v1 import agent_pb2, scheduler_pb2, storage_pb2, task_pb2
from muster.domain.errors import Conflict, InvalidInput, NotFound, NotLeader, StaleTerm
from muster.rpc.clock import boot_s, wall_ms

PENDING, ASSIGNED = task_pb2.TASK_STATE_PENDING, task_pb2.TASK_STATE_ASSIGNED
RUNNING, SUCCEEDED = task_pb2.TASK_STATE_RUNNING, task_pb2.TASK_STATE_SUCCEEDED
FAILED, CANCELLED = task_pb2.TASK_STATE_FAILED, task_pb2.TASK_STATE_CANCELLED
TIMED_OUT = task_pb2.TASK_STATE_TIMED_OUT
RECORDED, STALE = scheduler_pb2.ACK_CODE_RECORDED, scheduler_pb2.ACK_CODE_STALE
_names = map(str, itertools.count())


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    made = Servers(tmp_path_factory.mktemp("leader"), schedulers=1)
    yield made
    made.stop()


@pytest.fixture
async def cluster(servers: Servers) -> AsyncIterator[Cluster]:
    async with cluster_of(servers) as made:
        yield made


@pytest.fixture
def skill() -> str:
    """One that only this test's agents offer: the leader is shared."""
    return f"skill{next(_names)}"


def name_of(skill: str, letter: str = "a") -> str:
    return f"{letter}-{skill}"


async def test_a_task_goes_the_whole_way(cluster: Cluster, skill: str) -> None:
    agent = await cluster.join(name_of(skill), skills=[skill])
    (ident,) = await cluster.submit(skill=skill, input_json=b'{"x": 1}')
    await soon(lambda: (ident, 1) in agent.assigned)
    given = agent.assigned[ident, 1]
    assert (given.spec.input_json, given.incarnation, given.timeout_ms) == (b'{"x": 1}', 1, 0)
    stored = await cluster.task(ident)
    assert (stored.status.state, stored.status.agent) == (ASSIGNED, agent.name)
    agent.start(ident)
    running = await cluster.stored(ident, RUNNING)
    assert running.status.started_at_ms > 0
    assert (await cluster.explain(ident)) == f"attempt 1 runs on agent {agent.name}"
    agent.end(ident)
    await soon(lambda: (ident, 1) in agent.acks)
    assert agent.acks[ident, 1] == RECORDED
    ended = await cluster.task(ident)
    assert (ended.status.state, ended.outcome.output_json) == (SUCCEEDED, b'"done"')
    await soon(lambda: agent.answered > 0)


async def test_a_batch_is_spread_and_all_of_it_ends(cluster: Cluster, skill: str) -> None:
    agents = [await cluster.join(name_of(skill, c), skills=[skill], slots=4) for c in "ab"]
    idents = await cluster.submit(40, skill=skill)
    done = 0

    async def all_ended() -> bool:
        nonlocal done
        for agent in agents:
            for ident, attempt in list(agent.assigned):
                del agent.assigned[ident, attempt]
                agent.end(ident, attempt)
                done += 1
        return sum(len(a.acks) for a in agents) == 40

    await until(all_ended)
    assert done == 40
    assert min(len(a.acks) for a in agents) > 5
    for ident in idents:
        assert (await cluster.task(ident)).status.state == SUCCEEDED


async def test_a_failed_attempt_is_tried_again_elsewhere(cluster: Cluster, skill: str) -> None:
    agents = {
        a.name: a for a in [await cluster.join(name_of(skill, c), skills=[skill]) for c in "ab"]
    }
    (ident,) = await cluster.submit(skill=skill)
    await soon(lambda: any((ident, 1) in a.assigned for a in agents.values()))
    first = next(a for a in agents.values() if (ident, 1) in a.assigned)
    other = next(a for a in agents.values() if a is not first)
    failure = task_pb2.Outcome(
        kind=task_pb2.OUTCOME_KIND_FAILED, error="broken", error_kind="exception"
    )
    first.end(ident, 1, failure)
    await soon(lambda: (ident, 2) in other.assigned)
    other.end(ident, 2)
    ended = await cluster.stored(ident, SUCCEEDED)
    assert (ended.status.failures, list(ended.status.avoid)) == (1, [first.name])


async def test_tasks_that_a_gateway_wrote_are_picked_up(cluster: Cluster, skill: str) -> None:
    agent = await cluster.join(name_of(skill), skills=[skill], slots=64)
    idents = await cluster.create_as_gateway(30, skill=skill)
    await soon(lambda: {(i, 1) for i in idents} <= agent.assigned.keys())


async def test_tasks_with_large_inputs_travel_in_several_messages(
    cluster: Cluster, skill: str
) -> None:
    """30 MiB through leader, storage, a look-up and one session."""
    agent = await cluster.join(name_of(skill), skills=[skill], slots=64)
    large = b'"' + b"x" * 900_000 + b'"'
    idents = []
    for make in (cluster.submit, cluster.create_as_gateway):
        for _ in range(3):
            idents += await make(5, skill=skill, input_json=large)
    await soon(lambda: {(i, 1) for i in idents} <= agent.assigned.keys())
    assert all(agent.assigned[i, 1].spec.input_json == large for i in idents)
    again = await cluster.agent(agent.name)
    await soon(lambda: {(i, 1) for i in idents} <= again.assigned.keys())
    assert max(m.ByteSize() for m in again.messages) < 5 * 1024 * 1024


async def test_submitting_again_gives_the_same_task(cluster: Cluster, skill: str) -> None:
    agent = await cluster.join(name_of(skill), skills=[skill])
    (spec,) = cluster.specs(skill=skill)
    request = scheduler_pb2.SubmitRequest(tasks=[spec, spec])
    states = (await cluster.call("Submit", request)).states
    assert list(states) == [ASSIGNED, ASSIGNED]
    await soon(lambda: (spec.id, 1) in agent.assigned)
    agent.end(spec.id)
    await cluster.stored(spec.id, SUCCEEDED)
    assert list((await cluster.call("Submit", request)).states) == [SUCCEEDED, SUCCEEDED]
    assert len(agent.assigned) == 1


async def test_waiting_and_placed_tasks_are_cancelled_durably(cluster: Cluster, skill: str) -> None:
    await cluster.join(name_of(skill, "other"), skills=["other"])
    (waiting,) = await cluster.submit(skill=skill)
    assert (await cluster.explain(waiting)).endswith(f"offers skill {skill}")
    (result,) = await cluster.cancel(waiting)
    assert (result.code, result.state) == (scheduler_pb2.CANCEL_CODE_ACCEPTED, CANCELLED)
    assert (await cluster.task(waiting)).status.state == CANCELLED

    agent = await cluster.join(name_of(skill), skills=[skill])
    (placed,) = await cluster.submit(skill=skill)
    await soon(lambda: (placed, 1) in agent.assigned)
    (result,) = await cluster.cancel(placed)
    assert (result.code, result.state) == (scheduler_pb2.CANCEL_CODE_ACCEPTED, ASSIGNED)
    assert (await cluster.task(placed)).status.wish == task_pb2.TASK_WISH_CANCEL
    await soon(lambda: (placed, 1, task_pb2.TASK_WISH_CANCEL) in agent.cancels)
    agent.end(placed, 1, task_pb2.Outcome(kind=task_pb2.OUTCOME_KIND_CANCELLED))
    await cluster.stored(placed, CANCELLED)

    results = await cluster.cancel(waiting, placed, cluster.specs()[0].id)
    assert [r.code for r in results] == [
        scheduler_pb2.CANCEL_CODE_ENDED,
        scheduler_pb2.CANCEL_CODE_ENDED,
        scheduler_pb2.CANCEL_CODE_NOT_FOUND,
    ]
    assert results[0].state == CANCELLED


async def test_a_task_can_be_cancelled_right_after_a_gateway_wrote_it(
    cluster: Cluster, skill: str
) -> None:
    (ident,) = await cluster.create_as_gateway(skill=skill)
    (result,) = await cluster.cancel(ident)
    assert result.code == scheduler_pb2.CANCEL_CODE_ACCEPTED
    assert (await cluster.task(ident)).status.state == CANCELLED


async def test_deadlines_end_waiting_and_running_tasks(cluster: Cluster, skill: str) -> None:
    (unstarted,) = await cluster.submit(skill=skill, start_deadline_ms=300)
    ended = await cluster.stored(unstarted, TIMED_OUT)
    assert ended.status.why.startswith("it had to be started by now")

    agent = await cluster.join(name_of(skill), skills=[skill])
    # On a slow machine its time may be up before it is placed.
    for within_ms in (600, 6_000, 60_000):
        (late,) = await cluster.submit(skill=skill, total_deadline_ms=within_ms, timeout_ms=600_000)
        await until(lambda: _placed_or_over(cluster, agent, late))  # noqa: B023  awaited here
        if (late, 1) in agent.assigned:
            break
    assert 0 < agent.assigned[late, 1].timeout_ms <= within_ms
    agent.start(late)
    await soon(lambda: (late, 1, task_pb2.TASK_WISH_TIME_OUT) in agent.cancels)
    agent.end(late, 1, task_pb2.Outcome(kind=task_pb2.OUTCOME_KIND_TIMED_OUT))
    await cluster.stored(late, TIMED_OUT)


async def _placed_or_over(cluster: Cluster, agent: FakeAgent, ident: str) -> bool:
    if (ident, 1) in agent.assigned:
        return True
    return (await cluster.task(ident)).status.state == TIMED_OUT


async def test_a_silent_agent_is_given_up_and_its_late_word_is_stale(
    cluster: Cluster, skill: str
) -> None:
    name = name_of(skill)
    cluster.registry.show(name, skills=[skill])
    # Not before its only word was said.
    began_s = boot_s()
    silent = await cluster.agent(name, beats=False)
    (ident,) = await cluster.submit(skill=skill)
    await soon(lambda: (ident, 1) in silent.assigned)
    cluster.registry.hide(name)
    await cluster.sees(name, agent_pb2.AGENT_STATE_SUSPECT)
    other = await cluster.join(name_of(skill, "b"), skills=[skill])
    assert (await cluster.task(ident)).status.attempt == 1
    await soon(lambda: (ident, 2) in other.assigned)
    assert boot_s() - began_s > 8.0
    await cluster.sees(name, agent_pb2.AGENT_STATE_DOWN)
    await soon(lambda: (ident, 1) in silent.drops)
    silent.end(ident, 1)
    silent.say(beat=scheduler_pb2.SessionBeat(seq=1))
    await soon(lambda: silent.acks.get((ident, 1)) == STALE)
    assert (await cluster.task(ident)).status.attempt == 2
    # It speaks again: once it is registered it is used again.
    cluster.registry.show(name, skills=[skill])
    await cluster.sees(name, agent_pb2.AGENT_STATE_READY)


async def test_an_agent_that_connects_again_is_brought_to_what_storage_says(
    cluster: Cluster, skill: str
) -> None:
    name = name_of(skill)
    first = await cluster.join(name, skills=[skill])
    kept, missing, gone = await cluster.submit(3, skill=skill)
    await soon(lambda: len(first.assigned) == 3)
    await cluster.cancel(gone)
    again = await cluster.agent(
        name, held=[(kept, 1, 2), (gone, 1, 1), (cluster.specs()[0].id, 1, 1)]
    )
    await first.ends()
    await soon(lambda: (missing, 1) in again.assigned)
    await soon(lambda: [c[0] for c in again.cancels] == [gone])
    assert (kept, 1) not in again.assigned
    await soon(lambda: len(again.drops) == 1)
    # What the hello said to be running is known to run.
    await cluster.stored(kept, RUNNING)
    # The end of the older session changes nothing.
    await first.close()
    view = await cluster.view(name)
    assert view is not None
    assert view.state == agent_pb2.AGENT_STATE_READY
    again.end(kept)
    await cluster.stored(kept, SUCCEEDED)


async def test_an_older_incarnation_is_turned_away(cluster: Cluster, skill: str) -> None:
    name = name_of(skill)
    older = await cluster.join(name, 1, skills=[skill])
    (ident,) = await cluster.submit(skill=skill)
    await soon(lambda: (ident, 1) in older.assigned)
    newer = await cluster.join(name, 2, skills=[skill])
    await soon(lambda: (ident, 2) in newer.assigned)
    refused = await cluster.agent(name, 1, beats=False)
    await refused.ends()
    assert isinstance(refused.error, Conflict)
    older.end(ident, 1)
    newer.end(ident, 2)
    ended = await cluster.stored(ident, SUCCEEDED)
    assert (ended.status.attempt, ended.status.incarnation) == (2, 2)


async def test_a_supervisors_word_moves_the_tasks_at_once_and_it_restarts_on_request(
    cluster: Cluster, skill: str
) -> None:
    name = name_of(skill)
    agent = await cluster.join(name, skills=[skill])
    with pytest.raises(Conflict, match="no supervisor"):
        await cluster.call(
            "ActOnAgent",
            scheduler_pb2.ActOnAgentRequest(agent=name, action=scheduler_pb2.AGENT_ACTION_RESTART),
        )
    supervisor = await cluster.agent(name, supervisor=True)
    await soon(lambda: supervisor.answered > 0)
    request = scheduler_pb2.ActOnAgentRequest(
        agent=name, action=scheduler_pb2.AGENT_ACTION_RESTART, who="the test"
    )
    await cluster.call("ActOnAgent", request)
    await soon(lambda: supervisor.restarts == [1])
    (ident,) = await cluster.submit(skill=skill)
    supervisor.say(
        runtime_died=scheduler_pb2.RuntimeDied(incarnation=1, started_known=True, why="signal 9")
    )
    await cluster.sees(name, agent_pb2.AGENT_STATE_DOWN)
    await agent.close()
    newer = await cluster.join(name, 2, skills=[skill])
    await soon(lambda: (ident, 1) in newer.assigned)


async def test_cordon_and_drain(cluster: Cluster, skill: str) -> None:
    name = name_of(skill)
    agent = await cluster.join(name, skills=[skill])

    async def act(action: int) -> None:
        request = scheduler_pb2.ActOnAgentRequest(
            agent=name, action=scheduler_pb2.AgentAction.ValueType(action), who="the test"
        )
        await cluster.call("ActOnAgent", request)

    await act(scheduler_pb2.AGENT_ACTION_CORDON)
    (ident,) = await cluster.submit(skill=skill)
    assert "cordoned" in await cluster.explain(ident)
    await act(scheduler_pb2.AGENT_ACTION_UNCORDON)
    await soon(lambda: (ident, 1) in agent.assigned)
    await act(scheduler_pb2.AGENT_ACTION_DRAIN)
    await soon(lambda: agent.drained)
    wishes = await cluster.store("ListAgentWishes", storage_pb2.ListAgentWishesRequest())
    assert wishes.wishes[name] == agent_pb2.AGENT_WISH_DRAIN
    with pytest.raises(NotFound):
        await cluster.call(
            "ActOnAgent",
            scheduler_pb2.ActOnAgentRequest(
                agent="nobody", action=scheduler_pb2.AGENT_ACTION_DRAIN
            ),
        )
    await act(scheduler_pb2.AGENT_ACTION_UNCORDON)


async def test_a_higher_term_is_not_served_and_a_lower_one_writes_nothing(
    cluster: Cluster, skill: str
) -> None:
    status = await cluster.standing()
    refused = await cluster.agent(name_of(skill), term=status.term + 1, beats=False)
    await refused.ends()
    assert isinstance(refused.error, NotLeader)
    (ident,) = await cluster.submit(skill=skill)
    change = storage_pb2.Transition(
        tenant=TENANT,
        id=ident,
        expect_state=PENDING,
        status=task_pb2.TaskStatus(state=FAILED),
    )
    for term in (status.term + 1, status.term - 1 or 99):
        with pytest.raises(StaleTerm):
            await cluster.store("Apply", storage_pb2.ApplyRequest(term=term, transitions=[change]))
    assert (await cluster.task(ident)).status.state == PENDING


async def test_no_message_of_an_agent_or_gateway_ends_the_leader(
    cluster: Cluster, skill: str
) -> None:
    before = await cluster.standing()
    agent = await cluster.join(name_of(skill), skills=[skill])
    idents = await cluster.submit(4, skill=skill, max_attempts=1)
    await soon(lambda: len(agent.assigned) == 4)
    bad = [
        task_pb2.Outcome(kind=task_pb2.OutcomeKind.ValueType(99)),
        task_pb2.Outcome(kind=task_pb2.OUTCOME_KIND_SUCCEEDED, output_blob="../../etc/passwd"),
        task_pb2.Outcome(kind=task_pb2.OUTCOME_KIND_SUCCEEDED, output_json=b"1" * 70_000),
    ]
    for ident, outcome in zip(idents, bad, strict=False):
        agent.end(ident, 1, outcome)
    nobody = scheduler_pb2.AttemptRef(task_id="nobody", attempt=-1, tenant="../..")
    agent.say(
        started=[scheduler_pb2.AttemptStarted(ref=nobody)],
        waiting=[scheduler_pb2.AttemptWaiting(ref=nobody, waiting=True)],
        outcomes=[scheduler_pb2.AttemptOutcome(ref=nobody)],
        progress=[
            scheduler_pb2.AttemptProgress(ref=nobody),
            scheduler_pb2.AttemptProgress(
                ref=scheduler_pb2.AttemptRef(task_id=idents[3], attempt=1, tenant=TENANT),
                fraction=float("nan"),
                note="x" * 5_000,
                partial_json=b"1" * 70_000,
            ),
        ],
        runtime_died=scheduler_pb2.RuntimeDied(incarnation=1),
    )
    for ident in idents[:3]:
        failed = await cluster.stored(ident, FAILED)
        assert failed.outcome.error_kind == "bad_outcome"
    for request in (
        [task_pb2.TaskSpec(id="x", tenant=TENANT, skill=skill)],
        [*cluster.specs(skill=skill), *cluster.specs(skill="NO SKILL")],
        cluster.specs(skill=skill, resources={"cpu": -1}),
        cluster.specs(skill=skill, tenant="../.."),
    ):
        with pytest.raises(InvalidInput):
            await cluster.call("Submit", scheduler_pb2.SubmitRequest(tasks=request))
    agent.end(idents[3])
    await cluster.stored(idents[3], SUCCEEDED)
    for name, incarnation in (("NOT AN ID", 1), (name_of(skill), 0)):
        refused = await cluster.agent(name, incarnation, beats=False)
        await refused.ends()
        assert isinstance(refused.error, InvalidInput)
    after = await cluster.standing()
    assert after.term == before.term


async def test_what_the_process_says_of_itself(cluster: Cluster) -> None:
    process = cluster.process(await cluster.leader())
    assert process.readiness() == (200, "ready\n")
    metrics = process.metrics()
    assert "muster_scheduler_leader 1.0" in metrics
    assert "muster_tasks_admitted_total" in metrics


@pytest.mark.parametrize("hours", [1, -1])
async def test_an_agents_clock_that_is_an_hour_off_ends_nothing_early(
    cluster: Cluster, skill: str, hours: int
) -> None:
    agent = await cluster.join(name_of(skill), skills=[skill])
    (ident,) = await cluster.submit(skill=skill, timeout_ms=60_000, total_deadline_ms=120_000)
    await soon(lambda: (ident, 1) in agent.assigned)
    off_ms = wall_ms() + hours * 3_600_000
    agent.say(
        started=[
            scheduler_pb2.AttemptStarted(
                ref=scheduler_pb2.AttemptRef(task_id=ident, attempt=1, tenant=TENANT),
                started_at_ms=off_ms,
            )
        ]
    )
    await cluster.stored(ident, RUNNING)
    # Deadlines and silence are looked at several times in this while.
    (other,) = await cluster.submit(skill=skill)
    await soon(lambda: (other, 1) in agent.assigned)
    answered = agent.answered
    await soon(lambda: agent.answered > answered + 5)
    assert agent.cancels == []
    outcome = task_pb2.Outcome(
        kind=task_pb2.OUTCOME_KIND_SUCCEEDED,
        output_json=b"1",
        output_bytes=1,
        started_at_ms=off_ms,
        ended_at_ms=off_ms + 5,
    )
    agent.end(ident, outcome=outcome)
    task = await cluster.stored(ident, SUCCEEDED)
    assert (task.status.attempt, task.status.ended_at_ms) == (1, off_ms + 5)
    agent.end(other)
    await cluster.stored(other, SUCCEEDED)
