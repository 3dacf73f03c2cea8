"""The few REST calls that the demo makes, each repeated until the cluster answers again."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from examples.smart_manufacturing.cluster import DemoCluster

# A whole cluster that was killed is back within seconds; longer silence is a failure.
GIVE_UP_AFTER_S = 90.0
CALL_TIMEOUT_S = 15.0
# How long one gathering call waits for results that are not there yet.
GATHER_WAIT_S = 2.0
_PAUSE_S = 0.25
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class RestFailed(Exception):
    """The cluster refused a request or did not answer for too long."""


class Rest:
    """A client of one cluster. `retries` counts the calls that had to be repeated."""

    def __init__(self, cluster: DemoCluster) -> None:
        self.retries = 0
        self._cluster = cluster
        self._http = httpx.Client(timeout=CALL_TIMEOUT_S, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The answer's JSON. Repeats what may be repeated; every call here may."""
        give_up = time.monotonic() + GIVE_UP_AFTER_S
        while True:
            try:
                response = self._http.request(
                    method,
                    self._cluster.url + path,
                    json=body,
                    params=params,
                    headers={**self._authorization(), **(headers or {})},
                )
                return _accepted(response).json()
            except (httpx.TransportError, _TryAgainError) as error:
                self._pause(give_up, error)

    def all_items(self, path: str, params: Mapping[str, str | int]) -> list[dict[str, Any]]:
        """A whole listing, page after page."""
        items: list[dict[str, Any]] = []
        cursor: dict[str, str | int] = {}
        while True:
            page = self.call("GET", path, params={**params, **cursor})
            items.extend(page["items"])
            if not page.get("next"):
                return items
            cursor = {"cursor": page["next"]}

    def results(self, ids: list[str]) -> Iterator[dict[str, Any]]:
        """Each id's result, as it comes, until all have ended."""
        open_ids = dict.fromkeys(ids)
        give_up = time.monotonic() + GIVE_UP_AFTER_S
        while open_ids:
            request = {"ids": list(open_ids), "wait": f"{GATHER_WAIT_S:g}s"}
            try:
                for line in self._lines("/v1/results", request):
                    if "id" in line and line["id"] in open_ids:
                        del open_ids[line["id"]]
                        give_up = time.monotonic() + GIVE_UP_AFTER_S
                        yield line
            except (httpx.TransportError, _TryAgainError) as error:
                self._pause(give_up, error)
            if open_ids and time.monotonic() > give_up:
                raise RestFailed(f"{len(open_ids)} tasks did not end in {GIVE_UP_AFTER_S:g} s")

    def _lines(self, path: str, body: Any) -> Iterator[dict[str, Any]]:
        with self._http.stream(
            "POST", self._cluster.url + path, json=body, headers=self._authorization()
        ) as response:
            if response.status_code != httpx.codes.OK:
                response.read()
            for line in _accepted(response).iter_lines():
                try:
                    item = json.loads(line)
                except ValueError:
                    # The gateway died in the middle of a line.
                    raise _TryAgainError("half a line") from None
                if "open" in item and "error" in item:
                    raise _TryAgainError(str(item["error"]))
                yield item

    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._cluster.api_key}"}

    def _pause(self, give_up: float, error: Exception) -> None:
        self.retries += 1
        if time.monotonic() > give_up:
            raise RestFailed(f"the cluster did not answer for {GIVE_UP_AFTER_S:g} s: {error}")
        if not self._cluster.revive():
            time.sleep(_PAUSE_S * (0.5 + random.random()))  # noqa: S311 - jitter, no secret


class _TryAgainError(Exception):
    """An answer that says: later."""


def _accepted(response: httpx.Response) -> httpx.Response:
    if response.status_code in _TRY_AGAIN:
        raise _TryAgainError(f"{response.status_code} {response.text[:200]}")
    if response.is_error:
        raise RestFailed(f"{response.request.url.path}: {response.status_code} {response.text}")
    return response
