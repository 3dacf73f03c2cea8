"""A client process that sends submissions, waiting for answers or not.

    python -m benchmarks.oracle.flood SPEC

SPEC is JSON: `host`, `port`, `api_key`, `run` (a label), `side` (a path), `name` (unique),
`tasks` (of each submission), `seconds`, and either `callers` (so many send one after another, each
when its last was answered) or `per_s` (arrivals of a Poisson process, whatever becomes of those
before; over `connections` at most). A request that is refused with a time to come back is sent
again then, with the same key. The result is printed as JSON, see `Told`.
"""

from __future__ import annotations

import heapq
import json
import random
import re
import resource
import select
import socket
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from benchmarks.oracle.books import LABEL, REQUEST

# Beyond it an arrival is not sent, and counted. Two processes have more than a gateway takes on.
MAX_CONNECTIONS = 4_000
_SPARE_DESCRIPTORS = 64
# A client that waits for longer has given up, and sends again.
ANSWER_S = 10.0
_AGAIN = frozenset({429, 502, 503, 504})
# Answers of requests that were sent last.
_LINGER_S = 2.0
# An arrival and its answer take turns by so many, however far behind the clock either is.
_AT_ONCE = 64
_LOOK_S = 0.1
# A repeat that finds no connection free looks again after this.
_NO_ROOM_S = 0.1
# Where a task's number goes.
_HERE = "number"
# Where the key of its submission goes.
_KEY = "submission"
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_PAUSE = re.compile(rb"\r\nretry-after: *([0-9]+)", re.IGNORECASE)


@dataclass(slots=True)
class Told:
    """`accepted`: key, ids, when sent first and when answered (CLOCK_MONOTONIC seconds).

    `sent` counts requests without their repeats, `repeated` those. `unsent`: arrivals without a
    free connection. `statuses`: answers by status; 0 is none in time. `bare`: refusals that name
    no time to come back. `unknown`: key and time of requests whose last answer did not come in
    time, so that nobody knows whether they were taken. `slowest_s`: of all answers, also of
    those that did not come; `slowest_taken_s`: of those that took the tasks, since that try was
    sent. `cpu_s`: processor time of the process.
    """

    accepted: list[tuple[str, list[str], float, float]] = field(default_factory=list)
    unknown: list[tuple[str, float]] = field(default_factory=list)
    sent: int = 0
    repeated: int = 0
    unsent: int = 0
    bare: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0
    slowest_taken_s: float = 0.0
    cpu_s: float = 0.0


@dataclass(slots=True)
class _Request:
    """One submission with its repeats; `unknown`: an earlier try got no answer."""

    key: str
    wire: bytes
    first_s: float
    unknown: bool = False


class _Connection:
    """One request at a time."""

    __slots__ = ("buffer", "request", "rest", "sent_s", "sock", "turn")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""
        self.request: _Request | None = None
        # What the kernel has not taken yet: all of it while the connection is being made.
        self.rest = b""
        self.sent_s = 0.0
        self.turn = 0


