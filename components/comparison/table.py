"""The answer as rows of text, for the terminal, answer.md and the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from components.comparison.answer import Answer, Difference, GroupAnswer, Mean, MeasureResult

NOTHING = "-"
GIGA = 1e9


@dataclass(frozen=True, slots=True)
class Seconds:
    """How long an arm took, as a mean over its seeds."""

    choosing: float
    """With the first scores of the pool, which other arms may have shared."""
    training: float


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table of texts: the first column is a name, the others are figures."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str


def describe_group(group: GroupAnswer) -> str:
    """Such as `30 % noise, budget 50`."""
    noise = f"{group.noise * 100:g} % noise" if group.noise else "no noise"
    return f"{noise}, budget {group.budget:g}"


def result_table(answer: Answer, group: GroupAnswer, measure: MeasureResult) -> TextTable:
    """One measure: every arm with its interval, against the baseline and against the base model."""
    rows = [["base model", _mean(measure.base), NOTHING, NOTHING, NOTHING, NOTHING]]
    for arm, result in measure.arms.items():
        against = result.against_baseline
        rows.append(
            [
                arm,
                _mean(result.value),
                _difference(against) if against else NOTHING,
                f"{against.adjusted_p_value:.3f}" if against else NOTHING,
                f"**{against.verdict}**" if against else "baseline",
                _difference(result.against_base),
            ]
        )
    better = "higher" if measure.higher_is_better else "lower"
    note = (
        f"{measure.name}, {better} is better: means over {len(group.seeds)} seeds and {measure.records:,} records, "
        "with 95 % intervals. Differences are paired, by seed and record. An arm is better or worse where p, "
        "corrected over the arms by Holm, is below 0.05."
    )
    return TextTable(
        describe_group(group),
        ("arm", measure.name, f"against {answer.baseline}", "p, Holm", "verdict", "against base"),
        rows,
        note + _visible(measure),
    )


def _visible(measure: MeasureResult) -> str:
    """With few seeds: the smallest difference that would have been seen."""
    found = [
        f"{arm} {result.against_baseline.visible:.3f}"
        for arm, result in measure.arms.items()
        if result.against_baseline and result.against_baseline.visible is not None
    ]
    return (
        f" With so few seeds, 80 of 100 comparisons would show a true difference of: {', '.join(found)}."
        if found
        else ""
    )


def choice_table(answer: Answer, group: GroupAnswer) -> TextTable:
    """How much noise each arm chose, by iteration and kind."""
    total = sum(group.pool.noise.values())
    kinds = sorted(group.pool.noise)
    iterations = [f"iteration {number}" for number in range(1, answer.iterations + 1)]
    rows = [
        [
            "pool",
            *[_share(total / group.pool.records)] * len(iterations),
            *(_share(group.pool.noise[kind] / group.pool.records) for kind in kinds),
        ]
    ]
    for arm, facts in group.facts.items():
        rows.append([arm, *map(_share, facts.noise_share), *(_share(facts.noise.get(kind, 0.0)) for kind in kinds)])
    note = "Share of spoiled records in the pool and among the picks; the kinds are over all iterations."
    return TextTable(describe_group(group), ("arm", *iterations, *kinds), rows, note)


def cost_table(group: GroupAnswer, seconds: Mapping[str, Seconds]) -> TextTable:
    """What each arm computed and how long it took."""
    rows = [
        [
            arm,
            f"{facts.distinct:,.0f}",
            f"{facts.tokens:,.0f}",
            f"{facts.passes:,.0f}",
            f"{facts.choosing_operations / GIGA:,.0f}",
            f"{facts.training_operations / GIGA:,.0f}",
            f"{seconds[arm].choosing:,.0f}" if arm in seconds else NOTHING,
            f"{seconds[arm].training:,.0f}" if arm in seconds else NOTHING,
        ]
        for arm, facts in group.facts.items()
    ]
    columns = ("arm", "distinct records", "tokens trained", "forward passes", "choosing, GFLOP", "training, GFLOP")
    note = (
        "Means over the seeds. Forward passes are those of choosing, two a record; operations are useful ones. What "
        "arms share, the base model's first scores of the pool, counts for each of them here and is computed once."
    )
    return TextTable(describe_group(group), (*columns, "choosing, s", "training, s"), rows, note)


def tables_of(answer: Answer, seconds: Sequence[Mapping[str, Seconds]]) -> Iterator[TextTable]:
    """All tables of the answer, group by group; `seconds` has an entry a group."""
    for group, of_group in zip(answer.groups, seconds, strict=True):
        for measure in group.measures:
            yield result_table(answer, group, measure)
        if group.pool.noise:
            yield choice_table(answer, group)
        yield cost_table(group, of_group)


def to_markdown(answer: Answer, seconds: Sequence[Mapping[str, Seconds]]) -> str:
    """answer.md: the answer in a sentence, then the tables."""
    parts = [f"# Comparison {answer.name}", *conclusions(answer)]
    for table in tables_of(answer, seconds):
        lines = [table.columns, [":--", *["--:"] * (len(table.columns) - 1)], *table.rows]
        parts += [f"## {table.title}", "\n".join(f"| {' | '.join(line)} |" for line in lines), table.note]
    return "\n\n".join(parts) + "\n"


def conclusions(answer: Answer) -> Iterator[str]:
    """One sentence a group and measure: which arms are better or worse than the baseline."""
    for group in answer.groups:
        for measure in group.measures:
            by_verdict: dict[str, list[str]] = {}
            for arm, result in measure.arms.items():
                if result.against_baseline:
                    by_verdict.setdefault(result.against_baseline.verdict, []).append(arm)
            said = "; ".join(f"{verdict}: {', '.join(arms)}" for verdict, arms in by_verdict.items())
            what = f"{describe_group(group)}, {measure.name}, against {answer.baseline}"
            yield f"{what}: {said or 'nothing was compared'}."
        if not group.measures:
            least = min(group.facts, key=lambda arm: group.facts[arm].noise_share[0])
            share = _share(group.facts[least].noise_share[0])
            yield f"{describe_group(group)}: nothing was trained; the least noise is in the choice of {least}, {share}."


def _mean(mean: Mean) -> str:
    return f"{mean.mean:.4f} ({mean.low:.4f} to {mean.high:.4f})"


def _difference(difference: Difference) -> str:
    return f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"


def _share(share: float) -> str:
    return f"{share:.1%}"
