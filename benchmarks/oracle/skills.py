"""What the agents of a disturbed cluster run: each execution leaves its marks in a side file.

Imported by the agents, so it imports nothing of this package.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

from muster.skill import AsyncContext, Context, skill

_TICK_S = 0.1


def _mark(side: str, task: str, attempt: int, phase: str, token: str) -> None:
    """One line by one write: appends of this size to a local file do not mix."""
    line = f"{task} {attempt} {phase} {time.monotonic():.6f} {os.getpid()} {token}\n"
    fd = os.open(side, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def _token(skill: str) -> str:
    return f"{skill}-{os.urandom(8).hex()}"


@skill
def work(n: int, ms: float, side: str, ctx: Context) -> dict[str, Any]:
    """Sleeps in a process of its own."""
    token = _token("work")
    _mark(side, ctx.task_id, ctx.attempt, "begin", token)
    time.sleep(ms / 1000)
    _mark(side, ctx.task_id, ctx.attempt, "end", token)
    return {"n": n, "task": ctx.task_id, "attempt": ctx.attempt, "token": token}


@skill
async def wait(n: int, ms: float, side: str, ctx: AsyncContext) -> dict[str, Any]:
    """Sleeps beside others in one process."""
    token = _token("wait")
    _mark(side, ctx.task_id, ctx.attempt, "begin", token)
    await asyncio.sleep(ms / 1000)
    _mark(side, ctx.task_id, ctx.attempt, "end", token)
    return {"n": n, "task": ctx.task_id, "attempt": ctx.attempt, "token": token}


@skill
def pulse(n: int, ms: float, side: str, ctx: Context) -> dict[str, Any]:
    """Leaves a mark every moment, so that it is known until when it ran though it is killed."""
    token = _token("pulse")
    _mark(side, ctx.task_id, ctx.attempt, "begin", token)
    until_s = time.monotonic() + ms / 1000
    while time.monotonic() < until_s:
        time.sleep(_TICK_S)
        _mark(side, ctx.task_id, ctx.attempt, "tick", token)
    _mark(side, ctx.task_id, ctx.attempt, "end", token)
    return {"n": n, "task": ctx.task_id, "attempt": ctx.attempt, "token": token}


@skill
async def pulse_beside(n: int, ms: float, side: str, ctx: AsyncContext) -> dict[str, Any]:
    """As `pulse`, beside others in one process."""
    token = _token("pulse")
    _mark(side, ctx.task_id, ctx.attempt, "begin", token)
    until_s = time.monotonic() + ms / 1000
    while time.monotonic() < until_s:
        await asyncio.sleep(_TICK_S)
        _mark(side, ctx.task_id, ctx.attempt, "tick", token)
    _mark(side, ctx.task_id, ctx.attempt, "end", token)
    return {"n": n, "task": ctx.task_id, "attempt": ctx.attempt, "token": token}


@skill
def brood(n: int, ms: float, side: str, ctx: Context) -> dict[str, Any]:
    """Sleeps while a child process sleeps far longer."""
    token = _token("brood")
    _mark(side, ctx.task_id, ctx.attempt, "begin", token)
    os.posix_spawn("/bin/sleep", ["sleep", "300"], {"PATH": "/bin:/usr/bin"})
    time.sleep(ms / 1000)
    _mark(side, ctx.task_id, ctx.attempt, "end", token)
    return {"n": n, "task": ctx.task_id, "attempt": ctx.attempt, "token": token}


@skill
def poison(n: int, ms: float, side: str, ctx: Context) -> None:
    """Kills the runtime of the agent that runs it."""
    _mark(side, ctx.task_id, ctx.attempt, "begin", f"poison{n}")
    pid = os.getpid()
    while pid > 1:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"muster.agent.runtime_process" in command:
            os.kill(pid, signal.SIGKILL)
            break
        # "pid (name) state parent …", and the name may hold spaces and brackets.
        stat = Path(f"/proc/{pid}/stat").read_text()
        pid = int(stat.rpartition(")")[2].split()[1])
    time.sleep(ms / 1000 + 60)
