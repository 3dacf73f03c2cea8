"""How a process starts: what it allows itself."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from muster.rpc.process import WANTED_FILES

_ASK = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from muster.rpc.process import allow_many_files
allow_many_files()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (256, 2_000, (2_000, 2_000)),
        (256, 256, (256, 256)),
        (256, 20_000, (WANTED_FILES, 20_000)),
        (18_000, 20_000, (18_000, 20_000)),
    ],
)
def test_as_many_files_as_are_wanted_and_allowed(
    soft: int, hard: int, expected: tuple[int, int]
) -> None:
    """In a process of its own: a hard limit that is lowered stays low."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if allowed != resource.RLIM_INFINITY and allowed < hard:
        pytest.skip(f"this machine allows {allowed} files")
    done = subprocess.run(
        [sys.executable, "-c", _ASK.format(soft=soft, hard=hard)],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    assert tuple(map(int, done.stdout.split())) == expected
