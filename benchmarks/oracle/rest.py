"""The oracle's own REST client: it repeats until it is answered, always with the same key."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

CALL_TIMEOUT_S = 10.0
_PAUSE_S = 0.05
# A cluster that accepts nothing for this long is lost; the run says so.
_GIVE_UP_S = 90.0
_RETRIED = frozenset({429, 500, 502, 503, 504})


class Refused(Exception):
    """No 2xx answer; `status` is 0 when there was none at all."""

    def __init__(self, status: int, why: str) -> None:
        self.status, self.why = status, why
        super().__init__(f"{status}: {why}")


@dataclass(slots=True)
class Attempts:
    """Of submissions: when each was accepted, and those that were refused (time, why)."""

    accepted_s: list[float] = field(default_factory=list)
    refused: list[tuple[float, str]] = field(default_factory=list)

    def longest_gap_s(self, from_s: float, to_s: float) -> float:
        """The longest time without an accepted submission; both ends count."""
        inside = sorted(at for at in list(self.accepted_s) if from_s <= at <= to_s)
        points = [from_s, *inside, to_s]
        return max(b - a for a, b in pairwise(points))


class Rest:
    """One keep-alive connection; for one thread."""

    def __init__(self, url: str, api_key: str, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._netloc = urlsplit(url).netloc
        self._timeout_s = timeout_s
        self._headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
        self._connection: http.client.HTTPConnection | None = None

    def call(
        self, method: str, path: str, body: bytes | None = None, key: str = "", wait_s: float = 0.0
    ) -> bytes:
        """The body of a 2xx answer. Raises Refused. `wait_s`: how long the answer may wait."""
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection(self._netloc)
            self._connection.timeout = self._timeout_s + wait_s
            if self._connection.sock is not None:
                self._connection.sock.settimeout(self._connection.timeout)
            headers = self._headers | ({"Idempotency-Key": key} if key else {})
            self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Refused(0, f"{type(error).__name__}: {error}") from error
        if not 200 <= response.status < 300:
            raise Refused(response.status, answer[:300].decode(errors="replace"))
        return answer

    def get(self, path: str) -> Any:
        """JSON; repeated while the cluster is disturbed."""
        return json.loads(self.persist("GET", path))

    def persist(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        wait_s: float = 0.0,
        *,
        key: str = "",
    ) -> bytes:
        """As `call`, repeated for as long as that may help."""
        give_up_s = time.monotonic() + _GIVE_UP_S
        while True:
            try:
                return self.call(method, path, body, key, wait_s)
            except Refused as refused:
                hopeless = refused.status and refused.status not in _RETRIED
                if hopeless or time.monotonic() > give_up_s:
                    raise
            time.sleep(_PAUSE_S)

    def submit(
        self, tasks: list[dict[str, Any]], key: str, attempts: Attempts, stop: threading.Event
    ) -> tuple[list[str], float] | None:
        """Ids, and when they were sent first; None when `stop` was set or it never came.

        Sent again with the same key until it is answered.
        """
        body = json.dumps({"tasks": tasks}).encode()
        sent_s = time.monotonic()
        while True:
            try:
                answer = self.call("POST", "/v1/tasks", body, key)
            except Refused as refused:
                attempts.refused.append((time.monotonic(), str(refused)))
                if refused.status and refused.status not in _RETRIED:
                    raise
                if time.monotonic() - sent_s > _GIVE_UP_S:
                    return None
                if stop.wait(_PAUSE_S) and time.monotonic() - sent_s > _GIVE_UP_S:
                    return None
            else:
                attempts.accepted_s.append(time.monotonic())
                return json.loads(answer)["ids"], sent_s

    def tasks_labelled(self, label: str) -> Iterator[dict[str, Any]]:
        """All tasks with this `key=value`."""
        cursor = ""
        while True:
            page = self.get(f"/v1/tasks?label={label}&limit=1000{cursor}")
            yield from page["items"]
            if not page["next"]:
                return
            cursor = f"&cursor={page['next']}"

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
