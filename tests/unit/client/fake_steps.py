"""Performs a call's steps against a table of answers, in virtual time."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from muster.client.exchange import Broken, Close, Emit, Op, Pause, Read, Reply, Send, Settings

Answer = Reply | Broken | Callable[[Send], Reply | Broken]
JSON = {"content-type": "application/json"}
UNSENT = Broken("connection refused", arrived=False)
LOST = Broken("the server hung up")


def reply(body: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(status, {**JSON, **headers}, json.dumps(body).encode())


def problem(status: int, detail: str = "no", **more: Any) -> Reply:
    headers = {"retry-after": more.pop("retry_after")} if "retry_after" in more else {}
    return reply({"title": "T", "status": status, "detail": detail, **more}, status, **headers)


@dataclass
class World:
    """`answers` are given to Send steps in turn, the last one again and again."""

    answers: list[Answer] = field(default_factory=list)
    pieces: Iterator[bytes | Broken | None] = field(default_factory=lambda: iter(()))
    now_s: float = 1_000.0
    chance: float = 1.0
    sent: list[Send] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    emitted: list[Any] = field(default_factory=list)

    def settings(
        self, timeout_s: float = 30.0, retry_for_s: float = 30.0, gateways: int = 1
    ) -> Settings:
        numbers = itertools.count(1)
        return Settings(
            timeout_s,
            retry_for_s,
            lambda: self.now_s,
            lambda: self.chance,
            lambda: f"key-{next(numbers)}",
            gateways,
        )

    def run(self, op: Op[Any]) -> Any:
        answer: Any = None
        while True:
            try:
                step = op.send(answer)
            except StopIteration as end:
                return end.value
            answer = self._perform(step)

    def _perform(self, step: Any) -> Any:
        match step:
            case Send():
                self.sent.append(step)
                found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                return found(step) if callable(found) else found
            case Read():
                return next(self.pieces, None)
            case Pause():
                self.pauses.append(step.seconds)
                self.now_s += step.seconds
            case Emit():
                self.emitted.append(step.item)
            case Close():
                self.pieces = iter(())
        return None

    @property
    def keys(self) -> set[str]:
        return {s.request.headers.get("Idempotency-Key", "") for s in self.sent}
