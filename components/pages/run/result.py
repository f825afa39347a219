"""Is the new model better? The gate's decision, the loss on the holdout after each iteration, and of each step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from components.data import tables
from components.evaluation.holdout import HoldoutMetrics
from components.pages import charts
from components.pages.parts import Column, Figure, Figures, Key, Part, Table, Text, Verdict
from components.pages.run.workspace import (
    EVALUATIONS,
    METRICS,
    Run,
    chosen_iteration,
    numbered,
    read_holdout,
    read_series,
    read_target,
)
from components.promotion.gate import TESTED, Decision, Difference, compare, pair_records
from components.promotion.resolution import foresee

TITLES = {"loss": "Loss on the holdout", "mean_complexity": "Mean complexity of the holdout"}
UNITS = {"loss": "nats per token", "mean_complexity": "complexity"}
MOST_SOURCES = 12  # with a chart of their own

INTERVAL = (
    "A dot is the mean over the holdout's tokens, its line the 95 % interval over its records: 95 of 100 holdouts of "
    "this size have the true mean in theirs."
)


def verdict(run: Run) -> Verdict:
    """The gate's decision in words; without one, what is known instead."""
    if run.registered is None:
        return Verdict("What the gate decided is not known in this folder: `iterit register` asks it.")
    gate = run.registered.gate
    if gate.champion is None:
        outcome = "is the champion" if gate.promoted else "is not the champion"
    else:
        outcome = "was promoted to champion" if gate.promoted else "was not promoted, the champion stays"
    return Verdict(
        f"{run.registered.model} version {run.registered.version} {outcome}: {gate.reason}.", gate.promoted or None
    )


def comparison(run: Run) -> Iterator[Part]:
    """The gate's interval and that against the base model, in words and drawn."""
    decision = run.registered.gate if run.registered else None
    if decision and decision.resolution:
        yield Text(f"{decision.resolution[0].upper()}{decision.resolution[1:]} in 80 of 100 retrainings.")
    chosen = chosen_iteration(run)
    measures = list(dict.fromkeys(TESTED[name] for name in run.settings.gate.metrics))
    base = {name: against_base(run, chosen, name) for name in measures}
    yield Text(" ".join(_sentence(name, difference) for name, difference in base.items()))
    gate = [_against_champion(name, decision) for name in measures if decision and name in decision.differences]
    yield Figures(
        [*gate, *(_gain(name, "base model", base[name]) for name in measures)],
        legend=[
            Key("c1", "dot", "new model better by"),
            Key("c1", "line", "95 % interval"),
            *_bound_key(decision),
            Key("ink", "dash", "no difference" + (", and the gate's margin" if run.settings.gate.margin else "")),
        ],
        caption="Paired over the same records of the holdout: right of the dashed line, the new model is better."
        + ("" if gate else " There is no interval of the gate: it compared nothing."),
        data="data/evaluations/*.parquet",
    )
    if decision and decision.benchmarks:
        yield _benchmarks(decision)
    foreseen = foresee(run.settings.gate, run.iterations, METRICS, EVALUATIONS)
    if foreseen and foreseen.is_too_small:
        yield Text(f"The holdout is too small: {foreseen}.")


def _benchmarks(decision: Decision) -> Table:
    columns = ("benchmark", "better by", "95 % interval", "at least", "may be worse by", "documents", "gate")
    rows = [
        [
            figure,
            f"{one.difference:+.4f}",
            "-" if one.interval_low is None else f"{one.interval_low:.4f} to {one.interval_high:.4f}",
            "-" if one.lower_bound is None else f"{one.lower_bound:+.4f}",
            f"{one.margin:g}",
            f"{one.documents:,}" + (f", {one.lost:,} without a value" if one.lost else ""),
            "passes" if one.passes else "refuses",
        ]
        for figure, one in decision.benchmarks.items()
    ]
    return Table([Column(name, number=name not in ("benchmark", "gate")) for name in columns], rows)


def against_base(run: Run, chosen: str, name: str) -> Difference:
    """How much better than the base model the chosen checkpoint is; `name` as in TESTED's values.

    Raises UserError when a table of evaluations is missing.
    """
    base, new = (tables.read(EVALUATIONS / f"{key}.parquet", tables.EVALUATIONS) for key in ("base", chosen))
    pairs, _ = pair_records(base, new)
    return compare(pairs, name, run.settings.gate)


def _sentence(name: str, difference: Difference) -> str:
    what = f"{abs(difference.difference):.4f} {UNITS[name]}"
    records = f"{difference.records:,} record{'s' if difference.records != 1 else ''}"
    if difference.interval_low is None or difference.interval_high is None:
        return f"Against the base model: {what}, on {records}, without an interval."
    interval = f"95 % interval {difference.interval_low:.4f} to {difference.interval_high:.4f}, {records}"
    if difference.interval_low > 0:
        return f"Better than the base model by {what} ({interval})."
    if difference.interval_high < 0:
        return f"Worse than the base model by {what} ({interval})."
    return f"Not better than the base model beyond chance: {difference.difference:+.4f} {UNITS[name]} ({interval})."


def _against_champion(name: str, decision: Decision) -> Figure:
    return _gain(name, f"champion, version {decision.champion_version}", decision.differences[name], asked=True)


