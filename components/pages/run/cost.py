"""What choosing cost, beside training: seconds, records scored, tokens trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from components.core.files import read_json
from components.core.paths import seconds_file
from components.core.stage import stage_name
from components.pages import charts
from components.pages.parts import Column, Figure, Figures, Key, Part, Table, Text
from components.pages.run.workspace import METRICS, Run

PARTS = {  # part of an iteration -> its stages
    "choosing": ("score", "select"),
    "training": ("finetune",),
    "measuring": ("evaluate",),
}
COLORS = {"choosing": charts.C1, "training": charts.C2, "measuring": charts.PALE}


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one iteration; seconds by part, None where a stage of it never ran in this folder."""

    key: str
    scored: int
    trained: int
    tokens: int
    seconds: dict[str, float | None]


def cost(run: Run) -> Iterator[Part]:
    """A bar an iteration, and the counts."""
    costs = [_read_cost(key) for key in run.iterations]
    pieces = [
        charts.Piece(f"iteration {one.key}", part, seconds, order)
        for one in costs
        for order, (part, seconds) in enumerate(one.seconds.items())
        if seconds is not None
    ]
    if pieces:
        yield Text(_summary(costs))
        yield Figures(
            [Figure("Time of each iteration", "seconds", charts.stacked(pieces, "seconds", COLORS))],
            legend=[Key("c1", "bar", "choosing"), Key("c2", "bar", "training"), Key("pale", "bar", "measuring")],
            caption="Choosing is scoring and selecting. What each stage took when it last ran in this folder: losses "
            "that were known already cost nothing.",
        )
    else:
        yield Text("How long the stages took is not known here: they ran in another folder or on another machine.")
    yield _table(costs)


def _read_cost(key: str) -> Cost:
    score, train = read_json(METRICS / "score" / f"{key}.json"), read_json(METRICS / "finetune" / f"{key}.json")
    seconds = {part: _seconds([stage_name(name, key) for name in names]) for part, names in PARTS.items()}
    return Cost(key, score.get("records", 0), train.get("records", 0), train.get("tokens", 0), seconds)


def _seconds(stages: Sequence[str]) -> float | None:
    files = [seconds_file(stage) for stage in stages]
    if not all(file.is_file() for file in files):
        return None
    return sum(float(read_json(file)["seconds"]) for file in files)


def _summary(costs: Sequence[Cost]) -> str:
    choosing, training = (sum(one.seconds[part] or 0.0 for one in costs) for part in ("choosing", "training"))
    if not training:
        return f"Choosing took {choosing:,.0f} seconds."
    return (
        f"Choosing took {choosing:,.0f} seconds, training {training:,.0f}: {choosing / training:.2f} seconds of "
        "choosing for each second of training."
    )


def _table(costs: Sequence[Cost]) -> Table:
    titles = ("iteration", "records scored", "records trained", "tokens trained", *(f"{part}, s" for part in PARTS))
    rows = [
        [
            one.key,
            *(f"{count:,}" for count in (one.scored, one.trained, one.tokens)),
            *("-" if seconds is None else f"{seconds:,.1f}" for seconds in one.seconds.values()),
        ]
        for one in costs
    ]
    known = {part: [one.seconds[part] for one in costs if one.seconds[part] is not None] for part in PARTS}
    total = [
        "together",
        *(f"{sum(getattr(one, name) for one in costs):,}" for name in ("scored", "trained", "tokens")),
        *(f"{sum(filter(None, values)):,.1f}" if len(values) == len(costs) else "-" for values in known.values()),
    ]
    return Table(
        [Column(title, number=title != "iteration") for title in titles],
        [*rows, total] if len(rows) > 1 else rows,
        caption="A record is scored by reading its response twice, with and without the prompt.",
        strong=[len(rows)] if len(rows) > 1 else [],
    )
