"""How a command fails: one sentence on stderr and an exit code."""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3

EXIT_CODES = (
    "Exit codes: 0 done; 1 a task failed, or there is no such object, or it was refused; "
    "2 a wrong command line or value; 3 the cluster cannot be reached."
)


class Failure(Exception):
    """The command ends with `exit_code`; the sentence is for the user."""

    def __init__(self, sentence: str, exit_code: int = EXIT_FAILED) -> None:
        self.exit_code = exit_code
        super().__init__(sentence)


class Refused(Failure):
    """The cluster answered with an error. `status` is that of HTTP."""

    def __init__(self, sentence: str, status: int) -> None:
        self.status = status
        super().__init__(sentence, _exit_code(status))


def _exit_code(status: int) -> int:
    if status in (400, 413, 415, 422):
        return EXIT_USAGE
    if status in (429, 502, 503, 504):
        return EXIT_UNREACHABLE
    return EXIT_FAILED
