"""The JSON bodies of alerts as pydantic models, for the OpenAPI document; see `documents`."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from muster_gateway.documents import AGENT, AT, Duration, Strict


class Alert(BaseModel):
    """A condition that somebody may have to be told of."""

    fingerprint: str = Field(description="Of rule and labels: the same whenever it comes back.")
    rule: str
    state: Literal["pending", "firing", "resolved"]
    severity: Literal["info", "warning", "critical"]
    labels: dict[str, str]
    summary: str
    value: float | None
    started_at: str | None
    fired_at: str | None
    resolved_at: str | None
    silenced_by: list[str] = Field(description="Ids of silences that hide it now.")


class AlertPage(BaseModel):
    """Some alerts, by fingerprint."""

    items: list[Alert]
    next: str | None


class NewSilence(Strict):
    """Alerts that all matchers match are not told to anybody; exactly one of `duration` and
    `ends_at` is needed."""

    matchers: list[str] = Field(
        min_length=1,
        max_length=16,
        description="NAME=TEXT, !=, =~ or !~ with a regular expression of RE2.",
        examples=[["agent=agent-1"]],
    )
    duration: Duration | None = None
    starts_at: str | None = Field(None, description="Now when left out.", examples=[AT])
    ends_at: str | None = Field(None, examples=[AT])
    comment: str = Field("", max_length=500)


class Silence(BaseModel):
    """A silence; `author` is the id of the key that made it."""

    id: str
    state: Literal["pending", "active", "expired"]
    matchers: list[str]
    starts_at: str | None
    ends_at: str | None
    author: str
    comment: str
    created_at: str | None


class SilencePage(BaseModel):
    """All silences of the tenant."""

    items: list[Silence]
    next: str | None


ALERT: Final[dict[str, Any]] = {
    "fingerprint": "3f1c0d9a5b7e2468",
    "rule": "agent_down",
    "state": "firing",
    "severity": "critical",
    "labels": {"agent": AGENT},
    "summary": "agent agent-1 is down: silent for 10.4 s and its lease is gone",
    "value": None,
    "started_at": AT,
    "fired_at": AT,
    "resolved_at": None,
    "silenced_by": [],
}
ALERT_PAGE: Final = {"items": [ALERT], "next": None}
SILENCE: Final[dict[str, Any]] = {
    "id": "0a1b2c3d4e5f6071",
    "state": "active",
    "matchers": ["agent=agent-1"],
    "starts_at": AT,
    "ends_at": "2026-01-31T14:00:00.123Z",
    "author": "0a1b2c3d4e5f",
    "comment": "new disk",
    "created_at": AT,
}
SILENCE_PAGE: Final = {"items": [SILENCE], "next": None}
