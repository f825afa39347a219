"""The page of a comparison: its answer in words, drawn, and as tables; then what it cost and how to make it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from components.comparison.answer import BETTER, WORSE, Answer, GroupAnswer, MeasureResult
from components.comparison.table import (
    Seconds,
    TextTable,
    choice_table,
    conclusions,
    cost_table,
    describe_group,
    result_table,
)
from components.pages import charts
from components.pages.parts import (
    Code,
    Column,
    Fact,
    Figure,
    Figures,
    Key,
    Page,
    Part,
    Section,
    Table,
    Text,
    Tiles,
    Verdict,
)
from components.pages.render import render_page

COLORS = {BETTER: "c1", WORSE: "c2"}  # of a difference; one that is not sure is drawn in ink


@dataclass(frozen=True, slots=True)
class Origin:
    """What a comparison was made from."""

    file: str
    """The text of compare.yaml."""
    commit: str
    cells: int


def comparison_page(answer: Answer, seconds: Sequence[Mapping[str, Seconds]], origin: Origin) -> str:
    """The page as HTML; `seconds` has an entry a group."""
    sections = [
        section
        for number, (group, of_group) in enumerate(zip(answer.groups, seconds, strict=True))
        for section in [Section(f"group-{number}", _title(group), list(_group(answer, group, of_group)))]
    ]
    again = Section("again", "To make it again", list(_again(answer, origin)))
    top: list[Part] = [*(Verdict(sentence) for sentence in conclusions(answer)), Tiles(list(_tiles(answer, origin)))]
    return render_page(Page(f"Comparison {answer.name}", "Does the choice pay?", top, [*sections, again]))


def _title(group: GroupAnswer) -> str:
    title = describe_group(group)
    return title[0].upper() + title[1:]


def _tiles(answer: Answer, origin: Origin) -> Iterator[Fact]:
    group = answer.groups[0]
    yield Fact("cells", f"{origin.cells:,}", f"{len(group.facts)} arms, {len(group.seeds)} seeds")
    yield Fact("pool", f"{group.pool.records:,}", "records to choose from")
    yield Fact("holdout", f"{group.pool.holdout:,}", "records, never trained on")
    yield Fact("forward passes", f"{answer.forward_passes:,}", "to choose, in all cells together")


def _group(answer: Answer, group: GroupAnswer, seconds: Mapping[str, Seconds]) -> Iterator[Part]:
    if group.measures:
        yield Figures(
            [_differences(answer, measure) for measure in group.measures],
            legend=[
                Key("c1", "dot", BETTER),
                Key("c2", "dot", WORSE),
                Key("ink", "dot", "not better"),
                Key("ink", "dash", answer.baseline),
            ],
            caption="A dot is the difference of an arm to the baseline, over the same seeds and records, its line the "
            "95 % interval; the colour is the verdict after Holm's correction.",
            data=f"comparisons/{answer.name}/answer.json",
        )
    for measure in group.measures:
        yield _table(result_table(answer, group, measure))
    if group.pool.noise:
        yield Figures(
            [_noise(group)],
            legend=[Key("c1", "dot", "of the picks of all iterations"), Key("pale", "bar", "of the pool")],
        )
        yield _table(choice_table(answer, group))
    yield _table(cost_table(group, seconds))


def _differences(answer: Answer, measure: MeasureResult) -> Figure:
    rows = [
        charts.Whisker(arm, found.mean, found.low, found.high, color=COLORS.get(found.verdict, "ink"))
        for arm, result in measure.arms.items()
        if (found := result.against_baseline)
    ]
    better = "higher" if measure.higher_is_better else "lower"
    unit = f"{better} is better than {answer.baseline}, {measure.records:,} records"
    return Figure(measure.name, unit, charts.whiskers(rows, "difference", marks={answer.baseline: 0.0}))


def _noise(group: GroupAnswer) -> Figure:
    share = sum(group.pool.noise.values()) / group.pool.records
    rows = [charts.Share(arm, share, sum(facts.noise.values())) for arm, facts in group.facts.items()]
    return Figure("Noise among the picks", "lower is better", charts.shares(rows, "share of the records"))


def _table(table: TextTable) -> Table:
    columns = [Column(name, number=number > 0) for number, name in enumerate(table.columns)]
    return Table(columns, [[cell.strip("*") for cell in row] for row in table.rows], caption=table.note)


def _again(answer: Answer, origin: Origin) -> Iterator[Part]:
    yield Code(
        f"git checkout {origin.commit}\nmake setup && source .venv/bin/activate\niterit compare compare.yaml",
        title="Commands",
    )
    yield Text(
        f"Each cell is a DVC experiment whose name begins with {answer.name}-: dvc exp show lists them with their "
        "parameters. A cell's checkpoints are made again on a branch of its own: dvc exp branch EXPERIMENT BRANCH, "
        "git switch BRANCH, dvc repro."
    )
    yield Code(origin.file, title="compare.yaml")
