"""`python -m muster.local up|down …`: the embedded cluster without the rest of the CLI."""

from __future__ import annotations

import os
import sys

from muster.local.down import down
from muster.local.up import up


def main() -> None:
    """Exits with the command's code."""
    match sys.argv[1:]:
        case ["up", *rest]:
            raise SystemExit(up(rest, os.environ))
        case ["down", *rest]:
            raise SystemExit(down(rest, os.environ))
        case _:
            print("usage: python -m muster.local up|down [OPTION]…", file=sys.stderr)
            raise SystemExit(2)


if __name__ == "__main__":
    main()
