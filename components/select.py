"""Stage `select@N`: picks the records that the model is trained on next, and those that later iterations score again.

The strategy (components/strategies/) picks k of the candidates. Every record of the pool gets a row with its status and
the reason for it, so that a table answers "why was this one not used?".

The candidates of the iterations after the first are chosen once, where the whole pool was scored. The ranking is

    the k picks in pick order, then the misaligned in pool order, then the remaining eligible by falling complexity

and its first floor(update_ratio x k) records are the candidates. With update_ratio 1 they are always the whole pool.

    python -m components.select --iteration 1 --pool data/pool.parquet --scores data/iterations/1/scores.parquet ...
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.core.errors import UserError
from components.core.files import write_csv, write_json
from components.core.params import load_settings
from components.core.paths import PARAMS
from components.core.settings.select import SelectSettings
from components.core.stage import stage
from components.data import tables
from components.data.embeddings import iterate_candidates, read_targets
from components.provenance.statements import statement_of
from components.strategies import load_strategy
from components.strategies.interface import NO_LIMIT, Budget, Candidates, Embeddings, Selection

BIN_WIDTH, LAST_BIN = 0.05, 1.5  # of the histogram; the last bin takes everything from there on

MISALIGNED = "complexity is 1 or more: the prompt does not help to predict the response"
NOT_ELIGIBLE = "the strategy leaves it out: its perplexity is not in select.perplexity_range"
TOO_COMPLEX = "its complexity is above the quantile select.max_complexity_quantile of the candidates"
NOT_A_CANDIDATE = "not among the records that this iteration scored"


@dataclass(frozen=True, slots=True)
class SelectedRecords:
    """The picks, and what became of every other record of the pool."""

    table: pa.Table
    """tables.SELECTION of the whole pool, in its order."""
    rows: npt.NDArray[np.int64]
    """Rows of the picks in the pool, in pick order."""


@dataclass(frozen=True, slots=True)
class SelectSummary:
    """The content of metrics/select/N.json; the means are over the picks."""

    pool: int
    candidates: int
    k: int
    selected: int
    mean_complexity: float | None
    mean_diversity: float | None
    mean_score: float | None
    sources: Mapping[str, int]
    """Picks by source."""


@dataclass(frozen=True, slots=True)
class HistogramRow:
    """A bin of data/iterations/N/complexity.csv."""

    iteration: str
    complexity: str
    """Lower edge of the bin, two decimals."""
    candidates: int
    selected: int


def select_records(
    pool: pa.Table,
    scores: pa.Table,
    k: int | None,
    settings: SelectSettings,
    iteration: int = 1,
    embeddings: Path | None = None,
) -> SelectedRecords:
    """Pick by the strategy and budget of the settings, for the iteration of that number.

    `k`: picks, at most; None where the budget is one of tokens. `embeddings`: the file with tables.EMBEDDINGS, for a
    strategy that reads them. Ties go to the record that comes first in `scores`. Raises UserError when nothing can be
    selected.
    """
    row_of = {key: row for row, key in enumerate(pool["id"].to_pylist())}
    rows = np.array([row_of[key] for key in scores["id"].to_pylist()], np.int64)
    complexity = _with_nan(scores["complexity"])
    candidates = Candidates(
        ids=scores["id"].to_pylist(),
        responses=responses_of(pool, rows),
        complexity=complexity,
        nll_conditional=_with_nan(scores["nll_conditional"]),
        scorable=scores["reason"].is_null().to_numpy(),
        iteration=iteration,
        highest=highest_complexity(complexity, settings.max_complexity_quantile),
        embeddings=open_embeddings(embeddings, scores["id"].to_pylist()) if embeddings else None,
    )
    sources = [pool["source"][row].as_py() for row in rows.tolist()]
    budget = make_budget(candidates, sources, scores["response_tokens"].to_numpy(), k, settings)
    picks = load_strategy(settings.strategy)(candidates, budget, settings)
    if not len(picks):
        raise _nothing_selected(candidates)
    columns = _Columns(pool.num_rows)
    columns.fill_candidates(rows, candidates, picks.eligible, scores["reason"].to_pylist())
    columns.fill_picks(rows, picks)
    return SelectedRecords(columns.table(pool["id"]), rows[picks.indices])


def open_embeddings(path: Path, ids: Sequence[str]) -> Embeddings:
    """The embeddings in the table, those of the candidates by their places in `ids`. Raises UserError as it is read."""
    index_of = {key: index for index, key in enumerate(ids)}

    def read() -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        for part, rows in iterate_candidates(path):
            yield np.array([index_of[key] for key in part], np.int64), rows

    return Embeddings(read_targets(path), read)


def highest_complexity(complexity: npt.NDArray[np.float64], quantile: float | None) -> float:
    """The quantile of the scorable candidates' complexity; infinite without one."""
    scored = complexity[np.isfinite(complexity)]
    return math.inf if quantile is None or not len(scored) else float(np.quantile(scored, quantile))


