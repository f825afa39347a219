"""What a cell did: which records it chose, how much noise was among them, and what choosing and training computed.

Operations are useful floating-point operations (components/model/throughput.py). A complexity takes two forward passes,
with the prompt and without it, an embedding one. Training on a record costs three: one forward, two to go backward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from components.comparison.cells import Cell
from components.core.files import read_json
from components.core.settings.score import ScoreSettings
from components.data import tables
from components.data.records import iterate_records
from components.model.load import load_tokenizer
from components.model.throughput import ModelSize, read_size
from components.scoring.ifd import encode_pairs, windows

PASSES_TO_SCORE = {"complexity": 2, "embedding": 1}  # by score.measure
PASSES_TO_MEASURE, PASSES_TO_TRAIN = 2, 3


@dataclass(frozen=True, slots=True)
class Picks:
    """The choice of one iteration."""

    records: int
    noise: Mapping[str, int]
    """Spoiled records among them, by kind."""
    scored: int
    """Records that a model scored for it; what the base model or a proxy has scored once, it does not score again."""
    passes: int
    """Forward passes of scoring them."""


@dataclass(frozen=True, slots=True)
class CellFacts:
    """The content of comparisons/NAME/cells/CELL.json, beside what the cell is."""

    picks: Sequence[Picks]
    """By iteration."""
    distinct: int
    """Different records among all picks."""
    trained: int
    """Records, each counted as often as it was trained on."""
    tokens: int
    """Trained on."""
    choosing_operations: int
    training_operations: int

    @property
    def passes(self) -> int:
        """Forward passes of scoring."""
        return sum(one.passes for one in self.picks)


def facts_from(values: Mapping[str, Any]) -> CellFacts:
    """The facts from their JSON."""
    return CellFacts(**{**values, "picks": [Picks(**one) for one in values["picks"]]})


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """What the cells of one pool have in common."""

    records: int
    holdout: int
    noise: Mapping[str, int]
    """Spoiled records in the pool, by kind."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How much one model computes to score each record of the pool, with one block `score`."""

    size: ModelSize
    tokens: Mapping[str, tuple[int, int]]
    """Id -> tokens of all passes together, and at how many the output layer is needed."""

    def operations(self, ids: Sequence[str]) -> int:
        """Useful operations of scoring these records."""
        tokens, scored = (sum(self.tokens[one][part] for one in ids) for part in (0, 1))
        return self.size.forward_operations(tokens, scored)


def read_pool(folder: Path) -> PoolFacts:
    """The pool in the project folder `folder`, after its stage `dedupe`."""
    metrics = read_json(folder / "metrics/dedupe.json")
    kinds = tables.read(folder / "data/noise.parquet", tables.NOISE)["kind"].to_pylist()
    return PoolFacts(metrics["pool"], metrics["holdout"], dict(sorted(Counter(kinds).items())))


def read_scoring(folder: Path, cell: Cell) -> Scoring | None:
    """How much the cell's model of score.model computes for each record of the pool; None where no model scores."""
    if cell.settings.score.model == "none":
        return None
    model = folder / ("models/proxy" if cell.settings.score.model == "proxy" else "models/base")
    return measure_texts(folder / "data/pool.parquet", model, cell.settings.score)


def measure_texts(records: Path, model: Path, settings: ScoreSettings) -> Scoring:
    """How much a model computes to score each record of a file; only its tokenizer and configuration are read."""
    tokenizer = load_tokenizer(model)
    tokens = {}
    for window in windows(iterate_records(records)):
        pairs = encode_pairs(
            window, tokenizer, system=settings.system, template=settings.template, max_length=settings.max_length
        )
        for record, pair in zip(window, pairs, strict=True):
            read = pair if settings.measure == "complexity" else pair[:1]
            predicted = sum(text.scored for text in pair) if settings.measure == "complexity" else 0
            tokens[record.id] = (sum(len(text.ids) for text in read), predicted)
    return Scoring(read_size(model), tokens)


def read_cell(folder: Path, cell: Cell, scoring: Scoring | None, size: ModelSize) -> CellFacts:
    """What the cell did in the project folder `folder`; `size` is that of the model that was trained."""
    planted = tables.read(folder / "data/noise.parquet", tables.NOISE)
    kinds = dict(zip(planted["id"].to_pylist(), planted["kind"].to_pylist(), strict=True))
    picks: list[Picks] = []
    distinct: set[str] = set()
    choosing = trained = tokens = predicted = 0
    for key in cell.settings.iterations if folder_has_training(folder) else ["1"]:
        selected = selected_ids(folder / f"data/iterations/{key}/selection.parquet")
        distinct.update(selected)
        scores = tables.read(folder / f"data/iterations/{key}/scores.parquet", tables.SCORES)
        is_known = key != "1" and cell.settings.score.model != "current"
        scored = [] if scoring is None or is_known else scores["id"].to_pylist()
        choosing += scoring.operations(scored) if scoring else 0
        noise = Counter(kinds[one] for one in selected if one in kinds)
        passes = PASSES_TO_SCORE[cell.settings.score.measure] * len(scored)
        picks.append(Picks(len(selected), dict(sorted(noise.items())), len(scored), passes))
        metrics = folder / f"metrics/finetune/{key}.json"
        if metrics.is_file():
            training = read_json(metrics)
            trained, tokens = trained + training["records"], tokens + training["tokens"]
            responses = dict(zip(scores["id"].to_pylist(), scores["response_tokens"].to_pylist(), strict=True))
            predicted += sum(responses[one] for one in selected)
    return CellFacts(
        picks=picks,
        distinct=len(distinct),
        trained=trained,
        tokens=tokens,
        choosing_operations=choosing,
        training_operations=PASSES_TO_TRAIN * size.forward_operations(tokens, predicted),
    )


def folder_has_training(folder: Path) -> bool:
    """Whether the cell in the folder was trained."""
    return (folder / "metrics/finetune/1.json").is_file()


def selected_ids(path: Path) -> list[str]:
    """The picks of a tables.SELECTION."""
    table = tables.read(path, tables.SELECTION)
    ids: list[str] = table.filter(pc.equal(table["status"], "selected"))["id"].to_pylist()
    return ids
