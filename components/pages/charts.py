"""The charts of the pages, as Vega-Lite by Altair, which checks each against Vega-Lite's schema.

Colours are names of the page's style sheet (`var(--c1)`): the charts are SVG, so that one drawing fits light, dark and
paper. Titles, units and legends are the page's text; a chart has its axes only. Its width is its container's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import altair as alt

from components.pages.parts import Spec

INK, MUTED, GRID, PALE, C1, C2 = (f"var(--{name})" for name in ("ink", "muted", "grid", "pale", "c1", "c2"))
FONT = "system-ui, sans-serif"
HEIGHT = 210  # pixels of a chart
ROW = 34  # pixels of a row in a chart of rows
MOST_POINTS = 500  # of a line; more steps than that are drawn as means
LABEL_WIDTH = 150  # pixels of the longest label on a vertical axis of names

AXIS = {
    "labelColor": MUTED,
    "titleColor": MUTED,
    "gridColor": GRID,
    "domainColor": GRID,
    "tickColor": GRID,
    "labelFontSize": 12,
    "titleFontSize": 12,
    "titleFontWeight": "normal",
    "labelFont": FONT,
    "titleFont": FONT,
    "labelLimit": LABEL_WIDTH,
}


@dataclass(frozen=True, slots=True)
class Whisker:
    """A value with its interval; None where it has none."""

    label: str
    value: float
    low: float | None
    high: float | None
    bound: float | None = None
    """A one-sided bound, drawn as a diamond."""
    color: str = "c1"
    """`c1`, `c2` or `ink`."""


@dataclass(frozen=True, slots=True)
class Point:
    """A value of an iteration with its interval; None where it has none."""

    iteration: int
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Bar:
    """A class of a distribution: how many records are in it, and how many of them were picked."""

    label: str
    low: float
    high: float
    records: int
    picked: int


@dataclass(frozen=True, slots=True)
class Cell:
    """A square of a matrix; `share` between 0 and 1 is how dark it is."""

    row: str
    column: str
    share: float
    text: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a bar that is made of several; `order` counts from the bar's start."""

    bar: str
    part: str
    value: float
    order: int


@dataclass(frozen=True, slots=True)
class Share:
    """A name with its share of the pool and of the picks, between 0 and 1."""

    name: str
    pool: float
    picked: float


def whiskers(rows: Sequence[Whisker], unit: str, *, marks: Mapping[str, float]) -> Spec:
    """One row a value, with its interval as a line; `marks`: label -> where a dashed line is drawn."""
    names = [row.label for row in rows]
    y = alt.Y("label:N", sort=names, title=None, axis=_names_axis())
    data = _data(rows)
    # the lines that values are compared with are always in the picture
    edges = [edge for row in rows for edge in (row.value, row.low, row.high) if edge is not None] + [*marks.values()]
    spread = (max(edges) - min(edges)) or 1.0
    scale = alt.Scale(domain=[min(edges) - spread * 0.08, max(edges) + spread * 0.08], nice=False, zero=False)
    x = alt.X("value:Q", title=unit, scale=scale, axis=alt.Axis(tickCount=6, labelFlush=True))
    color = alt.Color("color:N", scale=_scale(["c1", "c2", "ink"], [C1, C2, INK]), legend=None)
    tips = [alt.Tooltip("label:N", title="against"), *_tips(("value", "low", "high"))]
    whisker = (
        alt.Chart(data)
        .mark_rule(strokeWidth=3)
        .encode(x=alt.X("low:Q", scale=scale, title=unit), x2="high:Q", y=y, color=color, tooltip=tips)
    )
    ends = [
        alt.Chart(data).mark_tick(thickness=3, size=12).encode(x=alt.X(f"{end}:Q", scale=scale), y=y, color=color)
        for end in ("low", "high")
    ]
    dot = alt.Chart(data).mark_point(filled=True, size=110, opacity=1).encode(x=x, y=y, color=color, tooltip=tips)
    diamond = alt.Chart(data).mark_point(shape="diamond", filled=True, size=70, color=INK, opacity=1)
    bound = diamond.encode(x=alt.X("bound:Q", scale=scale), y=y, tooltip=_tips(("bound",)))
    lines = alt.Chart(alt.InlineData(values=[{"at": at, "mark": label} for label, at in marks.items()]))
    rule = lines.mark_rule(strokeDash=[5, 4], color=INK).encode(x=alt.X("at:Q", scale=scale))
    return _finish(alt.layer(rule, whisker, *ends, dot, bound), height=max(ROW * len(rows) + 10, 64))


