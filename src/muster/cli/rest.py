"""The REST interface as the commands use it: repeats what may be repeated, tells errors plainly."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from muster.cli.failure import EXIT_UNREACHABLE, Failure, Refused
from muster.client.gateways import PASSING, Gateways, patience_s
from muster.client.sse import LineSplitter
from muster.client.transport import is_near

# A gateway that was killed is back within a few seconds; then a person wants an answer.
RETRY_FOR_S = 8.0
# Time for two gateways that have stopped, where there are several.
_SEVERAL_RETRY_FOR_S = 30.0
_FIRST_DELAY_S = 0.1
_MAX_DELAY_S = 1.0
_CONNECT_S = 5.0
# Of one long-poll; the second, where there is another gateway to turn to when one has stopped.
_LONG_POLL_S = 60
_SHARED_POLL_S = 5
# Above the longest long-poll that is asked for here.
_READ_S = 90.0
# An event stream sends comments in between; a silent one is dead.
_STREAM_READ_S = 120.0
_MAX_REASON_CHARS = 500

_TRY_AGAIN = frozenset({429, 502, 503, 504})
_random = random.SystemRandom()


class Rest:
    """One cluster. Every request here may be repeated, or carries what makes it so.

    `urls` are its gateways; the next one is asked when one cannot be reached.

    `gone` is asked when nobody answers: a sentence when it is certain that nobody will.
    """

    def __init__(
        self,
        urls: Sequence[str],
        api_key: str,
        *,
        transport: httpx.BaseTransport | None = None,
        gone: Callable[[], str | None] = lambda: None,
        retry_for_s: float | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gateways, self._clock = Gateways(urls), clock
        self._several = len(self._gateways) > 1
        self._gone, self.sleep = gone, sleep
        usual_s = _SEVERAL_RETRY_FOR_S if self._several else RETRY_FOR_S
        self._retry_for_s = usual_s if retry_for_s is None else retry_for_s
        try:
            self._http = httpx.Client(
                headers={"Authorization": f"Bearer {api_key}", "User-Agent": "muster-cli"},
                timeout=httpx.Timeout(_READ_S, connect=_CONNECT_S),
                transport=transport,
                # A proxy for the outside world must not see the key of a cluster on this machine.
                trust_env=not is_near(urls),
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise Failure(f"the cluster's URL {self.url!r} is not accepted: {error}") from error

    @property
    def url(self) -> str:
        """The gateway that is spoken to."""
        return self._gateways.url

    @property
    def long_poll(self) -> str:
        """How long one request waits for what may take long, as REST takes it."""
        return f"{_SHARED_POLL_S if self._several else _LONG_POLL_S}s"

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        """The JSON answer to GET. Raises Failure."""
        return self._json(self._send("GET", path, params=params))

    def post(
        self,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, Any] | None = None,
        key: str = "",
        repeatable: bool = True,
        read_s: float = _READ_S,
    ) -> Any:
        """The JSON answer to POST; `key` is the Idempotency-Key. Raises Failure.

        Not `repeatable`: it is sent again only when it certainly has not arrived. `read_s` is how
        long the answer may take.
        """
        headers = {"Idempotency-Key": key} if key else None
        response = self._send(
            "POST",
            path,
            repeatable=repeatable,
            read_s=read_s,
            json=body,
            params=params,
            headers=headers,
        )
        return self._json(response)

    def get_tagged(self, path: str) -> tuple[Any, str]:
        """The JSON answer to GET, and its ETag as it stands. Raises Failure."""
        response = self._send("GET", path)
        return self._json(response), response.headers.get("etag", "")

    def put(self, path: str, body: object, *, if_match: str = "") -> Any:
        """The JSON answer to PUT. Raises Failure; Refused (412) when another has written since."""
        headers = {"If-Match": if_match} if if_match else None
        # With a condition a second try would be refused for the sake of the first.
        repeatable = not if_match
        return self._json(
            self._send("PUT", path, repeatable=repeatable, json=body, headers=headers)
        )

    def delete(self, path: str) -> Any:
        """The JSON answer to DELETE, None when it has no body. Raises Failure."""
        return self._json(self._send("DELETE", path))

    def pages(self, path: str, params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The items of all pages of a list."""
        cursor = ""
        while True:
            page = self.get(path, {**params, **({"cursor": cursor} if cursor else {})})
            yield from page["items"]
            cursor = page.get("next") or ""
            if not cursor:
                return

    @contextmanager
    def lines(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        silence_s: float = _STREAM_READ_S,
    ) -> Iterator[Iterator[str]]:
        """An answer that comes line by line.

        Raises Failure; BrokenStream when it breaks off or is silent for `silence_s`.
        """
        response = self._send(
            method,
            path,
            stream=True,
            read_s=silence_s,
            params=params,
            json=body,
            headers=headers,
        )
        try:
            yield _lines_of(response)
        finally:
            response.close()

    def _json(self, response: httpx.Response) -> Any:
        if not response.content:
            return None
        try:
            return json.loads(response.content)
        except ValueError as error:
            kind = response.headers.get("content-type", "nothing")
            raise Failure(f"{self.url} answers {kind}, not JSON; is it a Muster?") from error

    def _send(
        self,
        method: str,
        path: str,
        *,
        stream: bool = False,
        repeatable: bool = True,
        read_s: float = _READ_S,
        **parts: Any,
    ) -> httpx.Response:
        """`parts` are further arguments of httpx's `build_request`."""
        give_up_s = self._clock() + self._retry_for_s
        others = len(self._gateways) if repeatable else 1
        tries = 0
        while True:
            gateway = self._gateways.url
            silence_s = patience_s(others, read_s, _SHARED_POLL_S, tries)
            timeout = httpx.Timeout(silence_s, connect=_CONNECT_S)
            tries += 1
            bound_s = min(_MAX_DELAY_S, _FIRST_DELAY_S * 2 ** min(tries, 10))
            delay_s = bound_s * _random.random()
            try:
                request = self._http.build_request(method, gateway + path, timeout=timeout, **parts)
                response = self._http.send(request, stream=stream)
            except httpx.UnsupportedProtocol as error:
                raise Failure(f"the cluster's URL {gateway!r} is not accepted: {error}") from error
            except httpx.TransportError as error:
                failure: Failure = self._unreachable(error)
                arrived = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                if self._gone() is not None or (arrived and not repeatable):
                    raise failure from error
                self._gateways.turn_from(gateway)
            else:
                if response.status_code < 400:
                    return response
                response.read()
                failure = _refusal(response)
                if response.status_code not in _TRY_AGAIN:
                    raise failure
                if response.status_code in PASSING:
                    self._gateways.turn_from(gateway)
                delay_s += _retry_after_s(response)
            if self._clock() + delay_s > give_up_s:
                raise failure
            self.sleep(delay_s)

    def _unreachable(self, error: httpx.TransportError) -> Failure:
        gone = self._gone()
        if gone is not None:
            return Failure(gone, EXIT_UNREACHABLE)
        why = str(error) or type(error).__name__
        return Failure(f"the cluster at {self.url} cannot be reached: {why}", EXIT_UNREACHABLE)


