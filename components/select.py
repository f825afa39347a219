"""Which records the model is trained on next, and which are scored again after that.

The strategy (components/strategies) picks k of the candidates. Every record of the pool gets a row with its status
and the reason for it, so that "why was this one not used?" has an answer in a table.

What the iterations after the first score again is decided once, where the whole pool was scored. The ranking is

    the k picks in pick order, then the misaligned in pool order, then the remaining eligible by falling complexity

and its first floor(update_ratio x k) records are the candidates. update_ratio 1 stands for the whole pool each time.

    python -m components.select --iteration 1 --pool data/pool.parquet --scores data/iterations/1/scores.parquet ...
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.core.errors import UserError
from components.core.files import write_csv, write_json
from components.core.params import load_settings
from components.core.settings.select import SelectSettings
from components.core.stage import stage
from components.data import tables
from components.provenance.statements import statement_of
from components.strategies import STRATEGIES
from components.strategies.interface import NO_LIMIT, Budget, Candidates, Selection

BIN_WIDTH, LAST_BIN = 0.05, 1.5  # of the histogram; the last bin takes everything from there on

MISALIGNED = "complexity is 1 or more: the prompt does not help to predict the response"
NOT_ELIGIBLE = "the strategy leaves it out: its perplexity is not in select.perplexity_range"
NOT_A_CANDIDATE = "not among the records that this iteration scored"


@dataclass(frozen=True, slots=True)
class HistogramRow:
    """One bin of data/iterations/N/complexity.csv."""

    iteration: str
    complexity: str
    """Lower edge of the bin, two decimals."""
    candidates: int
    selected: int


def select_records(
    pool: pa.Table, scores: pa.Table, k: int | None, settings: SelectSettings
) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """tables.SELECTION of the whole pool in its order, and the places in `pool` of the picks in pick order.

    `k`: picks, at most; None where the budget is one of tokens. Ties go to the record that comes first in `scores`.
    Raises UserError when nothing can be selected.
    """
    place_of = {key: place for place, key in enumerate(pool["id"].to_pylist())}
    places = np.array([place_of[key] for key in scores["id"].to_pylist()], np.int64)
    # null becomes nan
    numbers = {
        name: scores[name].to_numpy(zero_copy_only=False).astype(np.float64)
        for name in ("complexity", "nll_conditional")
    }
    candidates = Candidates(scores["id"].to_pylist(), responses_of(pool, places), **numbers)
    sources = [pool["source"][place].as_py() for place in places.tolist()]
    budget = make_budget(candidates, sources, scores["response_tokens"].to_numpy(), k, settings)
    picks = STRATEGIES[settings.strategy](candidates, budget, settings)
    if not len(picks):
        complexity = candidates.complexity
        misaligned = int((complexity >= 1).sum())
        raise UserError(
            f"none of {len(complexity)} candidates can be selected: {misaligned} are misaligned (complexity 1 or "
            f"more), {int(np.isnan(complexity).sum())} unscorable; does the chat template fit the model "
            "(params.yaml: score.template, score.system), is the budget (select.ratio, select.tokens) one record?"
        )
    rows = _Rows(pool.num_rows)
    rows.fill_candidates(places, candidates.complexity, picks.eligible, scores["reason"].to_pylist())
    rows.fill_picks(places, picks)
    return rows.table(pool["id"]), places[picks.indices]


def make_budget(
    candidates: Candidates,
    sources: Sequence[str],
    tokens: npt.NDArray[np.int64],
    k: int | None,
    settings: SelectSettings,
) -> Budget:
    """The limits of select.ratio or select.tokens, and of select.quotas; a source that has fewer aligned records than
    its least share is owed those. Raises UserError for a quota of a source that no candidate is from.
    """
    names = sorted(set(sources))
    unknown = sorted(set(settings.quotas) - set(names))
    if unknown:
        raise UserError(
            f"params.yaml: select.quotas.{unknown[0]}: no candidate is from that source; there are {', '.join(names)}"
        )
    source = np.array([names.index(name) for name in sources], np.int64)
    owed, room = np.zeros(len(names), np.int64), np.full(len(names), NO_LIMIT)
    for name, quota in settings.quotas.items():
        assert k is not None, "settings allow quotas with a number of records only"
        number = names.index(name)
        least, most = (Fraction(str(share)) * k for share in (quota.min_share, quota.max_share))
        room[number] = math.floor(most)
        present = int((candidates.aligned & (source == number)).sum())
        owed[number] = min(math.ceil(least), present, int(room[number]))
    left = np.array([NO_LIMIT if k is None else k, settings.tokens or NO_LIMIT])
    return Budget(left, tokens.astype(np.int64), source, owed, room)


def responses_of(pool: pa.Table, places: npt.NDArray[np.int64]) -> list[str]:
    """The last message's content of the records at `places`."""
    messages = pool["messages"].combine_chunks()
    last = messages.offsets.to_numpy()[1:] - 1
    responses: list[str] = messages.values.field("content").take(pa.array(last[places])).to_pylist()
    return responses


