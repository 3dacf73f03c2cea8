"""What every command shares: the cluster that it speaks to, and how it prints."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muster.cli.failure import EXIT_FAILED, EXIT_UNREACHABLE, Failure
from muster.client.errors import NoCluster
from muster.client.target import find_target
from muster.domain.errors import MusterError
from muster.local.profile import Profile
from muster.local.state import running_pid

if TYPE_CHECKING:
    import httpx

    from muster.cli.rest import Rest


class Session:
    """One invocation of the command."""

    def __init__(
        self, environ: Mapping[str, str], transport: httpx.BaseTransport | None = None
    ) -> None:
        self._environ, self._transport = environ, transport
        self._rest: Rest | None = None

    @property
    def rest(self) -> Rest:
        """The cluster of MUSTER_URL and MUSTER_API_KEY, else of the profile. Raises Failure."""
        if self._rest is None:
            # Here and not above: `--help` needs no HTTP.
            from muster.cli.rest import Rest  # noqa: PLC0415

            target = self._target()
            self._rest = Rest(
                target.urls,
                target.api_key,
                transport=self._transport,
                gone=lambda: _why_gone(target),
            )
        return self._rest

    @property
    def target(self) -> Profile:
        """The cluster's URLs and key. Raises Failure when none is known."""
        return self._target()

    def close(self) -> None:
        if self._rest is not None:
            self._rest.close()

    def _target(self) -> Profile:
        try:
            return find_target(None, None, self._environ)
        except NoCluster as error:
            code = EXIT_UNREACHABLE if error.missing else EXIT_FAILED
            raise Failure(str(error), code) from error

    def print_json(self, value: object) -> None:
        """One line for a program, indented for a person."""
        indent = 2 if sys.stdout.isatty() else None
        print(json.dumps(value, ensure_ascii=False, indent=indent), flush=True)

    def note(self, sentence: str) -> None:
        """A remark beside the result."""
        print(f"muster: {sentence}", file=sys.stderr, flush=True)


def _why_gone(target: Profile) -> str | None:
    if not target.state_dir:
        return None
    try:
        runs = running_pid(Path(target.state_dir)) is not None
    except MusterError:
        return None
    if runs:
        return None
    return (
        f"the cluster of {target.state_dir} is not running; "
        f"`muster up --state-dir {target.state_dir}` starts it again"
    )


def new_key() -> str:
    """An Idempotency-Key of 128 random bits."""
    return f"cli-{os.urandom(16).hex()}"


def as_list(value: Any) -> list[dict[str, Any]]:
    """The items of a list answer."""
    return list(value["items"])