def line(points: Sequence[Point], x_title: str, *, height: int = HEIGHT) -> Spec:
    """A value of each iteration, with its interval."""
    data = _data(points)
    x = alt.X(
        "iteration:O", title=x_title, axis=alt.Axis(labelAngle=0, labelExpr="datum.value == 0 ? 'base' : datum.value")
    )
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False, nice=True), axis=alt.Axis(tickCount=5))
    tips = [alt.Tooltip("iteration:O"), *_tips(("value", "low", "high"))]
    curve = alt.Chart(data).mark_line(color=C1, strokeWidth=2).encode(x=x, y=y)
    whisker = (
        alt.Chart(data)
        .mark_rule(color=C1, strokeWidth=2, opacity=0.55)
        .encode(x=x, y=alt.Y("low:Q", title=None), y2="high:Q")
    )
    dots = alt.Chart(data).mark_point(color=C1, filled=True, size=70, opacity=1).encode(x=x, y=y, tooltip=tips)
    return _finish(alt.layer(whisker, curve, dots), height=height)


def columns(points: Sequence[Point], x_title: str, *, at: float | None = None) -> Spec:
    """A share, between 0 and 1, of each iteration; `at`: where a dashed line is drawn."""
    data = _data(points)
    x = alt.X("iteration:O", title=x_title, axis=alt.Axis(labelAngle=0))
    y = alt.Y("value:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(tickCount=5, format="~%"))
    tips = [alt.Tooltip("iteration:O"), *_tips(("value",), ".1%")]
    column = alt.Chart(data).mark_bar(color=C1, width={"band": 0.5}).encode(x=x, y=y, tooltip=tips)
    text = alt.Chart(data).mark_text(baseline="bottom", dy=-4, color=INK, fontSize=12, font=FONT)
    layers = [column, text.encode(x=x, y=y, text=alt.Text("value:Q", format=".0%"))]
    if at is not None:
        level = alt.Chart(alt.InlineData(values=[{"at": at}]))
        layers.append(level.mark_rule(strokeDash=[5, 4], color=INK).encode(y=alt.Y("at:Q")))
    return _finish(alt.layer(*layers))


def steps(losses: Sequence[tuple[int, str, float]]) -> Spec:
    """The loss of each optimizer step (step, iteration, loss), with a line where each iteration begins."""
    thinned = thin(losses)
    starts: dict[str, int] = {}
    for step, iteration, _ in losses:
        starts.setdefault(iteration, step)
    values = [{"step": step, "iteration": iteration, "loss": loss} for step, iteration, loss in thinned]
    data = alt.InlineData(values=values)
    last = losses[-1][0]
    domain = alt.Scale(domain=[losses[0][0] - 0.5, last + 0.5], nice=False, zero=False)
    x = alt.X("step:Q", title="optimizer step", scale=domain, axis=alt.Axis(grid=False, tickMinStep=1, format="d"))
    y = alt.Y("loss:Q", title=None, scale=alt.Scale(zero=False, nice=True), axis=alt.Axis(tickCount=5))
    tips = [alt.Tooltip("step:Q"), alt.Tooltip("iteration:N"), alt.Tooltip("loss:Q", format=".4f")]
    curve = alt.Chart(data).mark_line(color=C1, strokeWidth=2).encode(x=x, y=y, detail="iteration:N")
    dots = alt.Chart(data).mark_point(color=C1, filled=True, size=36, opacity=1).encode(x=x, y=y, tooltip=tips)
    begin = alt.InlineData(values=[{"at": start - 0.5, "name": f"iteration {key}"} for key, start in starts.items()])
    rule = alt.Chart(begin).mark_rule(color=GRID).encode(x=alt.X("at:Q", scale=domain))
    layers = [rule, curve, dots] if len(thinned) <= 120 else [rule, curve]
    if len(starts) <= 6:
        name = alt.Chart(begin).mark_text(align="left", baseline="top", dx=5, dy=2, color=MUTED, fontSize=12, font=FONT)
        layers.append(name.encode(x=alt.X("at:Q", scale=domain), y=alt.value(0), text="name:N"))
    return _finish(alt.layer(*layers))


def thin(losses: Sequence[tuple[int, str, float]]) -> list[tuple[int, str, float]]:
    """At most about MOST_POINTS of the steps: means of equally many steps of one iteration, at the last of them."""
    size = -(-len(losses) // MOST_POINTS)
    blocks: list[list[tuple[int, str, float]]] = []
    for loss in losses:
        if blocks and len(blocks[-1]) < size and blocks[-1][-1][1] == loss[1]:
            blocks[-1].append(loss)
        else:
            blocks.append([loss])
    return [(block[-1][0], block[-1][1], sum(loss for *_, loss in block) / len(block)) for block in blocks]


def distribution(bars: Sequence[Bar], x_title: str, *, highest: int, outline: Sequence[Bar] = (), at: float) -> Spec:
    """Records by a number, the picked ones at the foot of each bar; `at`: where a dashed line is drawn.

    `highest` is the top of the scale, the same for charts that are compared. `outline` is drawn around the bars.
    """
    domain = alt.Scale(domain=[0, max(bar.high for bar in bars)], nice=False)
    y_scale = alt.Scale(domain=[0, highest], nice=4)
    x = alt.X("low:Q", bin="binned", title=x_title, scale=domain, axis=alt.Axis(grid=False, tickCount=6))
    data = _data(bars)
    y_axis = alt.Axis(tickCount=4, format="d", tickMinStep=1)
    tips = [*_tips(("low", "high"), ".2f"), alt.Tooltip("records:Q"), alt.Tooltip("picked:Q")]
    scored = (
        alt.Chart(data)
        .mark_bar(color=PALE, binSpacing=1)
        .encode(x=x, x2="high:Q", y=alt.Y("records:Q", title=None, scale=y_scale, axis=y_axis), tooltip=tips)
    )
    picked = (
        alt.Chart(data)
        .mark_bar(color=C1, binSpacing=1)
        .encode(x=x, x2="high:Q", y=alt.Y("picked:Q", title=None, scale=y_scale), tooltip=tips)
    )
    border = alt.Chart(alt.InlineData(values=[{"at": at}]))
    layers = [scored, picked, border.mark_rule(strokeDash=[5, 4], color=INK).encode(x=alt.X("at:Q", scale=domain))]
    if outline:
        edge = alt.Chart(_data(outline)).mark_line(color=MUTED, strokeWidth=1.2, interpolate="step-after")
        layers.append(edge.encode(x=alt.X("low:Q", scale=domain), y=alt.Y("records:Q", scale=y_scale)))
    return _finish(alt.layer(*layers), height=150)


def classes(bars: Sequence[Bar], x_title: str, *, highest: int) -> Spec:
    """Records by class, the picked ones at the foot of each bar; `highest` as in distribution."""
    data = _data(bars)
    labels = [bar.label for bar in bars]
    x = alt.X("label:O", sort=labels, title=x_title, axis=alt.Axis(labelAngle=0, labelOverlap=True))
    y_scale = alt.Scale(domain=[0, highest], nice=4)
    y_axis = alt.Axis(tickCount=4, format="d", tickMinStep=1)
    tips = [alt.Tooltip("label:N", title=x_title), alt.Tooltip("records:Q"), alt.Tooltip("picked:Q")]
    scored = (
        alt.Chart(data)
        .mark_bar(color=PALE)
        .encode(x=x, y=alt.Y("records:Q", title=None, scale=y_scale, axis=y_axis), tooltip=tips)
    )
    picked = (
        alt.Chart(data).mark_bar(color=C1).encode(x=x, y=alt.Y("picked:Q", title=None, scale=y_scale), tooltip=tips)
    )
    return _finish(alt.layer(scored, picked), height=150)


def matrix(cells: Sequence[Cell], row_title: str, column_title: str) -> Spec:
    """Squares, the darker the larger the share; their text is in them up to twelve rows."""
    data = _data(cells)
    names = list(dict.fromkeys(cell.row for cell in cells))
    x = alt.X("column:O", sort=names, title=column_title, axis=alt.Axis(labelAngle=0, orient="top", ticks=False))
    y = alt.Y("row:O", sort=names, title=row_title, axis=alt.Axis(ticks=False))
    tips = [alt.Tooltip("row:N"), alt.Tooltip("column:N"), alt.Tooltip("text:N", title="shared")]
    opacity = alt.Opacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0.05, 0.5]), legend=None)
    squares = alt.Chart(data).mark_rect(color=C1).encode(x=x, y=y, opacity=opacity, tooltip=tips)
    layers = [squares]
    if len(names) <= 12:
        text = alt.Chart(data).mark_text(color=INK, fontSize=12, font=FONT, lineBreak="\n")
        layers.append(text.encode(x=x, y=y, text="text:N"))
    return _finish(alt.layer(*layers), height=max(44 * len(names), 60))


