"""`muster monitor …`: commands about rules and alerting documents that need no cluster."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from muster_monitor.alerting.settings import MAX_DOCUMENT_BYTES
from muster_monitor.alerting.settings import check as check_document
from muster_monitor.rules.builtin import BUILTIN_RULES
from muster_monitor.rules.file import read_file
from muster_monitor.rules.reading import MAX_MISTAKES

EXIT_MISTAKES = 1


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 0, 1 for a file with mistakes, 2 for a wrong command line."""
    args = _parser().parse_args(argv)
    if args.command == "show-rules":
        print(BUILTIN_RULES, end="")
        return 0
    if args.command == "check-alerting":
        return check_alerting(args.file)
    return check(args.file)


def check_alerting(path: Path) -> int:
    """Says what is wrong with an alerting document, one line per mistake, on standard error."""
    try:
        with path.open("rb") as source:
            text = source.read(MAX_DOCUMENT_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        print(f"{path}: it cannot be read: {reason}", file=sys.stderr)
        return EXIT_MISTAKES
    settings, mistakes = check_document(text)
    for mistake in mistakes:
        print(f"{path}: {mistake}", file=sys.stderr)
    if settings is None:
        return EXIT_MISTAKES
    print(f"{path}: sound, {len(settings.receivers)} receivers are told")
    return 0


def check(path: Path) -> int:
    """Says what is wrong with a rules file, one line per mistake, on standard error."""
    rules, mistakes = read_file(path)
    for mistake in mistakes:
        print(f"{path}: {mistake}", file=sys.stderr)
    if len(mistakes) >= MAX_MISTAKES:
        print(f"{path}: there may be more after these {MAX_MISTAKES}", file=sys.stderr)
    if mistakes:
        return EXIT_MISTAKES
    figures, patterns = len(rules.figures), len(rules.logs.patterns)
    print(f"{path}: sound, {figures} rules and {patterns} log patterns are in force with it")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="muster monitor", description="Check and show the rules of the monitor."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    checking = commands.add_parser("check-rules", help="say what is wrong with a rules file")
    checking.add_argument("file", type=Path, metavar="FILE")
    alerting = commands.add_parser(
        "check-alerting", help="say what is wrong with an alerting document"
    )
    alerting.add_argument("file", type=Path, metavar="FILE")
    commands.add_parser("show-rules", help="print the built-in rules, as a file to begin with")
    return parser
