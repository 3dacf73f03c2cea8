"""`python -m muster_gateway`: the REST gateway as a process."""

from __future__ import annotations

import asyncio
import os

from muster.rpc.process import run


async def _serve(stop: asyncio.Event) -> None:
    from muster_gateway.config import Config  # noqa: PLC0415  errors of start go through `run`
    from muster_gateway.serving import GatewayServer  # noqa: PLC0415  half a second of imports

    await GatewayServer(Config.from_env(os.environ)).serve(stop)


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    run(_serve, service="gateway")


if __name__ == "__main__":
    main()
