"""The options of `iterit serve`."""

from __future__ import annotations

from datetime import timedelta

import pytest

from components.core.errors import UserError
from flows.schedule import check_cron, parse_interval, serve_schedule


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("90s", timedelta(seconds=90)),
        ("30m", timedelta(minutes=30)),
        ("6h", timedelta(hours=6)),
        ("7d", timedelta(days=7)),
        (" 1h ", timedelta(hours=1)),
    ],
)
def test_an_interval_is_a_whole_number_and_a_unit(text: str, interval: timedelta) -> None:
    assert parse_interval(text) == interval


@pytest.mark.parametrize("text", ["0s", "1.5h", "h", "", "6", "6 h", "-6h", "1w", "soon"])
def test_anything_else_is_no_interval(text: str) -> None:
    with pytest.raises(UserError) as error:
        parse_interval(text)
    assert str(error.value) == f"--interval {text}: expected a whole number and a unit: 90s, 30m, 6h or 7d"


@pytest.mark.parametrize("text", ["0 3 * * 1", "*/5 * * * *"])
def test_a_cron_line_is_taken_as_it_is(text: str) -> None:
    assert check_cron(text) == text


@pytest.mark.parametrize("text", ["at noon", "", "61 * * * *", "* * * *"])
def test_a_cron_line_with_a_mistake_is_one_line_with_an_example(text: str) -> None:
    with pytest.raises(UserError) as error:
        check_cron(text)
    assert str(error.value).startswith(f"--cron {text!r}: ")
    assert str(error.value).endswith("; expected five fields such as '0 3 * * 1'")


@pytest.mark.parametrize(("cron", "interval"), [(None, None), ("0 3 * * 1", "6h")])
def test_a_schedule_is_either_a_cron_line_or_an_interval(cron: str | None, interval: str | None) -> None:
    with pytest.raises(UserError, match="serve: give either --cron or --interval"):
        serve_schedule(cron, interval)