class _Rows:
    """The columns of tables.SELECTION while they are filled; every record starts as no candidate."""

    def __init__(self, count: int) -> None:
        self.rank: list[int | None] = [None] * count
        self.complexity: list[float | None] = [None] * count
        self.diversity: list[float | None] = [None] * count
        self.score: list[float | None] = [None] * count
        self.status = ["not_a_candidate"] * count
        self.reason = [NOT_A_CANDIDATE] * count

    def fill_candidates(
        self,
        places: npt.NDArray[np.int64],
        complexity: npt.NDArray[np.float64],
        eligible: npt.NDArray[np.bool_],
        reasons: Sequence[str | None],
    ) -> None:
        for place, value, chosen_from, reason in zip(
            places.tolist(), complexity.tolist(), eligible.tolist(), reasons, strict=True
        ):
            if math.isnan(value):
                self.status[place], self.reason[place] = "unscorable", reason or "no complexity"
                continue
            self.complexity[place] = value
            if chosen_from:
                self.status[place] = "eligible"
            elif value >= 1:
                self.status[place], self.reason[place] = "misaligned", MISALIGNED
            else:
                self.status[place], self.reason[place] = "not_eligible", NOT_ELIGIBLE

    def fill_picks(self, places: npt.NDArray[np.int64], picks: Selection) -> None:
        for rank, index in enumerate(picks.indices.tolist(), 1):
            place = int(places[index])
            self.rank[place] = rank
            diversity = float(picks.diversity[rank - 1])
            self.diversity[place] = None if math.isnan(diversity) else diversity
            self.score[place] = float(picks.score[rank - 1])
            self.status[place], self.reason[place] = "selected", f"selected at rank {rank} of {len(picks)}"
        for place in places.tolist():
            if self.status[place] == "eligible":
                self.reason[place] = f"could be selected, but is not among the {len(picks)} picks"

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


def next_candidates(selection: pa.Table, parent_candidates: Sequence[str], k: int, update_ratio: float) -> list[str]:
    """Ids that the next iteration scores; what the parent's were, unless those were the pool in its order."""
    ids = selection["id"].to_pylist()
    if update_ratio == 1 or ids != list(parent_candidates):
        return list(parent_candidates)
    rows = list(zip(ids, *(selection[name].to_pylist() for name in ("status", "rank", "complexity")), strict=True))
    selected = sorted((row for row in rows if row[1] == "selected"), key=lambda row: row[2])
    misaligned = [row for row in rows if row[1] == "misaligned"]
    eligible = sorted((row for row in rows if row[1] in ("eligible", "not_eligible")), key=lambda row: -row[3])
    count = math.floor(Fraction(str(update_ratio)) * k)  # the decimal number as written: 1.15 x 100 is 115
    return [row[0] for row in (*selected, *misaligned, *eligible)][:count]


def summarize(selection: pa.Table, subset: pa.Table, scores: pa.Table, k: int) -> dict[str, Any]:
    """What metrics/select/N.json holds; means are over the picks."""
    picked = selection.filter(pc.equal(selection["status"], "selected"))
    means = {name: _mean(picked[name].drop_null().to_numpy()) for name in ("complexity", "diversity", "score")}
    return {
        "pool": selection.num_rows,
        "candidates": scores.num_rows,
        "k": k,
        "selected": picked.num_rows,
        **{f"mean_{name}": mean for name, mean in means.items()},
        "sources": dict(sorted(Counter(subset["source"].to_pylist()).items())),
    }


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    return round(float(values.mean()), 6) if len(values) else None


def histogram(iteration: str, selection: pa.Table) -> list[HistogramRow]:
    """How many candidates and how many picks have a complexity in each bin."""
    last = round(LAST_BIN / BIN_WIDTH)
    candidates, selected = Counter[int](), Counter[int]()
    for value, status in zip(selection["complexity"].to_pylist(), selection["status"].to_pylist(), strict=True):
        if value is None:
            continue
        # 20 bins up to 1: a division by 0.05 would put 0.15 into the bin below it
        number = min(math.floor(value * round(1 / BIN_WIDTH)), last)
        candidates[number] += 1
        selected[number] += status == "selected"
    return [
        HistogramRow(iteration, f"{number * BIN_WIDTH:.2f}", candidates[number], selected[number])
        for number in range(last + 1)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m components.select", description="Pick the next training subset.")
    parser.add_argument("--iteration", required=True)
    for name in ("pool", "scores", "parent-candidates", "selection", "subset", "candidates", "metrics", "histogram"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    with stage("select", options.iteration) as running, statement_of(running.name):
        settings = load_settings().select
        pool = tables.read(options.pool, tables.RECORDS)
        scores = tables.read(options.scores, tables.SCORES)
        parent_candidates = tables.read(options.parent_candidates, tables.CANDIDATES)["id"].to_pylist()
        k = None if settings.tokens else settings.records_per_iteration(pool.num_rows)
        if k == 0:
            raise UserError(f"params.yaml: select.ratio: {settings.ratio} of {pool.num_rows} records is not one record")
        selection, picked = select_records(pool, scores, k, settings)
        asked, k = k, k or len(picked)
        subset = pool.take(pa.array(picked))
        candidates = next_candidates(selection, parent_candidates, k, settings.update_ratio)
        metrics = summarize(selection, subset, scores, k)
        tables.write(options.selection, selection, tables.SELECTION)
        tables.write(options.subset, subset, tables.RECORDS)
        tables.write(options.candidates, pa.table({"id": candidates}, schema=tables.CANDIDATES), tables.CANDIDATES)
        rows = histogram(options.iteration, selection)
        write_csv(options.histogram, [field.name for field in fields(HistogramRow)], map(asdict, rows))
        write_json(options.metrics, metrics)
        fewer = f" (asked for {asked}; no more are eligible)" if asked and len(picked) < asked else ""
        means = [f"mean {name} {metrics[f'mean_{name}']}" for name in ("complexity", "diversity")]
        print(
            f"{running.name}: {len(picked)} of {scores.num_rows} candidates{fewer}, "
            + ", ".join(mean for mean in means if not mean.endswith("None"))
        )


if __name__ == "__main__":
    main()
