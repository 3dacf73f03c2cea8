"""How a Muster process starts, logs, and ends.

Exit codes: 0 after SIGTERM or SIGINT, 78 (EX_CONFIG) when it cannot run as configured and a
restart would not help, 1 after a crash.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog

from muster.domain.errors import ConfigurationError, SkillImportError

EXIT_CONFIGURATION: Final = 78


def configure_logging(service: str) -> None:
    """Structured logs on stderr: JSON lines, or coloured text on a terminal."""
    interactive = sys.stderr.isatty()
    renderer: Any = (
        structlog.dev.ConsoleRenderer()
        if interactive
        else structlog.processors.JSONRenderer(ensure_ascii=True)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)


async def _until_stopped(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await main(stop)


# A batch of 500 tasks makes some 20,000 objects that live until it is written; the default of 700
# would have the collector walk through all of them again and again.
_COLLECT_AFTER = 50_000


def _spare_the_collector() -> None:
    """What was imported lives as long as the process; what a batch makes dies with it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 50)


# More than a gateway takes on at once, and its streams besides.
WANTED_FILES: Final = 16_384


def allow_many_files() -> None:
    """Most shells give a process 1,024 descriptors though it may have more: a gateway would stop
    to accept connections long before it is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run(main: Callable[[asyncio.Event], Awaitable[None]], *, service: str) -> None:
    """Runs `main(stop)` to its end on uvloop; SIGTERM and SIGINT set `stop`. Exits the process."""
    import uvloop  # noqa: PLC0415  costs 20 ms that `--help` need not pay

    configure_logging(service)
    _spare_the_collector()
    allow_many_files()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_until_stopped(main))
    except* (ConfigurationError, SkillImportError) as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        print(f"muster {service}: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_CONFIGURATION)
    except* KeyboardInterrupt:
        sys.exit(0)
    sys.exit(0)
