"""A client process that sends submissions of one task each, waiting for answers or not.

    python -m benchmarks.oracle.flood SPEC

SPEC is JSON: `host`, `port`, `api_key`, `run` (a label), `side` (a path), `name` (unique),
`seconds`, and either `callers` (so many send one after another, each when its last was answered)
or `per_s` (arrivals of a Poisson process, whatever becomes of those before; over `connections` at
most). A request that is
refused with a time to come back is sent again then, with the same key. The result is printed as
JSON, see `Told`.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

# Beyond it an arrival is not sent, and counted. Two processes have more than a gateway takes on.
MAX_CONNECTIONS = 4_000
_SPARE_DESCRIPTORS = 64
# A client that waits for longer has given up, and sends again.
ANSWER_S = 10.0
_AGAIN = frozenset({429, 502, 503, 504})
# Answers of requests that were sent last.
_LINGER_S = 2.0


@dataclass(slots=True)
class Told:
    """`accepted`: key, id, when sent first and when answered (CLOCK_MONOTONIC seconds).

    `sent` counts requests without their repeats, `repeated` those. `unsent`: arrivals without a
    free connection. `statuses`: answers by status; 0 is none in time. `bare`: refusals that name
    no time to come back. `unknown`: key, body and time of requests whose last answer did not come
    in time, so that nobody knows whether they were taken.
    """

    accepted: list[tuple[str, str, float, float]] = field(default_factory=list)
    unknown: list[tuple[str, str, float]] = field(default_factory=list)
    sent: int = 0
    repeated: int = 0
    unsent: int = 0
    bare: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, float, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    async def ask(self, request: bytes) -> tuple[int, float, bytes]:
        """Status, the pause that is asked for (negative: none) and the body."""
        if self.transport is None or self.transport.is_closing():
            raise ConnectionError
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        async with asyncio.timeout(ANSWER_S):
            return await self._answer

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, gap, body = self._buffer.partition(b"\r\n\r\n")
        if not gap:
            return
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) < int(headers.get(b"content-length", b"0")):
            return
        self._buffer = b""
        if self._answer is not None and not self._answer.done():
            pause_s = float(headers.get(b"retry-after", b"-1"))
            self._answer.set_result((int(head[9:12]), pause_s, body))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("closed"))

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Flood:
    """All requests of one process."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.told = Told()
        self._idle: list[_Connection] = []
        self._open = 0
        self._most = spec.get("connections", MAX_CONNECTIONS)
        self._numbers = iter(range(10_000_000))
        self._ends_s = time.monotonic() + spec["seconds"]
        self._chance = random.Random(spec["name"])
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> Told:
        if "callers" in self.spec:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.spec["callers"]):
                    group.create_task(self._calling())
            return self.told
        due_s = time.monotonic()
        while max(due_s, time.monotonic()) < self._ends_s:
            due_s += self._chance.expovariate(self.spec["per_s"])
            if (wait_s := due_s - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            elif len(self._tasks) % 16 == 0:
                await asyncio.sleep(0)
            if not self._idle and self._open >= self._most:
                self.told.unsent += 1
                await asyncio.sleep(0)
                continue
            task = asyncio.create_task(self._submit())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=ANSWER_S + _LINGER_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return self.told

    async def _calling(self) -> None:
        while time.monotonic() < self._ends_s:
            await self._submit()

    async def _submit(self) -> None:
        """One task, sent again as often as the cluster asks and there is time."""
        number = next(self._numbers)
        key = f"{self.spec['name']}-{number}"
        body_sent = self._body(number)
        request = self._request(key, body_sent)
        unknown = False
        first_s = time.monotonic()
        self.told.sent += 1
        while True:
            sent_s = time.monotonic()
            try:
                status, pause_s, body = await self._ask(request)
            except asyncio.CancelledError:
                self.told.unknown.append((key, body_sent.decode(), first_s))
                raise
            self.told.statuses[status] += 1
            self.told.slowest_s = max(self.told.slowest_s, time.monotonic() - sent_s)
            if status == 202:
                ident = json.loads(body)["id"]
                self.told.accepted.append((key, ident, first_s, time.monotonic()))
                return
            if status and pause_s < 0:
                self.told.bare += 1
            pause_s = max(pause_s, 0.1) * self._chance.uniform(1.0, 1.2)
            # One that was unanswered once may have been taken then.
            unknown = unknown or status == 0
            if status not in (*_AGAIN, 0) or time.monotonic() + pause_s > self._ends_s:
                if unknown:
                    self.told.unknown.append((key, body_sent.decode(), first_s))
                return
            await asyncio.sleep(pause_s)
            self.told.repeated += 1

    async def _ask(self, request: bytes) -> tuple[int, float, bytes]:
        connection = None
        try:
            connection = self._idle.pop() if self._idle else await self._dial()
            answer = await connection.ask(request)
        except (OSError, TimeoutError):
            if connection is not None:
                connection.close()
                self._open -= 1
            return 0, -1.0, b""
        self._idle.append(connection)
        return answer

    async def _dial(self) -> _Connection:
        self._open += 1
        try:
            async with asyncio.timeout(ANSWER_S):
                _, made = await asyncio.get_running_loop().create_connection(
                    _Connection, self.spec["host"], self.spec["port"]
                )
        except (OSError, TimeoutError):
            self._open -= 1
            raise
        return made

    def _body(self, number: int) -> bytes:
        task = {
            "skill": "wait",
            "input": {"n": number, "ms": 0, "side": self.spec["side"]},
            "labels": {"oracle": self.spec["run"]},
        }
        return json.dumps(task).encode()

    def _request(self, key: str, body: bytes) -> bytes:
        head = (
            f"POST /v1/tasks HTTP/1.1\r\nHost: {self.spec['host']}\r\n"
            f"Authorization: Bearer {self.spec['api_key']}\r\nIdempotency-Key: {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def main() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + _SPARE_DESCRIPTORS
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    told = asyncio.run(Flood(json.loads(sys.argv[1])).run())
    print(json.dumps(asdict(replace(told, statuses=Counter())) | {"statuses": told.statuses}))


if __name__ == "__main__":
    main()
