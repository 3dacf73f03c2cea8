"""A real cluster by the commands alone: up, submit, result, logs, agents, cordon, down."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.evidence import is_witness
from tests.polling import HANG_S

MUSTER = str(Path(sys.executable).with_name("muster"))
SKILLS = '''
from muster.skill import skill


@skill
def greet(name: str) -> str:
    """Greets."""
    print("greeting", name)
    return f"hello {name}"


@skill
def wave(times: int = 2) -> str:
    """All its parameters have defaults."""
    return "~" * times
'''


class Cli:
    """The installed command, with a profile and a state directory of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / "state"
        kept = {n: v for n, v in os.environ.items() if not n.startswith("MUSTER_")}
        for name in ("MUSTER_ETCD", "MUSTER_REDIS"):
            if name in os.environ:
                kept[name] = os.environ[name]
        self.environ = {**kept, "MUSTER_PROFILE": str(folder / "profile.json"), "COLUMNS": "80"}
        is_witness(self)

    def run(self, *argv: str, timeout_s: float = 150.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [MUSTER, *argv],
            env=self.environ,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def ok(self, *argv: str) -> str:
        done = self.run(*argv)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}\n{self.logs()}"
        return done.stdout

    def at_last(self, *argv: str) -> str:
        """As `ok`, repeated: a command itself waits some seconds for a part that was killed."""
        give_up = time.monotonic() + HANG_S
        while (done := self.run(*argv)).returncode != 0:
            assert time.monotonic() < give_up, f"{argv}: {done.stderr}\n{self.logs()}"
            time.sleep(0.1)
        return done.stdout

    def json(self, *argv: str) -> Any:
        return json.loads(self.ok(*argv, "--json"))

    def up(self, *options: str) -> dict[str, Any]:
        ready: dict[str, Any] = self.json(
            "up", "--detach", "--state-dir", str(self.state), *options
        )
        return ready

    def processes(self) -> list[psutil.Process]:
        """The parent and everything below it."""
        parent = psutil.Process(int((self.state / "lock").read_text()))
        return [parent, *parent.children(recursive=True)]

    def logs(self, chars: int = 1500) -> str:
        """The end of each."""
        paths = sorted((self.state / "logs").glob("*.log"))
        return "\n".join(f"--- {p.name}\n{p.read_text(errors='replace')[-chars:]}" for p in paths)

    def testimony(self) -> tuple[str, str]:
        return f"{self.state}", self.logs(600)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def eventually(check: Callable[[], bool], within_s: float = HANG_S) -> None:
    give_up = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < give_up, f"it did not come true within {within_s:g} s"
        time.sleep(0.1)


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    cli = Cli(tmp_path)
    yield cli
    done = cli.run("down", "--state-dir", str(cli.state))
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """A cluster of two agents that several tests use."""
    cli = Cli(tmp_path_factory.mktemp("cluster"))
    (cli.folder / "greetings.py").write_text(SKILLS)
    try:
        cli.up("--agents", "2", "--skills", "greetings", "--agent-memory", "512Mi")
        yield cli
    finally:
        cli.run("down", "--state-dir", str(cli.state))


def test_a_task_travels_the_whole_way(running: Cli) -> None:
    assert json.loads(running.ok("submit", "echo", "--input", '{"a": [1, "ü"]}', "--wait")) == {
        "a": [1, "ü"]
    }
    ident = running.ok("submit", "greet", "--input", '{"name": "Ada"}').strip()
    assert json.loads(running.ok("result", ident, "--wait")) == "hello Ada"
    task = running.json("task", ident)
    assert (task["state"], task["skill"], task["attempt"]) == ("SUCCEEDED", "greet", 1)
    assert task["agent"] in ("agent-1", "agent-2")
    eventually(lambda: "greeting Ada" in running.ok("logs", ident))
    assert ident in running.ok("tasks", "--skill", "greet")
    assert "SUCCEEDED" in running.ok("task", ident, "--watch")


def test_a_skill_whose_parameters_have_defaults_needs_no_input(running: Cli) -> None:
    assert json.loads(running.ok("submit", "wave", "--wait")) == "~~"
    assert json.loads(running.ok("submit", "wave", "--input", '{"times": 3}', "--wait")) == "~~~"
    refused = running.run("submit", "greet")
    assert refused.returncode == 2
    assert "greet" in refused.stderr


