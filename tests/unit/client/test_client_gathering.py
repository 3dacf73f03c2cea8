"""Many tasks: gathered without a request for each, in order, bounded, through broken streams."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.unit.client.fake_steps import LOST, World, problem, reply

from muster.client import errors, gathering
from muster.client.exchange import Broken, Reply, Send
from muster.client.models import Result
from muster.client.task_bodies import BATCH_BYTES, BATCH_TASKS, BodyMaker, TaskOptions, batches
from muster.domain.errors import InvalidInput


class Cluster(World):
    """Squares numbers: a task's id is its input, tasks end in the order that `order` makes.

    Each gathering answers what `per_answer` says, in pieces that cut lines anywhere.
    """

    def __init__(self, *, per_answer: int = 10**9, order: Any = None, broken: int = 0) -> None:
        super().__init__([self.answer])
        self.open: dict[str, Any] = {}
        self.per_answer, self.order, self.broken = per_answer, order or list, broken
        self.most_open = self.gathers = 0
        self.batches: list[int] = []

    def answer(self, step: Send) -> Reply | Broken:
        assert isinstance(step.request.content, bytes)
        body = json.loads(step.request.content)
        if step.request.path == "/v1/tasks":
            tasks = body["tasks"]
            self.batches.append(len(tasks))
            ids = [f"t{task['input']}" for task in tasks]
            self.open |= dict(zip(ids, (task["input"] for task in tasks), strict=True))
            self.most_open = max(self.most_open, len(self.open))
            return reply({"ids": ids}, 202)
        assert step.stream
        self.gathers += 1
        self.pieces = self._lines(body["ids"])
        return Reply(200, {})

    def _lines(self, ids: list[str]) -> Iterator[bytes | Broken | None]:
        asked = set(ids)
        known = [ident for ident in self.order(list(self.open)) if ident in asked]
        for ident in known[: self.per_answer]:
            line = self._ending(ident, self.open.pop(ident))
            yield line[:7]
            yield line[7:]
            if self.broken:
                self.broken -= 1
                yield LOST
                return
        yield json.dumps({"open": [i for i in ids if i in self.open]}).encode() + b"\n"
        yield None

    def _ending(self, ident: str, value: int) -> bytes:
        end: dict[str, Any] = {"id": ident, "state": "SUCCEEDED", "attempt": 1, "agent": "a"}
        if value < 0:
            end |= {"state": "FAILED", "error": {"kind": "exception", "message": "negative"}}
        else:
            end["result"] = value * value
        return json.dumps(end).encode() + b"\n"

    def map(self, inputs: Any, **more: Any) -> list[Any]:
        options: dict[str, Any] = {
            "ordered": True,
            "on_error": "raise",
            "in_flight": 100,
            "returns": None,
            "timeout_s": None,
            "progress": self,
            **more,
        }
        mapped = gathering.Mapped(self.settings(), "square", inputs, TaskOptions(), **options)
        self.run(mapped.op())
        return self.emitted

    def submitted(self, tasks: int) -> None:
        self.all = tasks

    def ended(self, tasks: int, failed: int) -> None:
        self.done = getattr(self, "done", 0) + tasks
        self.failed = getattr(self, "failed", 0) + failed

    def close(self) -> None: ...


def backwards(ids: list[str]) -> list[str]:
    return ids[::-1]


@pytest.mark.parametrize("count", [0, 1, 24, 25, 26, 1_000])
@pytest.mark.parametrize("per_answer", [3, 10**9])
def test_results_come_in_the_order_of_their_inputs(count: int, per_answer: int) -> None:
    cluster = Cluster(per_answer=per_answer, order=backwards)
    assert cluster.map(range(count)) == [n * n for n in range(count)]
    assert cluster.open == {}


def test_what_is_in_flight_is_bounded_and_inputs_are_drawn_as_there_is_room() -> None:
    drawn = 0

    def inputs() -> Iterator[int]:
        nonlocal drawn
        for drawn in range(1_000):
            assert drawn - len(cluster.emitted) <= 100
            yield drawn

    cluster = Cluster(per_answer=30, order=backwards)
    cluster.map(inputs())
    assert 75 <= cluster.most_open <= 100
    assert max(cluster.batches) == 25
    assert cluster.gathers < 150


def test_unordered_results_are_handed_out_as_they_come() -> None:
    cluster = Cluster(per_answer=30, order=backwards)
    got = cluster.map(range(300), ordered=False)
    assert got != [n * n for n in range(300)]
    assert sorted(got) == [n * n for n in range(300)]


def test_a_failure_is_raised_in_its_place_or_stands_there() -> None:
    cluster = Cluster(order=backwards)
    with pytest.raises(errors.TaskFailed, match="negative"):
        cluster.map([3, -1, 4])
    assert cluster.emitted == [9]
    cluster = Cluster(order=backwards)
    nine, failed, sixteen = cluster.map([3, -1, 4], on_error="return")
    assert (nine, sixteen) == (9, 16)
    assert isinstance(failed, errors.TaskFailed)
    assert failed.task.id == "t-1"
    assert (cluster.all, cluster.done, cluster.failed) == (3, 3, 1)


def test_a_stream_that_breaks_off_is_taken_up_and_nothing_comes_twice() -> None:
    cluster = Cluster(broken=7)
    assert cluster.map(range(200)) == [n * n for n in range(200)]
    assert cluster.gathers >= 8
    assert len(cluster.pauses) == 7


def test_streams_that_break_off_for_long_are_told() -> None:
    world = World([Reply(200, {})], iter([LOST] * 1_000))

    def again(_: Send) -> Reply:
        world.pieces = iter([LOST])
        return Reply(200, {})

    world.answers = [again]
    with pytest.raises(errors.Unreachable, match="hung up"):
        world.run(gathering.results(world.settings(), ["a"], None))
    assert 20 < world.now_s - 1_000 < 40


def test_one_break_after_a_long_silence_is_no_end() -> None:
    world = World()
    breaks = 0

    def slow(step: Send) -> Reply:
        nonlocal breaks
        breaks += 1
        world.now_s += 29.0 if breaks == 1 else 0.0
        world.pieces = iter([LOST] if breaks < 4 else [b'{"id":"a","state":"SUCCEEDED"}\n', None])
        return Reply(200, {})

    world.answers = [slow]
    world.run(gathering.results(world.settings(retry_for_s=5.0), ["a"], None))
    assert len(world.emitted) == 1


def test_an_error_within_the_results_is_a_break() -> None:
    world = World([Reply(200, {})])
    told = b'{"open":["a"],"error":{"kind":"unavailable","message":"storage is away"}}\n'

    def again(_: Send) -> Reply:
        world.pieces = iter([told])
        return Reply(200, {})

    world.answers = [again]
    with pytest.raises(errors.Unreachable, match="storage is away"):
        world.run(gathering.results(world.settings(), ["a"], None))


def test_a_deadline_bounds_the_whole_map() -> None:
    cluster = Cluster(per_answer=0)

    def idle(step: Send) -> Reply | Broken:
        answer = cluster.answer(step)
        if step.stream:
            assert isinstance(step.request.content, bytes)
            wait = json.loads(step.request.content)["wait"]
            cluster.now_s += int(wait.removesuffix("ms")) / 1000
        return answer

    cluster.answers = [idle]
    with pytest.raises(errors.DeadlinePassed, match="mapping skill square"):
        cluster.map(range(10), timeout_s=40.0)
    assert cluster.now_s == pytest.approx(1_040.0)


def test_what_is_no_task_any_more_is_a_result_of_its_own() -> None:
    line = b'{"id":"a","state":null,"error":{"kind":"not_found","message":"there is no task a"}}\n'
    world = World([Reply(200, {})])

    def once(_: Send) -> Reply:
        world.pieces = iter([line + b'{"open":[]}\n', None])
        return Reply(200, {})

    world.answers = [once]
    world.run(gathering.results(world.settings(), ["a", "a"], None))
    (result,) = world.emitted
    assert isinstance(result, Result)
    assert (result.state, result.succeeded) == (None, False)
    assert isinstance(errors.unsuccessful(result), errors.NotFound)


def test_more_ids_than_a_request_takes_are_all_heard_of_past_slow_ones() -> None:
    ids = [f"t{n}" for n in range(25_000)]
    cluster = Cluster()
    # The first 12,000 end only when all others have been heard of.
    slow = {ident: n for n, ident in enumerate(ids) if n < 12_000}
    cluster.open = {ident: n for n, ident in enumerate(ids) if n >= 12_000}
    op = gathering.results(cluster.settings(), ids, None)
    answer: Any = None
    for _ in range(500_000):
        try:
            answer = cluster._perform(op.send(answer))
        except StopIteration:
            break
        if len(cluster.emitted) == 13_000:
            cluster.open |= slow
            slow = {}
    assert {r.id for r in cluster.emitted} == set(ids)
    assert len(cluster.emitted) == 25_000
    assert all(
        len(json.loads(s.request.content)["ids"]) <= 10_000  # type: ignore[arg-type]
        for s in cluster.sent
    )


def test_a_line_that_cannot_be_read_is_told() -> None:
    world = World([Reply(200, {})], iter([b'{"id": "a", "state"\n']))
    with pytest.raises(errors.Unreadable):
        world.run(gathering.results(world.settings(), ["a"], None))


def test_json_may_hold_what_other_texts_end_lines_with() -> None:
    text = "a\u2028b\u0085c"
    line = json.dumps({"id": "a", "state": "SUCCEEDED", "result": text}, ensure_ascii=False)
    world = World([Reply(200, {})], iter([line.encode() + b"\n" + b'{"open":[]}\n']))
    world.run(gathering.results(world.settings(), ["a"], None))
    assert world.emitted[0].result == text


def test_batches_keep_to_count_and_size() -> None:
    maker = BodyMaker("echo", {"priority": 7, "timeout": 1.5, "labels": {"a": "b"}})
    small = list(batches(maker.each(range(2_500))))
    assert [len(b) for b in small] == [BATCH_TASKS, BATCH_TASKS, 500]
    assert json.loads(small[0][3]) == {
        "skill": "echo",
        "priority": 7,
        "timeout": "1500ms",
        "labels": {"a": "b"},
        "input": 3,
    }
    large = list(batches(maker.each("x" * 900_000 for _ in range(9))))
    assert [len(b) for b in large] == [4, 4, 1]
    assert all(sum(map(len, b)) <= BATCH_BYTES for b in large)


def test_submit_many_tells_what_was_submitted_before_it_failed() -> None:
    from muster.client import calls

    world = World([reply({"ids": [str(n) for n in range(1_000)]}, 202), problem(422)])
    with pytest.raises(errors.InvalidRequest) as caught:
        world.run(calls.submit_many(world.settings(), "echo", range(1_500), {}, "mine", 30.0))
    assert len(caught.value.submitted) == 1_000
    assert world.keys == {"mine-0", "mine-1"}


@pytest.mark.parametrize("bad", [{"on_error": "ignore"}, {"in_flight": 0}, {"in_flight": 10_001}])
def test_wrong_settings_of_a_map_are_told(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Cluster().map([], **bad)