class Flood:
    """All requests of one process: a bare loop over epoll, as cheap as Python can be.

    The generator shares a machine with what it measures, and asyncio would need a core for a
    few thousand requests per second.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.told = Told()
        self._poll = select.epoll()
        self._by_fd: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._callers = spec.get("callers")
        self._most = spec.get("connections", MAX_CONNECTIONS)
        self._ends_s = time.monotonic() + spec["seconds"]
        self._chance = random.Random(spec["name"])
        self._waiting: list[tuple[float, int, _Request]] = []
        # When each request under way is given up; in order, as all wait equally long.
        self._deadlines: deque[tuple[float, _Connection, int]] = deque()
        self._under_way = 0
        task = {
            "skill": "wait",
            "input": {"ms": 0, "side": spec["side"], "n": _HERE},
            "labels": {LABEL: spec["run"], REQUEST: _KEY},
        }
        self._before, self._between, self._after = re.split(
            f"{json.dumps(_HERE)}|{_KEY}", json.dumps(task)
        )

    def run(self) -> Told:
        due_s = time.monotonic()
        for _ in range(self._callers or 0):
            self._arrive()
        while (now_s := time.monotonic()) < self._ends_s or self._under_way:
            if now_s > self._ends_s + ANSWER_S + _LINGER_S:
                break
            if self._callers is None:
                for _ in range(_AT_ONCE):
                    if due_s > min(now_s, self._ends_s):
                        break
                    due_s += self._chance.expovariate(self.spec["per_s"])
                    self._arrive()
            self._send_again(now_s)
            self._give_up(now_s)
            self._take_answers(self._pause_s(due_s, now_s))
        for connection in self._by_fd.values():
            if connection.request is not None:
                self._ended(connection.request, unknown=True)
        for _, _, request in self._waiting:
            self._ended(request)
        self.told.cpu_s = time.process_time()
        return self.told

    def _pause_s(self, due_s: float, now_s: float) -> float:
        next_s = now_s + _LOOK_S
        if self._callers is None and due_s < self._ends_s:
            next_s = min(next_s, due_s)
        if self._waiting:
            next_s = min(next_s, self._waiting[0][0])
        return max(0.0, next_s - now_s)

    def _arrive(self) -> None:
        if not self._idle and len(self._by_fd) >= self._most:
            self.told.unsent += 1
            return
        number = self.told.sent
        self.told.sent += 1
        key = f"{self.spec['name']}-{number}"
        body = self._body(number, key)
        self._begin(_Request(key, self._wire(key, body), time.monotonic()))

    def _send_again(self, now_s: float) -> None:
        while self._waiting and self._waiting[0][0] <= now_s:
            _, number, request = heapq.heappop(self._waiting)
            if self._idle or len(self._by_fd) < self._most:
                self.told.repeated += 1
                self._begin(request)
            else:
                heapq.heappush(self._waiting, (now_s + _NO_ROOM_S, number, request))

    def _begin(self, request: _Request) -> None:
        self._under_way += 1
        connection = self._idle.pop() if self._idle else self._dial()
        connection.request, connection.sent_s = request, time.monotonic()
        connection.turn += 1
        self._deadlines.append((connection.sent_s + ANSWER_S, connection, connection.turn))
        if connection.rest:
            # It is being made; what was meant for it is sent then.
            connection.rest = request.wire
            return
        connection.rest = request.wire
        self._write(connection)

    def _dial(self) -> _Connection:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(sock)
        sock.connect_ex((self.spec["host"], self.spec["port"]))
        connection.rest = b"-"
        self._by_fd[sock.fileno()] = connection
        self._poll.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
        return connection

    def _write(self, connection: _Connection) -> None:
        try:
            sent = connection.sock.send(connection.rest)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lost(connection)
            return
        connection.rest = connection.rest[sent:]
        if connection.rest:
            wanted = select.EPOLLIN | select.EPOLLOUT
            self._poll.modify(connection.sock.fileno(), wanted)

    def _take_answers(self, wait_s: float) -> None:
        for fd, event in self._poll.poll(wait_s, _AT_ONCE):
            connection = self._by_fd.get(fd)
            if connection is None:
                continue
            if event & select.EPOLLOUT and connection.rest:
                self._poll.modify(fd, select.EPOLLIN)
                self._write(connection)
            if event & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                self._read(connection)

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost(connection)
            return
        connection.buffer += data
        head, gap, body = connection.buffer.partition(b"\r\n\r\n")
        if not gap:
            return
        length = _LENGTH.search(head)
        if length is not None and len(body) < int(length[1]):
            return
        connection.buffer = b""
        request, connection.request = connection.request, None
        if request is None:
            return
        self._under_way -= 1
        self._idle.append(connection)
        pause = _PAUSE.search(head)
        pause_s = float(pause[1]) if pause is not None else -1.0
        self._answered(request, connection.sent_s, int(head[9:12]), pause_s, body)

    def _give_up(self, now_s: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, connection, turn = self._deadlines.popleft()
            if connection.turn == turn and connection.request is not None:
                self._lost(connection)

    def _lost(self, connection: _Connection) -> None:
        """No answer will come on it any more."""
        fd = connection.sock.fileno()
        if self._by_fd.pop(fd, None) is None:
            return
        self._poll.unregister(fd)
        connection.sock.close()
        request, connection.request = connection.request, None
        if request is None:
            self._idle.remove(connection)
            return
        self._under_way -= 1
        self._answered(request, connection.sent_s, 0, -1.0, b"")

    def _answered(
        self, request: _Request, sent_s: float, status: int, pause_s: float, body: bytes
    ) -> None:
        now_s = time.monotonic()
        told = self.told
        told.statuses[status] += 1
        told.slowest_s = max(told.slowest_s, now_s - sent_s)
        if status == 202:
            told.slowest_taken_s = max(told.slowest_taken_s, now_s - sent_s)
            ids = json.loads(body)["ids"]
            told.accepted.append((request.key, ids, request.first_s, now_s))
            self._next()
            return
        if status and pause_s < 0:
            told.bare += 1
        # One that was unanswered once may have been taken then.
        request.unknown = request.unknown or status == 0
        again_s = now_s + max(pause_s, 0.1) * self._chance.uniform(1.0, 1.2)
        if status not in (*_AGAIN, 0) or again_s > self._ends_s:
            self._ended(request)
            self._next()
            return
        heapq.heappush(self._waiting, (again_s, sum(told.statuses.values()), request))

    def _next(self) -> None:
        """A caller sends its next when the last is done with."""
        if self._callers is not None and time.monotonic() < self._ends_s:
            self._arrive()

    def _ended(self, request: _Request, *, unknown: bool = False) -> None:
        if unknown or request.unknown:
            self.told.unknown.append((request.key, request.first_s))

    def _body(self, number: int, key: str) -> bytes:
        """Always a batch. Written by hand: only number and key differ."""
        first = number * self.spec["tasks"]
        numbers = range(first, first + self.spec["tasks"])
        after = f"{self._between}{key}{self._after}"
        tasks = ",".join([f"{self._before}{n}{after}" for n in numbers])
        return f'{{"tasks":[{tasks}]}}'.encode()

    def _wire(self, key: str, body: bytes) -> bytes:
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
    told = Flood(json.loads(sys.argv[1])).run()
    print(json.dumps(asdict(replace(told, statuses=Counter())) | {"statuses": told.statuses}))


if __name__ == "__main__":
    main()
