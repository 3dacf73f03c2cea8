"""The `muster` command."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point of the `muster` script; exits with the command's code.

    What starts a long-lived process is dispatched before anything heavy is imported: it carries
    its imports with it for as long as it lives.
    """
    match sys.argv[1:]:
        case ["up", *rest]:
            from muster.local.up import up  # noqa: PLC0415

            raise SystemExit(up(rest, os.environ))
        case ["down", *rest]:
            from muster.local.down import down  # noqa: PLC0415

            raise SystemExit(down(rest, os.environ))
        case ["agent", "run", *rest]:
            from muster.cli.daemons import run_agent  # noqa: PLC0415

            raise SystemExit(run_agent(rest, os.environ))
        case ["service", *rest]:
            from muster.cli.daemons import run_service  # noqa: PLC0415

            raise SystemExit(run_service(rest))
        case ["replay", *rest]:
            from muster.cli.contributed import run_contributed  # noqa: PLC0415

            raise SystemExit(run_contributed("replay", rest))
        case ["monitor", *rest]:
            from muster.cli.contributed import run_contributed  # noqa: PLC0415

            raise SystemExit(run_contributed("monitor", rest))
        case argv:
            from muster.cli.app import run  # noqa: PLC0415

            raise SystemExit(run(argv, os.environ))
