"""What is repeated, for how long, and what is raised instead."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.client.fake_steps import LOST, UNSENT, World, problem, reply

from muster.client import calls, errors, shared
from muster.client.exchange import Broken, Reply, Send
from muster.client.models import Task
from muster.domain.errors import InvalidInput, MusterError


def submit(world: World, **more: Any) -> Any:
    settings = world.settings(**more)
    return world.run(calls.submit(settings, "echo", {"a": 1}, {}, None, settings.timeout_s))


@pytest.mark.parametrize(
    "trouble",
    [UNSENT, LOST, problem(429), problem(502), problem(503, retry_after="2"), problem(504)],
    ids=["unsent", "lost", "429", "502", "503", "504"],
)
def test_a_submission_is_repeated_under_one_key(trouble: Any) -> None:
    world = World([trouble, trouble, reply({"id": "x"}, 202)])
    assert submit(world) == "x"
    assert len(world.sent) == 3
    assert world.keys == {"key-1"}
    assert {s.request.content for s in world.sent} == {b'{"skill":"echo","input":{"a":1}}'}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 413, 415, 418, 422, 500])
def test_other_refusals_are_raised_at_once(status: int) -> None:
    world = World([problem(status)])
    with pytest.raises(errors.Refused) as caught:
        submit(world)
    assert (len(world.sent), caught.value.status) == (1, status)


def test_the_pause_is_what_was_asked_for_plus_full_jitter_that_doubles() -> None:
    world = World([problem(503, retry_after="4"), UNSENT, UNSENT, reply({"id": "x"}, 202)])
    submit(world)
    assert world.pauses == pytest.approx([4.2, 0.4, 0.8])
    world = World([problem(503, retry_after="4"), reply({"id": "x"}, 202)], chance=0.0)
    submit(world)
    assert world.pauses == [4.0]


def test_repetitions_end_with_their_budget_and_what_stood_in_the_way_is_told() -> None:
    world = World([UNSENT])
    with pytest.raises(errors.Unreachable, match="connection refused"):
        submit(world, retry_for_s=10.0)
    assert 7.0 < world.now_s - 1_000 <= 10.0
    world = World([problem(429, "too much", retry_after="3600")])
    with pytest.raises(errors.Overloaded, match="too much"):
        submit(world)
    assert world.pauses == []


def test_the_deadline_bounds_repetitions_and_each_request() -> None:
    world = World([UNSENT])
    with pytest.raises(errors.Unreachable):
        submit(world, timeout_s=3.0)
    assert world.now_s <= 1_003.0
    assert all(s.ends_s == 1_003.0 and s.quiet_s <= 3.0 for s in world.sent)

    def too_slow(step: Send) -> Broken:
        world.now_s += step.quiet_s
        return Broken("timed out")

    world = World([too_slow])
    with pytest.raises(errors.DeadlinePassed, match=r"submitting took longer than 3 s") as caught:
        submit(world, timeout_s=3.0)
    assert isinstance(caught.value, TimeoutError)
    assert len(world.sent) == 1


@pytest.mark.parametrize(
    ("trouble", "sent"), [(UNSENT, 2), (problem(429), 2), (LOST, 1), (problem(503), 1)]
)
def test_a_conditional_write_is_repeated_only_when_it_surely_was_not_made(
    trouble: Any, sent: int
) -> None:
    world = World([trouble, Reply(204, {"etag": '"8"'})])
    op = shared.kv_put(world.settings(), "k", 1, "7", False, 30.0)
    if sent == 2:
        assert world.run(op) == "8"
    else:
        with pytest.raises(errors.ClientError):
            world.run(op)
    assert len(world.sent) == sent
    world = World([LOST, Reply(204, {"etag": '"8"'})])
    assert world.run(shared.kv_put(world.settings(), "k", 1, "", False, 30.0)) == "8"


def test_a_problem_is_told_whole() -> None:
    found = problem(422, "cpu: bad", field="resources.cpu", value="x", limit="a quantity")
    with pytest.raises(errors.InvalidRequest) as caught:
        submit(World([found]))
    error = caught.value
    assert (error.title, error.detail, error.status) == ("T", "cpu: bad", 422)
    assert (error.field, error.value, error.limit) == ("resources.cpu", "x", "a quantity")
    assert isinstance(error, MusterError)


@pytest.mark.parametrize("body", [b"<html>\n<p>Bad   gateway", b'{"detail": 5}', b"\xff\xfe", b""])
def test_a_refusal_that_is_no_problem_document_is_told_too(body: bytes) -> None:
    with pytest.raises(errors.Refused) as caught:
        submit(World([Reply(418, {}, body)]))
    assert str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"id": 5}', b"\xff"])
def test_an_answer_of_something_else_is_told(body: bytes) -> None:
    with pytest.raises(errors.Unreadable, match="is it a Muster"):
        submit(World([Reply(202, {"content-type": "text/html"}, body)]))


def test_fields_and_states_of_later_versions_are_taken() -> None:
    found = reply({"id": "x", "state": "DREAMING", "skill": "s", "mood": {"a": 1}})
    world = World([found])
    task = world.run(calls.task(world.settings(), "x", 0.0, False, 30.0))
    assert isinstance(task, Task)
    assert (task.state, task.ended) == ("DREAMING", False)


def test_wrong_options_and_inputs_are_told_before_anything_is_sent() -> None:
    world = World([])
    settings = world.settings()
    for skill, value, options, key in (
        ("Echo!", 1, {}, None),
        ("echo", 1, {"prio": 3}, None),
        ("echo", 1, {"timeout": True}, None),
        ("echo", float("nan"), {}, None),
        ("echo", object(), {}, None),
        ("echo", 1, {}, "a b"),
    ):
        with pytest.raises(InvalidInput):
            world.run(calls.submit(settings, skill, value, options, key, 30.0))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"inputs\[1\]"):
        world.run(calls.submit_many(settings, "echo", [1, object()], {}, None, 30.0))
    assert world.sent == []


def test_cancelling_again_is_no_error_but_cancelling_what_has_ended_is() -> None:
    task = {"id": "x", "skill": "s"}
    world = World([problem(409), reply({**task, "state": "CANCELLED"})])
    assert world.run(calls.cancel(world.settings(), "x", 30.0)) == "CANCELLED"
    world = World([problem(409), reply({**task, "state": "SUCCEEDED"})])
    with pytest.raises(errors.Conflict):
        world.run(calls.cancel(world.settings(), "x", 30.0))


def test_a_result_is_polled_for_until_it_is_there() -> None:
    open_ = reply({"id": "x", "state": "RUNNING"}, 202)
    world = World([open_, LOST, reply({"id": "x", "state": "SUCCEEDED", "result": [1]})])
    assert world.run(calls.result(world.settings(), "x", None, None)) == [1]
    assert world.sent[0].request.params == {"wait": "30000ms"}

    def later(_: Send) -> Reply:
        world.now_s += 4.0
        return open_

    world = World([later])
    with pytest.raises(errors.DeadlinePassed, match="waiting for task x took longer than 10 s"):
        world.run(calls.result(world.settings(), "x", 10.0, None))
    assert [s.request.params["wait"] for s in world.sent] == ["10000ms", "6000ms", "2000ms"]


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("FAILED", errors.TaskFailed),
        ("DEAD", errors.TaskDead),
        ("CANCELLED", errors.TaskCancelled),
        ("TIMED_OUT", errors.TaskTimedOut),
        ("SUCCEEDED", errors.ResultLost),
        ("LATER", errors.TaskUnsuccessful),
    ],
)
def test_a_task_without_a_result_is_an_error_with_the_task(state: str, kind: type) -> None:
    error = {"kind": "exit", "message": "it broke", "exit_code": 3, "output": {"stdout": ""}}
    world = World([reply({"id": "x", "state": state, "attempt": 2, "error": error})])
    with pytest.raises(errors.TaskUnsuccessful, match="it broke") as caught:
        world.run(calls.result(world.settings(), "x", None, None))
    assert type(caught.value) is kind
    task = caught.value.task
    assert task.error is not None
    assert (task.attempt, task.error.exit_code) == (2, 3)


def test_a_result_is_read_as_the_type_asked_for() -> None:
    world = World([reply({"id": "x", "state": "SUCCEEDED", "result": ["2026-01-01"]})])
    import datetime

    got = world.run(calls.result(world.settings(), "x", None, list[datetime.date]))
    assert got == [datetime.date(2026, 1, 1)]
    with pytest.raises(errors.Unreadable, match="not of the type asked for"):
        world.run(calls.result(world.settings(), "x", None, list[int]))


def test_run_names_its_task_when_it_has_to_give_up() -> None:
    world = World([reply({"id": "x"}, 202), problem(404)])
    with pytest.raises(errors.NotFound) as caught:
        world.run(calls.run(world.settings(), "echo", 1, {}, None, 5.0, None))
    assert caught.value.submitted == ("x",)
