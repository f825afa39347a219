"""The pages: everything in them is text, nothing in them loads anything, and every chart is valid Vega-Lite."""

from __future__ import annotations

import json
import re
from typing import Any

import altair
import pytest
import vl_convert

from components.core.errors import UserError
from components.pages import charts
from components.pages.parts import (
    Code,
    Column,
    Excerpt,
    Excerpts,
    Fact,
    Facts,
    Figure,
    Figures,
    Key,
    Missing,
    Page,
    Part,
    Passage,
    Section,
    Spec,
    Table,
    Text,
    Tiles,
    Verdict,
    parts_or_missing,
    visible,
)
from components.pages.render import json_script, render_page
from tests.support.html import assert_self_contained

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "<!--<script>",
    "{{ 7 * 7 }}",
    "&lt;b&gt;",
]
CONTROLS = "red \x1b[31m bell \x07 hidden \u202e line \u2028 end"

CHARTS: dict[str, Spec] = {
    "whiskers": charts.whiskers([charts.Whisker("a", 0.1, -0.1, 0.3, bound=0.0)], "nats", marks={"zero": 0.0}),
    "whiskers of single records": charts.whiskers([charts.Whisker("a", 0.1, None, None)], "nats", marks={}),
    "line": charts.line([charts.Point(0, 3.0, 2.0, 4.0), charts.Point(1, 2.5)], "iteration"),
    "columns": charts.columns([charts.Point(2, 0.5)], "iteration", at=0.3),
    "steps": charts.steps([(1, "1", 3.0), (2, "1", 2.0), (3, "2", 2.5)]),
    "distribution": charts.distribution(
        [charts.Bar("0.00", 0.0, 0.05, 3, 1)], "x", highest=3, outline=[charts.Bar("0.00", 0.0, 0.05, 2, 0)], at=1.0
    ),
    "classes": charts.classes([charts.Bar("4", 4, 7, 3, 1)], "tokens", highest=3),
    "matrix": charts.matrix([charts.Cell("1", "1", 1.0, "100%")], "iteration", "other"),
    "bars": charts.bars({"near copy": 3, "same": 0}, "records"),
    "stacked": charts.stacked([charts.Piece("iteration 1", "a", 2.0, 0)], "seconds", {"a": charts.C1}),
    "shares": charts.shares([charts.Share("web", 0.5, 0.25)], "share"),
}


def page_of(*parts: Part) -> str:
    return render_page(Page("title", "subtitle", [], [Section("one", "One", parts)]))


def first_row(specs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the data of the first chart."""
    return next(iter(specs[0]["datasets"].values()))[0]


def test_text_from_the_data_is_text_wherever_it_stands() -> None:
    hostile = " ".join(HOSTILE)
    figure = Figure(hostile, hostile, charts.bars({hostile: 1}, hostile))
    page = render_page(
        Page(
            hostile,
            hostile,
            [Verdict(hostile), Tiles([Fact(hostile, hostile, hostile)])],
            [
                Section(
                    "anchor",
                    hostile,
                    [
                        *(Text(hostile), Missing(hostile), Code(hostile, hostile)),
                        Facts([Fact(hostile, hostile, hostile)], code=True),
                        Figures([figure], [Key("c1", "bar", hostile)], hostile, hostile),
                        Table([Column(hostile)], [[hostile]], hostile),
                        Excerpts(hostile, [Excerpt(hostile, hostile, [Passage(hostile, hostile)])], hostile),
                    ],
                )
            ],
            hostile,
        )
    )
    seen = assert_self_contained(page)
    assert seen.tags.count("script") == 3  # the specifications, Vega, and what draws
    for text in HOSTILE:
        assert seen.text.count(text) >= 20
    specs = json.loads(seen.scripts[0])
    assert first_row(specs)["name"] == hostile


def test_control_and_format_characters_are_shown_as_escapes() -> None:
    figure = Figure("f", "u", charts.bars({CONTROLS: 1}, "x"))
    page = page_of(Text(CONTROLS), Figures([figure]))
    assert "red \\x1b[31m bell \\x07 hidden \\u202e line \\u2028 end" in page
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2028]", page.partition("<script>")[0])
    specs = json.loads(assert_self_contained(page).scripts[0])
    assert first_row(specs)["name"] == visible(CONTROLS)


def test_a_long_text_is_cut_and_says_how_long_it_is() -> None:
    assert visible("a\nb\nc", lines=2) == "a\nb \u2026 (5 characters)"
    assert visible("abcdef", characters=3) == "abc \u2026 (6 characters)"
    assert visible("a\tb\r\nc\n") == "a    b\nc"
    assert visible("abc", characters=3, lines=1) == "abc"


@pytest.mark.parametrize("name", CHARTS)
def test_every_chart_is_valid_and_compiles(name: str) -> None:
    altair.Chart.from_dict(dict(CHARTS[name]))  # raises SchemaValidationError
    vega = vl_convert.vegalite_to_vega(dict(CHARTS[name]), vl_version="6.4")
    assert vega["marks"]


def test_a_chart_holds_no_name_that_is_counted_up() -> None:
    again = charts.shares([charts.Share("web", 0.5, 0.25)], "share")
    assert again == CHARTS["shares"]
    assert "view_" not in json.dumps(CHARTS)
    assert page_of(Figures([Figure("f", "u", again)])) == page_of(Figures([Figure("f", "u", CHARTS["shares"])]))


def test_vega_is_in_the_page_once_and_its_policy_allows_no_request() -> None:
    page = page_of(Figures([Figure("a", "u", CHARTS["bars"]), Figure("b", "u", CHARTS["line"])]))
    assert page.count("window.vegaEmbed=") == 1
    policy = re.search('Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "http" not in policy


def test_a_number_that_is_none_becomes_a_gap() -> None:
    assert json.loads(json_script([{"a": [float("nan"), 1.0]}])) == [{"a": [None, 1.0]}]


def test_many_steps_are_drawn_as_means_within_their_iteration() -> None:
    losses = [(step, "1" if step <= 1001 else "2", float(step)) for step in range(1, 2003)]
    thinned = charts.thin(losses)
    assert len(thinned) <= charts.MOST_POINTS + 2
    assert {iteration for _, iteration, _ in thinned} == {"1", "2"}
    assert thinned[0] == (5, "1", 3.0)
    assert thinned[200] == (1001, "1", 1001.0)  # a block ends with its iteration
    assert charts.thin(losses[:3]) == losses[:3]


def test_what_is_missing_is_said_after_what_is_there() -> None:
    def parts() -> list[Part]:
        yield Text("here")
        raise UserError("metrics/x.json: not found; `dvc repro` makes it")

    assert parts_or_missing(parts) == [Text("here"), Missing("metrics/x.json: not found; `dvc repro` makes it")]