def bars(values: Mapping[str, int], x_title: str) -> Spec:
    """A bar for each name, with its number."""
    data = alt.InlineData(values=[{"name": name, "count": count} for name, count in values.items()])
    y = alt.Y("name:N", sort=list(values), title=None, axis=_names_axis())
    domain = alt.Scale(domain=[0, max(values.values(), default=1) * 1.18 or 1], nice=False)
    x = alt.X("count:Q", title=x_title, scale=domain, axis=alt.Axis(tickCount=4, format=",d", tickMinStep=1))
    tips = [alt.Tooltip("name:N"), alt.Tooltip("count:Q", format=",d")]
    bar = alt.Chart(data).mark_bar(color=C1, height={"band": 0.65}).encode(x=x, y=y, tooltip=tips)
    text = alt.Chart(data).mark_text(align="left", dx=5, color=INK, fontSize=12, font=FONT)
    return _finish(
        alt.layer(bar, text.encode(x=x, y=y, text=alt.Text("count:Q", format=",d"))),
        height=26 * max(len(values), 1) + 10,
    )


def stacked(pieces: Sequence[Piece], x_title: str, colors: Mapping[str, str]) -> Spec:
    """A bar for each name, made of parts; `colors`: part -> colour, in the order of the parts."""
    bars_in_order = list(dict.fromkeys(piece.bar for piece in pieces))
    y = alt.Y("bar:N", sort=bars_in_order, title=None, axis=_names_axis())
    x = alt.X("value:Q", stack="zero", title=x_title, axis=alt.Axis(tickCount=5, format="~s"))
    color = alt.Color("part:N", scale=_scale(list(colors), list(colors.values())), legend=None)
    tips = [alt.Tooltip("bar:N"), alt.Tooltip("part:N"), alt.Tooltip("value:Q", format=",.1f")]
    chart = (
        alt.Chart(_data(pieces))
        .mark_bar(height={"band": 0.65})
        .encode(x=x, y=y, color=color, order="order:Q", tooltip=tips)
    )
    return _finish(chart, height=ROW * len(bars_in_order) + 10)


