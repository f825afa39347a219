"""A mistake is one line on a terminal, whatever stands in the names and data that it repeats."""

from __future__ import annotations

import pytest

from components.core.errors import Unreachable, UserError, exit_on_user_error, first_line, printable


def test_each_mistake_is_one_line_and_the_exit_code_says_whether_to_try_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for error, code in ((UserError("a: wrong", "b: wrong"), 2), (Unreachable("c: no answer"), 75)):
        with pytest.raises(SystemExit) as ended, exit_on_user_error():
            raise error
        assert ended.value.code == code
    assert capsys.readouterr().err == "error: a: wrong\nerror: b: wrong\nerror: c: no answer\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, é, 漢字 and 🙂", "plain text, é, 漢字 and 🙂"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\x1b[2J\x07 cleared", r"\x1b[2J\x07 cleared"),
        ("\x1e\x9b31m", r"\x1e\x9b31m"),
        ("right\u202eto left\u2028", r"right\u202eto left\u2028"),
        ("half a pair \ud800", r"half a pair \ud800"),
    ],
)
def test_what_a_line_repeats_cannot_control_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert str(UserError(text)) == shown


def test_the_first_line_of_an_error_is_never_empty() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError("")) == "ValueError"
    assert len(first_line(ValueError("a" * 70_000))) == 500  # of a tokenizer's file that is repeated whole
    assert first_line(FileNotFoundError(2, "No such file or directory", "x")) == "No such file or directory"