def _gain(name: str, other: str, difference: Difference, *, asked: bool = False) -> Figure:
    """How much better the new model is than `other`; with the bound and the margin where the gate `asked` for it."""
    bound = difference.lower_bound if asked else None
    ends = (difference.interval_low, difference.interval_high)
    marks = {"no difference": 0.0} | ({"margin": difference.margin} if asked and difference.margin else {})
    return Figure(
        f"Against the {other}",
        f"{TITLES[name].lower()}: better by, in {UNITS[name]}",
        charts.whiskers([charts.Whisker("", difference.difference, *ends, bound=bound)], UNITS[name], marks=marks),
    )


def _bound_key(decision: Decision | None) -> list[Key]:
    if not decision or not decision.differences:
        return []
    confidence = next(iter(decision.differences.values())).confidence
    return [
        Key("ink", "diamond", f"the gate's lower bound ({confidence * 100:g} %, one-sided), which must pass the margin")
    ]


def holdout(run: Run) -> Iterator[Part]:
    """The loss after each iteration, overall and by source."""
    metrics = {number: read_holdout(key) for number, key in numbered(run)}
    points = [charts.Point(number, one.loss, one.loss_low, one.loss_high) for number, one in metrics.items()]
    yield Figures(
        [Figure("Loss on the holdout", "nats per token, lower is better", charts.line(points, "iteration"))],
        legend=_LINE_LEGEND,
        caption=INTERVAL + " Two models share most of what their intervals show, so that overlapping intervals do not "
        "mean that there is no difference: the comparison above is paired.",
        data="metrics/evaluate/*.json",
    )
    yield _holdout_table(metrics)
    targets = {number: target for number, key in numbered(run) if (target := read_target(key))}
    if targets:
        yield _target_figures(targets)
    sources = _largest_sources(metrics)
    if len(sources) > 1:
        yield Figures(
            [_source_figure(source, metrics) for source in sources],
            legend=_LINE_LEGEND,
            caption="The same loss on the records of each source"
            + (f"; the {MOST_SOURCES} with the most records." if len(sources) == MOST_SOURCES else "."),
            data="plots/holdout_sources.csv",
            narrow=True,
        )


def _target_figures(metrics: Mapping[int, HoldoutMetrics]) -> Figures:
    points = [charts.Point(number, one.loss, one.loss_low, one.loss_high) for number, one in metrics.items()]
    count = max(one.records for one in metrics.values())
    return Figures(
        [Figure("Loss on the target", "nats per token, lower is better", charts.line(points, "iteration"))],
        legend=_LINE_LEGEND,
        caption=f"The same loss on {count:,} example{'s' if count != 1 else ''} of what the model is for, which "
        "nothing was trained on.",
        data="metrics/evaluate/*.json, target",
    )


_LINE_LEGEND = [Key("c1", "dot", "mean"), Key("c1", "line", "95 % interval")]


def _holdout_table(metrics: Mapping[int, HoldoutMetrics]) -> Table:
    columns = ("model", "loss", "95 % interval", "perplexity", "mean complexity", "misaligned", "records", "tokens")
    rows = [
        [
            "base model" if number == 0 else f"iteration {number}",
            f"{one.loss:.4f}",
            "-" if one.loss_low is None else f"{one.loss_low:.4f} to {one.loss_high:.4f}",
            f"{one.perplexity:.3f}",
            f"{one.mean_complexity:.4f}",
            f"{one.misaligned_share:.1%}",
            f"{one.records - one.unscorable:,}",
            f"{one.tokens:,}",
        ]
        for number, one in metrics.items()
    ]
    return Table([Column(name, number=name != "model") for name in columns], rows)


def _largest_sources(metrics: Mapping[int, HoldoutMetrics]) -> list[str]:
    sources = metrics[0].sources
    return sorted(sources, key=lambda name: (-sources[name].records, name))[:MOST_SOURCES]


def _source_figure(source: str, metrics: Mapping[int, HoldoutMetrics]) -> Figure:
    of_source = [(number, one.sources[source]) for number, one in metrics.items() if source in one.sources]
    points = [charts.Point(number, one.loss, one.loss_low, one.loss_high) for number, one in of_source]
    records = metrics[0].sources[source].records
    unit = f"nats per token, {records:,} record{'s' if records != 1 else ''}"
    return Figure(source, unit, charts.line(points, "iteration", height=150))


def training(run: Run) -> Iterator[Part]:
    """The loss of each optimizer step."""
    losses = [(int(row["step"]), row["iteration"], float(row["loss"])) for row in _steps_of(run)]
    if not losses:
        yield Text("No optimizer step was made.")
        return
    drawn = charts.thin(losses)
    thinned = f" {len(losses):,} steps are drawn as {len(drawn):,} means." if len(drawn) < len(losses) else ""
    yield Figures(
        [Figure("Loss of each optimizer step", "nats per token, lower is better", charts.steps(losses))],
        caption="Over the records of the step's batch, before the step. Each iteration trains on records that were "
        "chosen when it began, so that its first steps may lie above the last ones of the iteration before." + thinned,
        data="plots/steps.csv",
    )


def _steps_of(run: Run) -> Iterator[Mapping[str, str]]:
    return (row for row in read_series("steps") if row["iteration"] in run.iterations and row["loss"])
