"""The one error that is the user's to mend: it ends a command with one line and exit code 2, never with a traceback."""

from __future__ import annotations


class UserError(Exception):
    """What is wrong, where (file, key or record), and what would be right, in one line."""


class Unreachable(UserError):  # noqa: N818  it is what it says
    """Something outside this machine did not answer (a hub, an index): trying again later may help. Exit code 75."""
