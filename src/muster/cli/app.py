"""The client commands of `muster`, put together, and how they end."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from muster.cli import (
    agent_commands,
    alert_commands,
    cluster_commands,
    key_commands,
    policy_commands,
    recovery_commands,
    task_commands,
)
from muster.cli.failure import EXIT_CODES, EXIT_USAGE, Failure
from muster.cli.session import Session
from muster.domain.errors import InvalidInput, MusterError

if TYPE_CHECKING:
    import httpx

# typer hands out BadParameter alone of click's errors: the family is above it.
_UsageError: Any = typer.BadParameter.__base__
_ClickError: Any = _UsageError.__base__

app = typer.Typer(
    name="muster",
    help="Runs tasks on a cluster of AI agents. `muster up` starts a cluster on this machine.",
    epilog=EXIT_CODES
    + " Client commands use MUSTER_URL and MUSTER_API_KEY, else the profile of the last"
    " `muster up`.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_PASSED_ON = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "help_option_names": [],
}


def _passed_on(group: typer.Typer, name: str, words: tuple[str, ...], text: str) -> None:
    """A command that `muster.cli.main` dispatches before this module is imported.

    Listed here so that `--help` and completion know it.
    """

    def command(ctx: typer.Context) -> None:
        argv = [sys.executable, "-m", "muster.cli", *words, *ctx.args]
        os.execv(sys.executable, argv)  # noqa: S606 -- this program again

    group.command(name, help=text, context_settings=_PASSED_ON)(command)


_passed_on(app, "up", ("up",), "Start a cluster on this machine.")
_passed_on(app, "down", ("down",), "End the cluster that `muster up` started.")
cluster_commands.add_to(app)
task_commands.add_to(app)
agent_commands.add_to(app)
alert_commands.add_to(app)
key_commands.add_to(app)
policy_commands.add_to(app)
recovery_commands.add_to(app)
_passed_on(app, "replay", ("replay",), "Run a recorded trace under other strategies.")
_passed_on(app, "monitor", ("monitor",), "Check and show the rules of the monitor.")
_passed_on(app, "service", ("service",), "Run one of the services: the daemons of a cluster.")


@app.callback()
def _root() -> None:
    """Keeps a lone command from becoming the whole program."""


def run(
    argv: Sequence[str],
    environ: Mapping[str, str],
    transport: httpx.BaseTransport | None = None,
) -> int:
    """Runs one command and returns its exit code; errors become a sentence on stderr."""
    session = Session(environ, transport)
    command = typer.main.get_command(app)
    try:
        code = command.main(
            list(argv) or ["--help"], prog_name="muster", standalone_mode=False, obj=session
        )
    except Failure as failure:
        return _fail(str(failure), failure.exit_code)
    except InvalidInput as error:
        return _fail(str(error), EXIT_USAGE)
    except MusterError as error:
        return _fail(str(error), 1)
    except typer.Abort:
        return 130
    except BrokenPipeError:
        # Whoever read has seen enough; nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if isinstance(error, _ClickError):
            return _fail(_usage_sentence(error), EXIT_USAGE)
        raise
    finally:
        session.close()
    return code if isinstance(code, int) else 0


def _usage_sentence(error: Any) -> str:
    context = getattr(error, "ctx", None)
    hint = f"; see `{context.command_path} --help`" if context is not None else ""
    said = str(error.format_message()).rstrip(".")
    return said + (hint.replace("; see", " See") if said.endswith("?") else hint)


def _fail(sentence: str, code: int) -> int:
    print(f"muster: {sentence}", file=sys.stderr)
    return code