class BrokenStream(Failure):
    """A stream of lines broke off; what had come so far is sound."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the connection to the cluster broke off: {why}", EXIT_UNREACHABLE)


def _lines_of(response: httpx.Response) -> Iterator[str]:
    # httpx' own lines end at U+2028 and its like, too, which JSON may hold.
    splitter = LineSplitter()
    try:
        for piece in response.iter_bytes():
            for line in splitter.feed(piece):
                yield line.removesuffix(b"\r").decode("utf-8", "replace")
        if rest := splitter.rest():
            yield rest.decode("utf-8", "replace")
    except httpx.TransportError as error:
        raise BrokenStream(str(error) or type(error).__name__) from error


def _retry_after_s(response: httpx.Response) -> float:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdigit() else 0.0


def _refusal(response: httpx.Response) -> Refused:
    """A problem document (RFC 9457) as one sentence."""
    status = response.status_code
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if isinstance(problem, dict):
        said = problem.get("detail") or problem.get("title")
    else:
        said = response.text.strip()
    sentence = str(said or f"the cluster answers {status} {response.reason_phrase}")
    if status == 500 and isinstance(problem, dict) and problem.get("request_id"):
        sentence += f" ({problem['request_id']})"
    return Refused(" ".join(sentence.split())[:_MAX_REASON_CHARS], status)