def _with_nan(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """The column with nan in place of null."""
    values: npt.NDArray[np.float64] = column.to_numpy(zero_copy_only=False).astype(np.float64)
    return values


def _nothing_selected(candidates: Candidates) -> UserError:
    misaligned = int((candidates.complexity >= 1).sum())
    unscorable = int((~candidates.scorable).sum())
    return UserError(
        f"none of {len(candidates)} candidates can be selected: {misaligned} are misaligned (complexity 1 or more), "
        f"{unscorable} unscorable; does the chat template fit the model ({PARAMS}: score.template, score.system), and "
        "does the budget (select.ratio, select.tokens) allow one record?"
    )


def make_budget(
    candidates: Candidates,
    sources: Sequence[str],
    tokens: npt.NDArray[np.int64],
    k: int | None,
    settings: SelectSettings,
) -> Budget:
    """The limits of select.ratio or select.tokens, and of select.quotas.

    `sources` and `tokens` (of the response) have an entry per candidate. A source with fewer aligned records than its
    minimum share is owed that many. Raises UserError for a quota of a source that no candidate is from.
    """
    names = sorted(set(sources))
    unknown = sorted(set(settings.quotas) - set(names))
    if unknown:
        raise UserError(
            f"{PARAMS}: select.quotas.{unknown[0]}: no candidate is from that source; there are {', '.join(names)}"
        )
    source = np.array([names.index(name) for name in sources], np.int64)
    owed, room = np.zeros(len(names), np.int64), np.full(len(names), NO_LIMIT)
    for name, quota in settings.quotas.items():
        assert k is not None, "settings allow quotas with a number of records only"
        number = names.index(name)
        least, most = (Fraction(str(share)) * k for share in (quota.min_share, quota.max_share))
        room[number] = math.floor(most)
        aligned = int((candidates.aligned & (source == number)).sum())
        owed[number] = min(math.ceil(least), aligned, int(room[number]))
    left = np.array([NO_LIMIT if k is None else k, settings.tokens or NO_LIMIT])
    return Budget(left, tokens.astype(np.int64), source, owed, room)


def responses_of(pool: pa.Table, rows: npt.NDArray[np.int64]) -> list[str]:
    """The content of the last message of the records in `rows`."""
    messages = pool["messages"].combine_chunks()
    last = messages.offsets.to_numpy()[1:] - 1
    responses: list[str] = messages.values.field("content").take(pa.array(last[rows])).to_pylist()
    return responses


class _Columns:
    """The columns of tables.SELECTION while they are filled; at first no record is a candidate."""

    def __init__(self, count: int) -> None:
        self.rank: list[int | None] = [None] * count
        self.complexity: list[float | None] = [None] * count
        self.diversity: list[float | None] = [None] * count
        self.score: list[float | None] = [None] * count
        self.status = ["not_a_candidate"] * count
        self.reason = [NOT_A_CANDIDATE] * count

    def fill_candidates(
        self,
        rows: npt.NDArray[np.int64],
        candidates: Candidates,
        eligible: npt.NDArray[np.bool_],
        unscorable_because: Sequence[str | None],
    ) -> None:
        for row, value, is_eligible, reason in zip(
            rows.tolist(), candidates.complexity.tolist(), eligible.tolist(), unscorable_because, strict=True
        ):
            if reason is not None:
                self.status[row], self.reason[row] = "unscorable", reason
                continue
            self.complexity[row] = None if math.isnan(value) else value
            if is_eligible:
                self.status[row] = "eligible"
            elif value >= 1:
                self.status[row], self.reason[row] = "misaligned", MISALIGNED
            else:
                above = value > candidates.highest
                self.status[row], self.reason[row] = "not_eligible", TOO_COMPLEX if above else NOT_ELIGIBLE

    def fill_picks(self, rows: npt.NDArray[np.int64], picks: Selection) -> None:
        for rank, index in enumerate(picks.indices.tolist(), 1):
            row = int(rows[index])
            self.rank[row] = rank
            diversity = float(picks.diversity[rank - 1])
            self.diversity[row] = None if math.isnan(diversity) else diversity
            self.score[row] = float(picks.score[rank - 1])
            self.status[row], self.reason[row] = "selected", f"selected at rank {rank} of {len(picks)}"
        for row in rows.tolist():
            if self.status[row] == "eligible":
                self.reason[row] = f"could be selected, but is not among the {len(picks)} picks"

    def table(self, ids: pa.ChunkedArray) -> pa.Table:
        return pa.table(
            {
                "id": ids,
                "rank": self.rank,
                "complexity": self.complexity,
                "diversity": self.diversity,
                "score": self.score,
                "status": self.status,
                "reason": self.reason,
            }
        ).cast(tables.SELECTION)


def next_candidates(
    selection: pa.Table, parent_candidates: Sequence[str], k: int, update_ratio: float, *, capped: bool = False
) -> list[str]:
    """Ids that the next iteration scores: the parent's candidates, unless those are the whole pool in its order.

    Without losses there is no ranking, and nothing to save: the whole pool stays. `capped`: what is left out for its
    complexity ranks last, misaligned records included, because the choice avoids what is hardest (not in the paper).
    """
    ids = selection["id"].to_pylist()
    unranked = not selection["complexity"].drop_null().length()
    if update_ratio == 1 or ids != list(parent_candidates) or unranked:
        return list(parent_candidates)
    rows = list(zip(ids, *(selection[name].to_pylist() for name in ("status", "rank", "complexity")), strict=True))
    selected = sorted((row for row in rows if row[1] == "selected"), key=lambda row: row[2])
    misaligned = [row for row in rows if row[1] == "misaligned"]
    eligible = sorted((row for row in rows if row[1] in ("eligible", "not_eligible")), key=lambda row: -row[3])
    count = math.floor(Fraction(str(update_ratio)) * k)  # of the decimal number as written: 1.15 x 100 is 115
    if capped:
        below = [row for row in eligible if row[1] == "eligible"]
        above = [row for row in eligible if row[1] == "not_eligible"]
        return [row[0] for row in (*selected, *below, *above, *misaligned)][:count]
    return [row[0] for row in (*selected, *misaligned, *eligible)][:count]


def summarize(selection: pa.Table, subset: pa.Table, scores: pa.Table, k: int) -> SelectSummary:
    """Counts and means of tables.SELECTION; `subset` holds the picked records."""
    picked = selection.filter(pc.equal(selection["status"], "selected"))
    return SelectSummary(
        pool=selection.num_rows,
        candidates=scores.num_rows,
        k=k,
        selected=picked.num_rows,
        mean_complexity=_mean(picked["complexity"]),
        mean_diversity=_mean(picked["diversity"]),
        mean_score=_mean(picked["score"]),
        sources=dict(sorted(Counter(subset["source"].to_pylist()).items())),
    )


def _mean(column: pa.ChunkedArray) -> float | None:
    values = column.drop_null().to_numpy()
    return round(float(values.mean()), 6) if len(values) else None


def histogram(iteration: str, selection: pa.Table) -> list[HistogramRow]:
    """How many candidates and how many picks have a complexity in each bin."""
    last = round(LAST_BIN / BIN_WIDTH)
    candidates, selected = Counter[int](), Counter[int]()
    for value, status in zip(selection["complexity"].to_pylist(), selection["status"].to_pylist(), strict=True):
        if value is None:
            continue
        # multiplied by 20, because a division by 0.05 would put 0.15 into the bin below it
        number = min(math.floor(value * round(1 / BIN_WIDTH)), last)
        candidates[number] += 1
        selected[number] += status == "selected"
    return [
        HistogramRow(iteration, f"{number * BIN_WIDTH:.2f}", candidates[number], selected[number])
        for number in range(last + 1)
    ]


def describe(summary: SelectSummary, k: int | None) -> str:
    """The stage's line on stdout; `k` is None where the budget is one of tokens."""
    fewer = f" (asked for {k}; no more are eligible)" if k and summary.selected < k else ""
    means = {"complexity": summary.mean_complexity, "diversity": summary.mean_diversity}
    shown = ", ".join(f"mean {name} {value}" for name, value in means.items() if value is not None)
    return f"{summary.selected} of {summary.candidates} candidates{fewer}, {shown}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m components.select", description="Pick the next training subset.")
    parser.add_argument("--iteration", required=True)
    inputs, outputs = ("pool", "scores", "embeddings", "parent-candidates"), ("selection", "subset", "candidates")
    for name in (*inputs, *outputs, "metrics", "histogram"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    with stage("select", options.iteration) as running, statement_of(running.name):
        settings = load_settings().select
        pool = tables.read(options.pool, tables.RECORDS)
        scores = tables.read(options.scores, tables.SCORES)
        parent_candidates = tables.read(options.parent_candidates, tables.CANDIDATES)["id"].to_pylist()
        k = None if settings.tokens else settings.records_per_iteration(pool.num_rows)
        if k == 0:
            raise UserError(f"{PARAMS}: select.ratio: {settings.ratio} of {pool.num_rows} records is not one record")
        embeddings = options.embeddings if pq.read_metadata(options.embeddings).num_rows else None
        selected = select_records(pool, scores, k, settings, int(options.iteration), embeddings)
        count = k or len(selected.rows)
        subset = pool.take(pa.array(selected.rows))
        capped = settings.max_complexity_quantile is not None
        candidates = next_candidates(selected.table, parent_candidates, count, settings.update_ratio, capped=capped)
        summary = summarize(selected.table, subset, scores, count)
        tables.write(options.selection, selected.table, tables.SELECTION)
        tables.write(options.subset, subset, tables.RECORDS)
        tables.write(options.candidates, pa.table({"id": candidates}, schema=tables.CANDIDATES), tables.CANDIDATES)
        rows = histogram(options.iteration, selected.table)
        write_csv(options.histogram, [field.name for field in fields(HistogramRow)], map(asdict, rows))
        write_json(options.metrics, asdict(summary))
        print(f"{running.name}: {describe(summary, k)}")


if __name__ == "__main__":
    main()
