"""Errors that the user can mend, and how a command ends with one of them: one line, no traceback.

Exit codes: 2 for a mistake that the user can mend, 75 where running again can help.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BAD_INPUT, TRY_LATER = 2, 75  # exit codes; 75 is EX_TEMPFAIL of sysexits.h
LONGEST_LINE = 500  # characters of another library's message, which may repeat a whole file
SENSITIVE = "token|password|passwd|pwd|secret|signature|credential|key"  # in the names of what follows a ? or &


class UserError(Exception):
    """What is wrong, where (file, key or record), and what would be right: one line per mistake.

    Whatever a line repeats of names, keys or data is escaped: it stays one line, and never controls a terminal. The
    passwords of addresses are left out.
    """

    exit_code = BAD_INPUT

    def __init__(self, *mistakes: str) -> None:
        self.mistakes = [printable(without_password(mistake)) for mistake in mistakes]
        super().__init__("\n".join(self.mistakes))


class Unreachable(UserError):  # noqa: N818  it is what it says
    """Something outside this machine did not answer (a hub, an index): trying again later may help."""

    exit_code = TRY_LATER


class StageBusyError(UserError):
    """Another process runs the stage in this folder."""

    exit_code = TRY_LATER


class InputsChangedError(UserError):
    """What a stage reads was changed while it ran: run again."""

    exit_code = TRY_LATER


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a UserError of the block into one `error:` line a mistake on stderr, and its exit code."""
    try:
        yield
    except UserError as error:
        for mistake in error.mistakes:
            print(f"error: {mistake}", file=sys.stderr)
        sys.exit(error.exit_code)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut where it is very long; the system's own words for an OSError."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return without_password(str(text).splitlines()[0])[:LONGEST_LINE]


def without_password(text: str) -> str:
    """The text with the addresses in it as they may be shown and recorded: without user and password, and without the
    values of query arguments that are named as secrets are.
    """
    text = re.sub(r"(?<=://)[^\s/?#]*@", "", text)
    return re.sub(rf"(?i)(?<=[?&])([\w.-]*(?:{SENSITIVE})[\w.-]*=)[^\s&#'\"]+", r"\1...", text)


def printable(text: str) -> str:
    """The text with everything escaped that is no printable character: newlines, control and format characters."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