def test_logs_are_followed_to_the_end(running: Cli) -> None:
    argv = ["sh", "-c", "echo one; sleep 1; echo two; echo three >&2"]
    ident = running.ok("submit", "command", "--input", json.dumps({"argv": argv})).strip()
    done = running.run("logs", ident, "--follow")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\ntwo\n", "three\n")


def test_a_failing_task_fails_the_command(running: Cli) -> None:
    argv = {"argv": ["sh", "-c", "exit 3"]}
    done = running.run(
        "submit", "command", "--input", json.dumps(argv), "--max-attempts", "1", "--wait"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "FAILED" in done.stderr
    assert "3" in done.stderr


def test_a_file_of_tasks(running: Cli) -> None:
    lines = [json.dumps({"skill": "echo", "input": number}) for number in range(300)]
    (running.folder / "tasks.jsonl").write_text("\n".join(lines))
    items = running.json("submit", "--file", "tasks.jsonl", "--wait")["items"]
    assert [item["result"] for item in items] == list(range(300))
    again = running.ok("submit", "--file", "tasks.jsonl", "--idempotency-key", "once").split()
    assert running.ok("submit", "--file", "tasks.jsonl", "--idempotency-key", "once").split() == (
        again
    )


def test_an_unknown_skill_waits_and_says_why(running: Cli) -> None:
    ident = running.ok("submit", "no.such.skill").strip()
    eventually(lambda: "no.such.skill" in running.ok("explain", ident))
    running.ok("cancel", ident)
    eventually(lambda: running.json("task", ident)["state"] == "CANCELLED")
    again = running.run("cancel", ident)
    assert again.returncode == 1
    assert "ended" in again.stderr


def test_bad_input_is_one_sentence(running: Cli) -> None:
    for argv, code in (
        (("submit", "echo", "--cpu=-1"), 2),
        (("submit", "echo", "--memory", "1Zi"), 2),
        (("submit", "greet", "--input", '{"name": 7}'), 2),
        (("task", "nonsense"), 1),
        (("agent", "nobody"), 1),
        (("cordon", "nobody"), 1),
    ):
        done = running.run(*argv)
        assert (done.returncode, done.stdout) == (code, ""), argv
        assert done.stderr.startswith("muster: "), argv
        assert done.stderr.count("\n") == 1, argv


def test_agents_are_cordoned_and_freed(running: Cli) -> None:
    agents = running.json("agents")["items"]
    assert [agent["id"] for agent in agents] == ["agent-1", "agent-2"]
    assert {agent["capacity"]["memory"] for agent in agents} == {"512Mi"}
    running.ok("cordon", "agent-1")
    eventually(lambda: running.json("agent", "agent-1")["state"] == "CORDONED")
    ids = [running.ok("submit", "echo").strip() for _ in range(4)]
    for ident in ids:
        running.ok("result", ident, "--wait")
        assert running.json("task", ident)["agent"] == "agent-2"
    running.ok("uncordon", "agent-1")
    eventually(lambda: running.json("agent", "agent-1")["state"] == "READY")


def test_status_events_and_keys(running: Cli) -> None:
    running.ok("submit", "echo", "--wait")
    assert running.json("status")["leader"]

    def kinds() -> set[str]:
        return {json.loads(line)["kind"] for line in running.ok("events", "--json").splitlines()}

    # It ends when nothing has come for 2 s: on a machine that stalls that may be early.
    eventually(lambda: "task.changed" in kinds())
    key = running.ok("keys", "create", "--role", "viewer").strip()
    viewer = {**running.environ, "MUSTER_API_KEY": key}
    assert exit_code(viewer, "status") == 0
    assert exit_code(viewer, "submit", "echo") == 1
    running.ok("keys", "revoke", key.split("_")[1])
    # Other gateways learn of it within 2 s, this one at once.
    assert exit_code(viewer, "status") == 1


def exit_code(environ: dict[str, str], *argv: str) -> int:
    done = subprocess.run(
        [MUSTER, *argv], env=environ, capture_output=True, timeout=150, check=False
    )
    return done.returncode


def test_the_process_that_forks_all_others_has_no_grpc(running: Cli) -> None:
    """With gRPC at work in it, a fork would now and then abort the child, or hang both."""
    parent = running.processes()[0]
    assert "grpc" not in Path(f"/proc/{parent.pid}/maps").read_text()


def test_tables_fit_80_columns(running: Cli) -> None:
    running.ok("submit", "echo", "--wait")
    for command in ("tasks", "agents", "status"):
        shown = on_terminal(running, command, columns=80)
        assert max(map(len, shown.splitlines())) <= 80, command
        assert "agent-" in shown or command == "status"


def on_terminal(cli: Cli, *argv: str, columns: int) -> str:
    """What a command writes on a terminal of that width, without colours."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environ = {n: v for n, v in cli.environ.items() if n != "COLUMNS"} | {"TERM": "dumb"}
    with subprocess.Popen([MUSTER, *argv], env=environ, stdin=slave, stdout=slave) as process:
        os.close(slave)
        pieces = []
        # At the end of its process a terminal answers with EIO.
        with contextlib.suppress(OSError):
            while piece := os.read(master, 65536):
                pieces.append(piece)
        assert process.wait(HANG_S) == 0
    os.close(master)
    return b"".join(pieces).decode()


def test_a_second_up_continues_where_it_was(cli: Cli) -> None:
    first = cli.up("--agents", "1")
    done_id = cli.ok("submit", "echo", "--input", "1").strip()
    cli.ok("result", done_id, "--wait")
    waiting_id = cli.ok("submit", "later").strip()
    processes = cli.processes()
    cli.ok("down", "--state-dir", str(cli.state))
    assert alive(processes) == []

    gone = cli.run("status")
    assert gone.returncode == 3
    assert "is not running" in gone.stderr

    second = cli.up("--agents", "1")
    assert (second["url"], second["api_key"]) == (first["url"], first["api_key"])
    assert json.loads(cli.ok("result", done_id)) == 1
    assert cli.json("task", waiting_id)["state"] == "PENDING"
    assert json.loads(cli.ok("submit", "echo", "--input", "2", "--wait")) == 2


def test_kill_9_of_the_parent_leaves_nothing_and_up_continues(cli: Cli) -> None:
    cli.up("--agents", "1")
    argv = {"argv": ["sleep", "600"]}
    ident = cli.ok("submit", "command", "--input", json.dumps(argv)).strip()
    eventually(lambda: cli.json("task", ident)["state"] == "RUNNING")
    processes: list[psutil.Process] = []

    def all_are_there() -> bool:
        processes[:] = cli.processes()
        return any("sleep" in process.name() for process in alive(processes))

    eventually(all_are_there)
    processes[0].kill()
    eventually(lambda: alive(processes) == [])
    cli.up("--agents", "1")
    cli.ok("cancel", ident)
    eventually(lambda: cli.json("task", ident)["state"] == "CANCELLED")


def test_a_second_up_beside_the_first_is_refused(running: Cli) -> None:
    done = running.run("up", "--state-dir", str(running.state))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "already" in done.stderr


def test_a_port_that_is_taken_is_named(cli: Cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = cli.run("up", "--state-dir", str(cli.state), "--port", port)
    assert done.returncode == 1
    assert port in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"), [("import nothing_like_this", "nothing_like_this"), ("x = (", "SyntaxError")]
)
@pytest.mark.parametrize("as_path", [True, False])
def test_skills_that_do_not_import_end_up(cli: Cli, text: str, said: str, as_path: bool) -> None:
    path = cli.folder / "broken_skills.py"
    path.write_text(text)
    source = str(path) if as_path else "broken_skills"
    done = cli.run("up", "--state-dir", str(cli.state), "--agents", "1", "--skills", source)
    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("muster: ")
    assert "broken_skills" in last
    assert said in last
    assert "no cluster runs" in cli.ok("down", "--state-dir", str(cli.state))


def test_foreground_ends_in_order_on_ctrl_c(cli: Cli) -> None:
    with subprocess.Popen(
        [
            MUSTER,
            *("up", "--json", "--agents", "1", "--state-dir", str(cli.state)),
        ],
        env=cli.environ,
        cwd=cli.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["pid"] == process.pid
        processes = cli.processes()
        process.send_signal(signal.SIGINT)
        assert process.wait(HANG_S) == 0
        assert process.stdout.read() == ""
        assert process.stderr.read() == ""
    assert alive(processes) == []
