"""Replays: adapters that name what is wrong, virtual time that keeps its books, the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.domain.errors import InvalidInput
from muster.domain.resources import ResourceVector
from muster_scheduler.learning.attempts import TaskFeatures
from muster_scheduler.placement import Policy
from muster_scheduler.replay.azure import equal_agents, read_azure
from muster_scheduler.replay.command import main
from muster_scheduler.replay.history import read_history
from muster_scheduler.replay.openb import read_nodes, read_openb
from muster_scheduler.replay.report import figures, table
from muster_scheduler.replay.simulator import Run, simulate
from muster_scheduler.replay.trace import Trace, TraceAgent, TraceTask

CAPACITY = ResourceVector.of({"cpu": 4000, "slots": 2})
LLM = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
POD_HEAD = (
    "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,"
    "creation_time,deletion_time,scheduled_time\n"
)
POD = "p0,1000,1024,1,500,T4|P100,LS,Running,10,110,20\n"


def random_trace(seed: int, tasks: int = 60, agents: int = 4) -> Trace:
    rng = np.random.default_rng(seed)
    arrivals = np.sort(rng.uniform(0, 60, tasks)).tolist()
    made = tuple(
        TraceTask(
            at_s,
            float(rng.uniform(0.1, 20)),
            TaskFeatures("s", float(rng.uniform(0.1, 20))),
            ResourceVector.of({"cpu": int(rng.integers(0, 6)) * 1000}),
            int(rng.integers(0, 3)),
        )
        for at_s in arrivals
    )
    return Trace(made, equal_agents(agents, CAPACITY, (1, 8), seed))


def check_books(trace: Trace, run: Run) -> None:
    """Nothing begins before it arrives, all run their time, and no agent is ever overfull."""
    for index, task in enumerate(trace.tasks):
        row = int(run.agent[index])
        assert (row < 0) == (task.demand.get("cpu") > 4000)
        if row >= 0:
            assert run.start_s[index] >= task.arrival_s
            took = run.end_s[index] - run.start_s[index]
            assert took == pytest.approx(trace.agents[row].run_s(task))
    for row in range(len(trace.agents)):
        mine = np.flatnonzero(run.agent == row)
        for moment in run.start_s[mine]:
            now = mine[(run.start_s[mine] <= moment) & (run.end_s[mine] > moment)]
            assert len(now) <= 2
            assert sum(trace.tasks[i].demand.get("cpu") for i in now) <= 4000


@pytest.mark.parametrize("strategy", ["worst_fit", "greedy", "learned", "auto", "oracle"])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=5, deadline=None)
def test_the_books_balance(strategy: str, seed: int) -> None:
    trace = random_trace(seed)
    run = simulate(trace, strategy, Policy(), seed, 0)
    check_books(trace, run)
    again = simulate(trace, strategy, Policy(), seed, 0)
    assert np.array_equal(run.end_s, again.end_s, equal_nan=True)
    assert run.look_s.shape == run.U.shape == run.B.shape == run.waiting.shape


def test_higher_priority_goes_first() -> None:
    features = TaskFeatures("s", 1.0)
    one = ResourceVector.of({"cpu": 3000})
    tasks = tuple(TraceTask(at, 5.0, features, one, p) for at, p in ((0.0, 0), (1.0, 0), (2.0, 9)))
    trace = Trace(tasks, (TraceAgent("a", CAPACITY),))
    run = simulate(trace, "worst_fit", Policy(), 0, 0)
    assert run.start_s.tolist() == [0.0, 10.0, 5.0]


def test_figures_of_a_run_that_can_be_counted_by_hand() -> None:
    tasks = tuple(
        TraceTask(at, 4.0, TaskFeatures("s"), ResourceVector.of({"cpu": 4000})) for at in (0.0, 2.0)
    )
    trace = Trace(tasks, (TraceAgent("a", CAPACITY, speed=2.0),))
    row = figures(trace, simulate(trace, "first_fit", Policy(), 0, 0))
    assert (row.tasks, row.unplaced, row.waiting_mean_s) == (2, 0, 0.0)
    assert (row.response_mean_s, row.T) == (2.0, 4.0)
    # cpu is all used and one of two slots, from the first arrival to the last.
    assert abs(row.U - 0.75) < 0.01
    assert "first_fit" in table([row])


def test_learning_finds_the_fast_agents() -> None:
    rng = np.random.default_rng(3)
    tasks = tuple(
        TraceTask(float(i), work, TaskFeatures("s", work), ResourceVector())
        for i, work in enumerate(rng.uniform(2, 10, 400).tolist())
    )
    agents = tuple(TraceAgent(f"a{i}", CAPACITY, speed=s) for i, s in enumerate((1, 1, 2, 8)))
    trace = Trace(tasks, agents)
    mean = {
        name: figures(trace, simulate(trace, name, Policy(), 1, 0), 100).response_mean_s
        for name in ("worst_fit", "learned", "oracle")
    }
    assert mean["learned"] is not None
    assert mean["oracle"] is not None
    assert mean["worst_fit"] is not None
    assert mean["learned"] < 1.1 * mean["oracle"] < 0.7 * mean["worst_fit"]


def test_azure_rows_become_tasks(tmp_path: Path) -> None:
    path = tmp_path / "llm.csv"
    path.write_text(
        LLM + "2023-11-16 18:15:50.9951690,1000,20\n2023-11-16 18:15:46.6805900,500,10\n"
    )
    trace = read_azure(path, equal_agents(2, CAPACITY, (1, 1), 0))
    assert [task.arrival_s for task in trace.tasks] == pytest.approx([0.0, 4.314579], abs=1e-6)
    assert [task.work_s for task in trace.tasks] == [1.5, 3.0]
    hidden = read_azure(path, equal_agents(2, CAPACITY, (1, 1), 0), hide_answer=True)
    assert [task.features.declared_s for task in hidden.tasks] == [2.0, 2.5]
    assert [name for name, _ in hidden.tasks[0].features.fields] == ["context_tokens"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("TIMESTAMP,ContextTokens\n", "no column GeneratedTokens"),
        (
            LLM + "2023-11-16 18:15:46,1,1\n2023-11-16 18:15:47,many,1\n",
            "row 2 column ContextTokens",
        ),
        (LLM + "2023-11-16 18:15:46,1,-1\n", "row 1 column GeneratedTokens"),
        (LLM + "yesterday,1,1\n", "row 1 column TIMESTAMP"),
        (LLM + "2023-11-16 18:15:46,1\n", "row 1 column GeneratedTokens"),
        (LLM + "2023-11-16 18:15:46,1,1,7\n", "row 1 column 4"),
        (LLM + '2023-11-16 18:15:46,"1\n', "no CSV"),
        (LLM, "0 tasks"),
    ],
)
def test_what_is_wrong_in_an_azure_trace_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "llm.csv"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=said):
        read_azure(path, equal_agents(1, CAPACITY, (1, 1), 0))


def test_openb_pods_and_nodes(tmp_path: Path) -> None:
    pods, nodes = tmp_path / "pods.csv", tmp_path / "nodes.csv"
    pods.write_text(POD_HEAD + POD)
    nodes.write_text("sn,cpu_milli,memory_mib,gpu,model\nn0,64000,262144,2,P100\nn1,8000,1,0,\n")
    trace = read_openb(pods, read_nodes(nodes))
    (task,) = trace.tasks
    assert (task.arrival_s, task.work_s) == (0.0, 90.0)
    assert task.demand.as_dict() == {"cpu": 1000, "memory": 2**30, "gpu": 500}
    assert trace.agents[0].capacity.get("gpu") == 2000
    run = simulate(trace, "first_fit", Policy(), 0, 0)
    assert run.agent.tolist() == [0]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("1000", "x", "row 2 column cpu_milli"),
        (",110,", ",5,", "row 2 column deletion_time"),
        (",1,500,", ",2,500,", "row 2 column gpu_milli"),
        (",10,", ",,", "row 2 column creation_time"),
    ],
)
def test_what_is_wrong_in_an_openb_trace_is_named(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    path = tmp_path / "pods.csv"
    path.write_text(POD_HEAD + POD + POD.replace(old, new, 1))
    with pytest.raises(InvalidInput, match=said):
        read_openb(path, ())


def recorded(count: int, speeds: tuple[float, ...] = (1.0, 4.0)) -> list[dict[str, object]]:
    rng = np.random.default_rng(1)
    rows: list[dict[str, object]] = []
    for index in range(count):
        agent = int(rng.integers(len(speeds)))
        begun = index % 50
        ended = begun + 8 / speeds[agent]
        rows.append(
            {
                "id": f"t{index}", "skill": "echo", "agent": f"a{agent}", "priority": 50,
                "submitted_at": f"2026-01-01T{index // 60:02}:{index % 60:02}:00.000Z",
                "started_at": f"2026-01-01T{index // 60:02}:{index % 60:02}:00.000Z",
                "ended_at": f"2026-01-01T{index // 60:02}:{index % 60:02}:"
                f"{8 / speeds[agent]:06.3f}Z",
                "resources": {"cpu": "100m"}, "estimate": "1m30s", "constraints": [],
            }
        )  # fmt: skip
        assert ended > begun
    return rows


def test_history_gives_agents_with_their_speeds(tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    waiting = {"id": "t", "skill": "echo", "agent": None, "started_at": None, "ended_at": None}
    path.write_text(json.dumps({"items": [*recorded(100), waiting], "next": None}))
    trace = read_history(path, None)
    assert len(trace.tasks) == 100
    assert any("1 tasks" in note for note in trace.notes)
    first, second = trace.agents
    assert second.speeds["echo"] / first.speeds["echo"] == pytest.approx(4.0, rel=0.1)
    assert trace.tasks[0].features.declared_s == 90.0
    assert first.capacity.as_dict() == {"cpu": 100, "slots": 1}
    lines = tmp_path / "tasks.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in recorded(100)))
    assert read_history(lines, None).tasks == trace.tasks


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("started_at", "soon"),
        ("ended_at", "2020-01-01T00:00:00Z"),
        ("skill", None),
        ("agent", 7),
        ("priority", 101),
        ("resources", {"cpu": "many"}),
        ("estimate", "long"),
        ("constraints", "zone"),
    ],
)
def test_what_is_wrong_in_a_history_is_named(tmp_path: Path, key: str, value: object) -> None:
    rows = recorded(3)
    rows[1][key] = value
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(InvalidInput, match=f"row 2 column {key}"):
        read_history(path, None)


def test_the_command_prints_a_line_a_strategy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "llm.csv"
    path.write_text(LLM + "".join(f"2023-11-16 18:15:{s:02},100,20\n" for s in range(60)))
    wanted = ["--strategy", "greedy", "--strategy", "worst_fit", "--agents", "2"]
    assert main([str(path), *wanted, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["strategy"] for line in lines] == ["greedy", "worst_fit"]
    assert all(line["unplaced"] == 0 and line["response_mean_s"] > 0 for line in lines)
    assert main([str(path), *wanted]) == 0
    assert "response mean" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--strategy", "magic"], "--strategy: 'magic' is not accepted; one of"),
        (["--agents", "0"], "--agents"),
        (["--rate", "nan"], "rate"),
        (["--limit", "0"], "limit"),
        (["--skip", "99"], "--skip"),
        (["--speeds", "fast"], "--speeds"),
        (["--plot", "a.txt"], "--plot"),
        (["--nodes", "n.csv"], "--nodes"),
        (["--steps", "-1"], "--steps"),
    ],
)
def test_wrong_values_are_answered_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    path = tmp_path / "llm.csv"
    path.write_text(LLM + "2023-11-16 18:15:46,1,1\n")
    assert main([str(path), *arguments]) == 2
    answer = capsys.readouterr().err
    assert said in answer
    assert len(answer.splitlines()) == 1


def test_a_file_that_is_no_trace_is_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x"
    path.write_text("hello\n")
    assert main([str(path)]) == 2
    assert main([str(tmp_path / "gone")]) == 2
    assert "cannot be read" in capsys.readouterr().err
