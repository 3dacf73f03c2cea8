"""The service desk of the examples: its sentences, its router, its knowledge base, its report."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from examples.customer_service import load, skills
from examples.customer_service.arrivals import TraceUnreadable, from_trace, poisson
from examples.customer_service.intents import Router, Sentence, read_sentences, router, split
from examples.customer_service.knowledge import (
    INDEX_KEY,
    TICKET_KEY,
    Entry,
    closest,
    ranked,
    read_articles,
)
from examples.customer_service.report import Served, as_json, summaries
from muster.skill import ChildFailed, InputRejected, PermanentFailure
from muster.testing import Sandbox, run_skill

DESK: dict[str, Any] = {"escalate": skills.escalate, "find_articles": skills.find_articles}


# --- sentences and router -----------------------------------------------------------------------


def test_no_sentence_is_there_twice_and_intents_are_even() -> None:
    sentences = read_sentences()
    assert len({s.text.lower() for s in sentences}) == len(sentences) >= 500
    assert len(set(Counter(s.intent for s in sentences).values())) == 1


def test_held_out_sentences_are_not_trained_on() -> None:
    sentences = read_sentences()
    trained, held_out = split(sentences)
    assert sorted([*trained, *held_out], key=str) == sorted(sentences, key=str)
    assert not {s.text for s in trained} & {s.text for s in held_out}
    assert len({s.intent for s in held_out}) == 8
    assert split(sentences) == (trained, held_out)


def test_held_out_sentences_are_routed_mostly_right() -> None:
    _, held_out = split(read_sentences())
    assert router().accuracy(held_out) >= 0.75
    shuffled = [
        Sentence(a.text, b.intent)
        for a, b in zip(held_out, held_out[7:] + held_out[:7], strict=True)
    ]
    assert router().accuracy(shuffled) < 0.4


def test_the_sure_are_more_often_right_than_the_unsure() -> None:
    _, held_out = split(read_sentences())
    routes = router().routes([s.text for s in held_out])
    right = {True: [0, 0], False: [0, 0]}
    for route, sentence in zip(routes, held_out, strict=True):
        counts = right[route.confidence >= skills.LEAST_CONFIDENCE]
        counts[0] += route.intent == sentence.intent
        counts[1] += 1
    assert right[True][0] / right[True][1] > right[False][0] / right[False][1] + 0.2


def test_a_router_learns_what_it_is_shown() -> None:
    small = Router(
        [Sentence(f"{word} {n}", word) for word in ("apples", "pears") for n in range(5)]
    )
    found = small.routes(["more apples", "pear"])
    assert [route.intent for route in found] == ["apples", "pears"]
    assert all(0.5 < route.confidence <= 1 for route in found)


# --- knowledge base -----------------------------------------------------------------------------


def test_every_intent_has_articles_and_ids_are_unique() -> None:
    articles = read_articles()
    assert {a.intent for a in articles} == {s.intent for s in read_sentences()}
    assert len({a.id for a in articles}) == len(articles)


ENTRIES = [
    Entry("a", "fruit", "Apples", "apple red", "1"),
    Entry("b", "fruit", "Pears", "pear green soft", "2"),
    Entry("c", "bread", "Rye", "green rye soft", "3"),
]


def test_the_closest_article_is_of_the_intent() -> None:
    found = [
        closest(message, ENTRIES, "fruit")
        for message in ("a green, SOFT one", "red apples", "nothing of it")
    ]
    assert [entry.id for entry in found if entry] == ["b", "a", "a"]
    assert closest("red", ENTRIES, "meat") is None


def test_the_search_goes_over_all_that_is_written() -> None:
    articles = [(entry, f"about {entry.title}") for entry in ENTRIES]
    assert [e.id for e in ranked("soft rye", articles, 2)] == ["c", "b"]
    assert [e.id for e in ranked("zebra", articles, 3)] == ["a", "b", "c"]


# --- skills -------------------------------------------------------------------------------------


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    monkeypatch.setattr(skills, "_TEXTS", {})
    box = Sandbox(skills=DESK)
    assert run_skill(skills.publish_knowledge, sandbox=box) == len(read_articles())
    return box


def test_publishing_twice_changes_nothing(desk: Sandbox) -> None:
    before = desk.kv[INDEX_KEY], desk.blobs
    run_skill(skills.publish_knowledge, sandbox=desk)
    assert (desk.kv[INDEX_KEY], desk.blobs) == before
    assert len(desk.blobs) == len(read_articles())


def test_a_clear_question_is_answered_from_shared_storage(desk: Sandbox) -> None:
    answer = run_skill(skills.answer, {"message": "I forgot my password."}, sandbox=desk)
    article = next(a for a in read_articles() if a.id == "log-in")
    assert (answer["intent"], answer["article"]) == ("account_access", "log-in")
    assert answer["text"] == article.text
    assert (answer["escalated"], answer["ticket"]) == (False, "")
    assert desk.children == []


@pytest.mark.parametrize("message", ["I want to complain.", "Zebras xylophone quorum"])
def test_complaints_and_riddles_are_passed_on(desk: Sandbox, message: str) -> None:
    answer = run_skill(skills.answer, {"message": message}, sandbox=desk)
    assert [(c.skill, c.depth) for c in desk.children] == [("escalate", 1), ("find_articles", 2)]
    assert answer["escalated"]
    assert answer["ticket"] == desk.children[0].id
    assert desk.kv[TICKET_KEY + answer["ticket"]]["message"] == message
    assert all(title in answer["text"] for title in desk.children[1].output)
    assert len(desk.children[1].output) == 3


def test_a_second_attempt_keeps_the_ticket(desk: Sandbox) -> None:
    value = {"message": "It broke!", "intent": "complaint"}
    first = run_skill(skills.escalate, value, sandbox=desk)
    desk.attempt = 2
    assert run_skill(skills.escalate, value, sandbox=desk) == first
    assert len([key for key in desk.kv if key.startswith(TICKET_KEY)]) == 1
    assert any("earlier attempt" in entry.text for entry in desk.logs)


def test_a_failing_second_line_fails_the_message(desk: Sandbox) -> None:
    desk.skills["escalate"] = RuntimeError("nobody is there")
    with pytest.raises(ChildFailed, match="nobody is there"):
        run_skill(skills.answer, {"message": "I want to complain."}, sandbox=desk)


@pytest.mark.parametrize("message", ["", "  \n", "x" * 2001])
def test_what_is_no_message_is_rejected(desk: Sandbox, message: str) -> None:
    with pytest.raises(InputRejected, match="1 to 2000"):
        run_skill(skills.answer, {"message": message}, sandbox=desk)


def test_an_empty_knowledge_base_is_a_clear_failure() -> None:
    for function, value in (
        (skills.answer, {"message": "I forgot my password."}),
        (skills.find_articles, {"message": "x"}),
    ):
        with pytest.raises(PermanentFailure, match="publish_knowledge"):
            run_skill(function, value)


# --- arrivals and report ------------------------------------------------------------------------


def trace(folder: Path, *times: str, column: str = "TIMESTAMP") -> Path:
    path = folder / "trace.csv"
    path.write_text("\n".join([f"{column},ContextTokens", *(f"{t},5" for t in times)]))
    return path


def test_a_trace_is_replayed_faster(tmp_path: Path) -> None:
    path = trace(
        tmp_path,
        "2023-11-16 18:15:46.6805900",
        "2023-11-16 18:15:50.6805900",
        "2023-11-16 18:16:46.1805910",
        "not read any more",
    )
    assert from_trace(path, 3, 2.0) == pytest.approx([0.0, 2.0, 29.7500005])


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (["2023-11-16 18:15:46"], "1 requests, 2 are needed"),
        (["2023-11-16 18:15:46", "later"], ":3: 'later' is no time"),
        (["2023-11-16 18:15:46", "2023-11-16 18:15:45"], "not in order"),
    ],
)
def test_a_bad_trace_is_one_sentence(tmp_path: Path, times: list[str], words: str) -> None:
    with pytest.raises(TraceUnreadable, match=r"trace\.csv") as caught:
        from_trace(trace(tmp_path, *times), 2, 1.0)
    assert words in str(caught.value)


def test_a_file_that_is_no_trace_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceUnreadable, match="no column TIMESTAMP"):
        from_trace(trace(tmp_path, column="time"), 1, 1.0)
    with pytest.raises(TraceUnreadable, match="No such file"):
        from_trace(tmp_path / "nowhere.csv", 1, 1.0)


def test_poisson_arrivals_follow_the_seed_and_the_rate() -> None:
    offsets = poisson(5.0, 4000, 2.0, seed=3)
    assert offsets == poisson(5.0, 4000, 2.0, seed=3) != poisson(5.0, 4000, 2.0, seed=4)
    assert offsets[0] == 0
    assert offsets == sorted(offsets)
    assert offsets[-1] / 3999 == pytest.approx(0.1, rel=0.1)


def test_the_report_counts_by_intent() -> None:
    served = [
        Served("a", "a", False, 0.010),
        Served("a", "b", True, 0.030),
        Served("b", "b", False, 0.020),
    ]
    rows = {row["name"]: row for row in as_json(summaries(served))}
    assert list(rows) == ["a", "b", "answered at once", "escalated", "all"]
    assert rows["a"] == {
        "name": "a",
        "messages": 2,
        "right": 0.5,
        "escalated": 0.5,
        "p50_ms": 20.0,
        "p90_ms": 28.0,
        "p99_ms": 29.8,
    }
    assert (rows["all"]["messages"], rows["all"]["right"]) == (3, 0.6667)
    assert rows["escalated"]["p50_ms"] == 30.0
    assert "escalated" not in {one.name for one in summaries([served[0]])}


@pytest.mark.parametrize(
    "flags", [["--requests", "0"], ["--speed-up", "0"], ["--rate", "nan"], ["--requests", "x"]]
)
def test_bad_flags_are_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load.parse(flags)
    assert caught.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_a_missing_trace_ends_before_a_cluster_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load.main(["--trace", str(tmp_path / "none.csv")]) == 1
    assert "No such file" in capsys.readouterr().out
