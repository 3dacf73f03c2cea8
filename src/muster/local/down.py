"""`muster down`: ends the cluster of a state directory and says how that went."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from muster.domain.errors import MusterError
from muster.local.options import parse_down
from muster.local.parts import STOP_TIMEOUT_S
from muster.local.state import running_pid

_KILLED_WAIT_S = 5.0


def down(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """The command; returns its exit code: 0 when no cluster runs there any more."""
    try:
        options = parse_down(argv, environ)
        how = end_cluster(options.state_dir)
    except MusterError as error:
        print(f"muster: {error}", file=sys.stderr)
        return 1
    sentence = {
        "none": f"no cluster runs on {options.state_dir}",
        "ended": f"the cluster on {options.state_dir} has ended; its state is kept",
        "killed": f"the cluster on {options.state_dir} did not end in time and was killed; "
        "its state is kept",
        "alive": f"the cluster on {options.state_dir} cannot be ended",
    }[how]
    if options.as_json:
        print(json.dumps({"state_dir": str(options.state_dir), "outcome": how}))
    else:
        print(sentence)
    return 1 if how == "alive" else 0


def end_cluster(path: Path, timeout_s: float = STOP_TIMEOUT_S) -> str:
    """`none`, `ended`, `killed` or `alive` (it belongs to somebody else, or hangs)."""
    pid = running_pid(path)
    if pid is None:
        return "none"
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        # It has ended since.
        return "ended"
    try:
        for number, seconds, how in (
            (signal.SIGTERM, timeout_s, "ended"),
            (signal.SIGKILL, _KILLED_WAIT_S, "killed"),
        ):
            signal.pidfd_send_signal(process, number)
            if select.select([process], [], [], seconds)[0]:
                return how
    except ProcessLookupError:
        return "ended"
    except PermissionError:
        return "alive"
    finally:
        os.close(process)
    return "alive"