def shares(rows: Sequence[Share], x_title: str) -> Spec:
    """For each name its share of the pool as a pale bar, and of the picks as a dot."""
    data = _data(rows)
    y = alt.Y("name:N", sort=[row.name for row in rows], title=None, axis=_names_axis())
    scale = alt.Scale(domain=[0, min(max(max(row.pool, row.picked) for row in rows) * 1.1, 1)], nice=False)
    tips = [alt.Tooltip("name:N"), *_tips(("pool", "picked"), ".1%")]
    x = alt.X("pool:Q", title=x_title, scale=scale, axis=alt.Axis(tickCount=5, format="~%"))
    pool = alt.Chart(data).mark_bar(color=PALE, height={"band": 0.65}).encode(x=x, y=y, tooltip=tips)
    picked = alt.Chart(data).mark_point(color=C1, filled=True, size=90, opacity=1)
    dots = picked.encode(x=alt.X("picked:Q", scale=scale), y=y, tooltip=tips)
    return _finish(alt.layer(pool, dots), height=26 * len(rows) + 10)


def _data(rows: Sequence[Any]) -> Any:
    return alt.InlineData(values=[asdict(row) for row in rows])


def _scale(domain: list[str], colors: list[str]) -> Any:
    return alt.Scale(domain=domain, range=colors)


def _names_axis() -> Any:
    return alt.Axis(ticks=False, domain=False, labelPadding=8)


def _tips(fields: Sequence[str], form: str = ".4f") -> list[Any]:
    return [alt.Tooltip(f"{field}:Q", format=form) for field in fields]


def _finish(chart: Any, height: int = HEIGHT) -> Spec:
    """The checked Vega-Lite object. It holds no name that Altair counts up, so equal charts are equal."""
    finished = chart.properties(
        width="container", height=height, autosize=alt.AutoSizeParams(type="fit-x", contains="padding")
    )
    finished = finished.configure(background="transparent", font=FONT, axis=AXIS, view={"stroke": None})
    spec: Spec = finished.to_dict()
    return spec
