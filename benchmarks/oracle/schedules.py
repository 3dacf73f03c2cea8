"""The simulated schedules: the same cores in virtual time, many storms in minutes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_SHOWN_LINES = 40
# A minute does hundreds on a slow core.
_SCHEDULE_S = 2.0


def run_schedules(count: int, code: str) -> dict[str, Any]:
    """How many, whether all held, what was said last, and how long it took."""
    began_s = time.monotonic()
    command = [sys.executable, "-m", "tests.scenarios.replay", "--schedules", str(count)]
    done = subprocess.run(
        [*command, "--jobs", str(os.cpu_count() or 1)],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600 + count * _SCHEDULE_S,
        check=False,
    )
    return {
        "count": count,
        "held": done.returncode == 0,
        "said": done.stdout.splitlines()[-_SHOWN_LINES:],
        "took_s": round(time.monotonic() - began_s, 1),
        "code": code,
    }
