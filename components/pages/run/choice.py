"""What was picked: complexities, the change of the picks, hard records, sources and lengths beside the pool."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from components.core.files import read_json
from components.pages import charts
from components.pages.parts import Column, Figure, Figures, Key, Part, Table, Text
from components.pages.run.workspace import METRICS, Run, read_series

BIN_WIDTH = 0.05  # of plots/complexity.csv
MOST_SOURCES = 20  # in a chart; the others are summed up
OTHERS = "all others"

PICKED = [Key("c1", "bar", "picked"), Key("pale", "bar", "scored, not picked")]


def complexity(run: Run) -> Iterator[Part]:
    """The distributions of the pool, the candidates and the picks."""
    yield Text(
        "Complexity (IFD) says how little the prompt helps to predict the response: exp of the loss with the prompt "
        "less the loss without it. Near 0 the prompt gives the response away. From 1 on (dashed) it does not help at "
        "all: such a record is misaligned and never picked."
    )
    bars: dict[str, list[charts.Bar]] = defaultdict(list)
    for row in read_series("complexity"):
        low, records, picked = float(row["complexity"]), int(row["candidates"]), int(row["selected"])
        bars[row["iteration"]].append(charts.Bar(row["complexity"], low, round(low + BIN_WIDTH, 2), records, picked))
    known = {key: bars[key] for key in run.iterations if any(bar.records for bar in bars[key])}
    if not known:
        yield Text("No record was scored: the strategy picks without complexity.")
        return
    first, pool = next(iter(known.values())), read_json(METRICS / "dedupe.json")["pool"]
    whole = sum(bar.records for bar in first) >= pool  # unscorable records excepted
    highest = max(bar.records for one in known.values() for bar in one)
    yield Figures(
        [
            Figure(
                f"Iteration {key}",
                f"records, {sum(bar.records for bar in one):,} scored, {sum(bar.picked for bar in one):,} picked",
                charts.distribution(
                    one, "complexity", highest=highest, outline=first if whole and one is not first else (), at=1.0
                ),
            )
            for key, one in known.items()
        ],
        legend=[
            *PICKED,
            *([Key("muted", "line", "the pool, as iteration 1 scored it")] if whole and len(known) > 1 else []),
        ],
        caption="The last bar holds everything from 1.5 on."
        + (" Iteration 1 scores the whole pool, with the base model." if whole else ""),
        data="plots/complexity.csv",
        narrow=True,
    )
    yield _complexity_table(run)


def _complexity_table(run: Run) -> Table:
    rows = []
    for key in run.iterations:
        score, select = (read_json(METRICS / name / f"{key}.json") for name in ("score", "select"))
        means = (score["mean_complexity"], select["mean_complexity"])
        counts = (score["records"], score["misaligned"], score["unscorable"], select["selected"])
        rows.append(
            [key, *(f"{count:,}" for count in counts), *("-" if mean is None else f"{mean:.4f}" for mean in means)]
        )
    titles = ("iteration", "scored", "misaligned", "unscorable", "picked", "mean complexity", "of the picks")
    return Table([Column(title, number=title != "iteration") for title in titles], rows)


def change(run: Run) -> Iterator[Part]:
    """How the picks change from iteration to iteration, and how many of the hard records are new."""
    picks = [row for row in read_series("picks") if row["iteration"] in run.iterations]
    last = picks[-1]
    total = sum(int(row["selected"]) for row in picks)
    yield Text(
        f"{total:,} picks in {len(picks)} iteration{'s' if len(picks) != 1 else ''}, of "
        f"{int(last['distinct']):,} distinct records."
    )
    figures = []
    if len(picks) > 1:
        cells = [
            charts.Cell(row["iteration"], row["other"], float(row["share"]), f"{float(row['share']):.0%}")
            for row in read_series("overlap")
        ]
        figures.append(
            Figure(
                "Records that two iterations share",
                "share of the row's picks",
                charts.matrix(cells, "iteration", "also picked by iteration"),
            )
        )
    hard = read_series("hard")
    if hard:
        points = [charts.Point(int(row["iteration"]), float(row["newly_hard_share"])) for row in hard]
        figures.append(
            Figure("Newly hard records", "share of the iteration's hard records", charts.columns(points, "iteration"))
        )
    if figures:
        yield Figures(
            figures,
            caption="Hard are as many records as an iteration picks, those with the highest complexity below 1. They "
            "are newly hard when they were not among the hard ones an iteration before; only records that both "
            "iterations scored are ranked. Where the share is near 0, choosing once would have done.",
            data="plots/overlap.csv, plots/hard.csv",
        )
    yield _change_table(picks, hard)


def _change_table(picks: Sequence[Mapping[str, str]], hard: Sequence[Mapping[str, str]]) -> Table:
    hard_of = {row["iteration"]: row for row in hard}
    rows = []
    for row in picks:
        counts = [f"{int(row[name]):,}" for name in ("selected", "kept", "new", "distinct")]
        newly = hard_of.get(row["iteration"])
        share = f"{int(newly['newly_hard']):,} of {int(newly['hard']):,}" if newly else "-"
        rows.append([row["iteration"], *counts, share])
    titles = ("iteration", "picked", "as in the one before", "for the first time", "distinct so far", "newly hard")
    return Table([Column(title, number=title != "iteration") for title in titles], rows)


def composition(run: Run) -> Iterator[Part]:
    """Sources and lengths of what was picked, beside the pool."""
    rows = [row for row in read_series("sources") if row["iteration"] in run.iterations]
    shares = source_shares(rows)
    if len(shares) > 1:
        yield Figures(
            [Figure("Sources", "share of the records", charts.shares(shares, "share of the records"))],
            legend=[Key("pale", "bar", "of the pool"), Key("c1", "dot", "of the picks of all iterations")],
            caption="A dot to the right of its bar: the choice prefers the source.",
            data="plots/sources.csv",
        )
        yield _source_table(run, rows)
    else:
        yield Text(f"All records are from one source, {shares[0].name}.")
    lengths: dict[str, list[charts.Bar]] = defaultdict(list)
    for row in read_series("lengths"):
        low = int(row["tokens"])
        bar = charts.Bar(f"{low:,}", low, max(2 * low - 1, low), int(row["candidates"]), int(row["selected"]))
        lengths[row["iteration"]].append(bar)
    known = {key: lengths[key] for key in run.iterations if lengths[key]}
    highest = max((bar.records for one in known.values() for bar in one), default=1)
    yield Figures(
        [
            Figure(
                f"Response lengths, iteration {key}", "records", charts.classes(one, "tokens, from", highest=highest)
            )
            for key, one in known.items()
        ],
        legend=PICKED,
        caption="Tokens that are scored, the end of the turn included. Each bar reaches to the next one's number.",
        data="plots/lengths.csv",
        narrow=True,
    )


def source_shares(rows: Sequence[Mapping[str, str]]) -> list[charts.Share]:
    """Each source's share of the pool, and of the picks of all iterations together; small ones are summed up."""
    pool: dict[str, int] = {}
    picked: dict[str, int] = defaultdict(int)
    for row in rows:
        pool[row["source"]] = int(row["pool"])
        picked[row["source"]] += int(row["selected"])
    all_pool, all_picked = sum(pool.values()) or 1, sum(picked.values()) or 1
    names = list(pool)
    shown = names if len(names) <= MOST_SOURCES else names[: MOST_SOURCES - 1]
    shares = [charts.Share(name, pool[name] / all_pool, picked[name] / all_picked) for name in shown]
    if rest := names[len(shown) :]:
        counts = (sum(pool[name] for name in rest) / all_pool, sum(picked[name] for name in rest) / all_picked)
        shares.append(charts.Share(f"{OTHERS} ({len(rest)})", *counts))
    return shares


def _source_table(run: Run, rows: Sequence[Mapping[str, str]]) -> Table:
    pool = {row["source"]: int(row["pool"]) for row in rows}
    picked = {(row["source"], row["iteration"]): int(row["selected"]) for row in rows}
    shown = list(pool)[:MOST_SOURCES]
    cells = [[name, f"{pool[name]:,}", *(f"{picked[name, key]:,}" for key in run.iterations)] for name in shown]
    titles = [Column("source", number=False), Column("pool"), *(Column(f"iteration {key}") for key in run.iterations)]
    more = len(pool) - len(shown)
    return Table(titles, cells, caption=f"Records; {more:,} smaller sources are left out." if more > 0 else "Records.")
