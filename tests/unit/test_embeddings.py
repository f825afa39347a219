"""Embeddings are the weighted means of the definition, whatever the batch; rds+ picks what its plain loop picks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from components.core.errors import UserError
from components.core.settings.score import ScoreSettings
from components.core.settings.select import SelectSettings
from components.data import tables
from components.data.embeddings import Matrix, embeddings_writer, iterate_candidates, read_targets
from components.data.records import Record
from components.model.chat import encode_conditional
from components.model.load import load_model
from components.score import embed_pool
from components.scoring import ifd
from components.scoring.embeddings import embed_texts
from components.scoring.ifd import encode_pairs
from components.scoring.losses import Scorer, make_scorer
from components.scoring.store import EMBEDDINGS
from components.select import select_records
from components.strategies import rds
from components.strategies.interface import Budget, Candidates, Embeddings
from tests.support.records import ask, numbered

SYSTEM = "You are a helpful assistant."
TOLERANCE = 2e-5  # float32 kernels round differently for different shapes
RECORDS = [
    ask("Wrap the text.", "The text is wrapped to lines of at most seventy characters each."),
    ask("Name one function of the module.", "fill"),
    ask("What is the text? " * 12, "It is a text.\n\n    With an indented line, and a final one: é 漢字."),
    ask("Repeat it.", "text " * 60),
    *numbered(6),
]


@pytest.fixture(scope="module")
def loaded(small_model: Path) -> tuple[Any, Any]:
    return load_model(small_model, "float32")


def embedding_of(record: Record, model: Any, tokenizer: Any, max_length: int = 512) -> Matrix:
    """The definition: one text at a time, without padding, in float64."""
    (encoded,) = encode_conditional([record], tokenizer, system=SYSTEM, max_length=max_length)
    with torch.inference_mode():
        states = model(input_ids=torch.tensor([encoded.ids]), output_hidden_states=True).hidden_states[-1][0].numpy()
    total = sum((place + 1) * state.astype(np.float64) for place, state in enumerate(states))
    mean = total / sum(range(1, len(states) + 1))
    result: Matrix = (mean / math.sqrt(float(mean @ mean))).astype(np.float32)
    return result


def embedded(records: list[Record], scorer: Scorer, tokenizer: Any, batch_tokens: int) -> Matrix:
    pairs = encode_pairs(records, tokenizer, system=SYSTEM, template="chat", max_length=512)
    return embed_texts([text for text, _ in pairs], scorer, batch_tokens=batch_tokens)


@pytest.mark.parametrize("packed", [True, False])
def test_an_embedding_is_that_of_the_text_alone_in_any_batch(loaded: tuple[Any, Any], packed: bool) -> None:
    model, tokenizer = loaded
    scorer = make_scorer(model, tokenizer, system=SYSTEM, template="chat")
    assert scorer.packed and scorer.prefixes
    expected = np.stack([embedding_of(record, model, tokenizer) for record in RECORDS])
    scorer = replace(scorer, packed=packed)
    for batch_tokens in (1, 300, 100_000):
        actual = embedded(RECORDS, scorer, tokenizer, batch_tokens)
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected, atol=TOLERANCE)
        backwards = embedded(RECORDS[::-1], scorer, tokenizer, batch_tokens)
        np.testing.assert_allclose(backwards[::-1], expected, atol=TOLERANCE)
    assert np.abs(expected - expected[0]).max(axis=1)[1:].min() > 100 * TOLERANCE, "the test could not tell them apart"


def test_the_pool_is_embedded_once_and_again_after_a_kill_only_what_is_missing(
    loaded: tuple[Any, Any], small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ifd, "WINDOW", 4)
    monkeypatch.setattr("components.data.embeddings.ROWS", 3)
    pool = [*RECORDS[:3], ask("Say nothing.", ""), *RECORDS[3:]]
    targets = [ask("Wrap it.", "It is wrapped."), ask("Say nothing, too.", ""), ask("Fill it.", "It is filled.")]
    ids = [record.id for record in pool][::-1]
    settings = ScoreSettings(system=SYSTEM)

    def embed(name: str) -> pa.Table:
        with embeddings_writer(Path(name)) as append:
            return embed_pool(pool, ids, targets, small_model, settings, append=append)

    scores = embed("first.parquet")
    assert scores.schema == tables.SCORES
    assert scores["id"].to_pylist() == ids
    assert scores["complexity"].null_count == scores.num_rows
    assert [row["id"] for row in scores.to_pylist() if row["reason"]] == [pool[3].id]
    kept = [pool[index] for index in range(len(pool)) if index != 3]
    found = list(iterate_candidates(Path("first.parquet")))
    assert [key for part, _ in found for key in part] == [record.id for record in kept]
    expected = np.stack([embedding_of(record, *loaded) for record in kept])
    np.testing.assert_allclose(np.concatenate([rows for _, rows in found]), expected, atol=TOLERANCE)
    expected = np.stack([embedding_of(targets[row], *loaded) for row in (0, 2)])
    np.testing.assert_allclose(read_targets(Path("first.parquet")), expected, atol=TOLERANCE)

    shards = sorted(EMBEDDINGS.rglob("*.parquet"))
    assert len(shards) == 4  # the targets, and three windows of the pool
    shards[0].unlink()
    shards[1].write_bytes(b"damaged")
    computed: list[int] = []

    def counting(texts: Any, scorer: Scorer, *, batch_tokens: int) -> Matrix:
        computed.append(len(texts))
        return embed_texts(texts, scorer, batch_tokens=batch_tokens)

    monkeypatch.setattr("components.scoring.embeddings.embed_texts", counting)
    embed("second.parquet")
    assert len(computed) == 2
    assert Path("second.parquet").read_bytes() == Path("first.parquet").read_bytes()
    embed("third.parquet")
    assert len(computed) == 2, "all was stored"
    with pytest.raises(UserError, match=r"^data/target.parquet: no example of the target can be embedded"):
        embed_pool(pool, ids, targets[1:2], small_model, settings)


def rows_of_length_1(count: int, width: int, seed: int) -> Matrix:
    values = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def plain_rounds(targets: Matrix, rows: Matrix, scorable: list[bool], k: int) -> list[int]:
    """Each target in turn takes the nearest record that is left, the first of equals."""
    cosines, left, picks = targets @ rows.T, [index for index, good in enumerate(scorable) if good], []
    while left and len(picks) < k:
        best = max(left, key=lambda index: (cosines[len(picks) % len(targets), index], -index))
        picks.append(best)
        left.remove(best)
    return picks


def candidates_with(targets: Matrix, rows: Matrix, scorable: list[bool], block: int) -> Candidates:
    places = np.flatnonzero(scorable)

    def read() -> Iterator[tuple[Any, Matrix]]:
        for start in range(0, len(places), block):
            yield places[start : start + block], rows[places[start : start + block]]

    none = np.full(len(rows), np.nan)
    ids = [str(index) for index in range(len(rows))]
    flags = np.array(scorable)
    return Candidates(ids, ids, none, none, flags, embeddings=Embeddings(targets, read))


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("least", [1, 16])
def test_rds_plus_picks_what_the_plain_loop_picks(block: int, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rds, "LEAST", least)
    rows = rows_of_length_1(60, 5, seed=1)
    rows[30:40] = rows[20:30]  # of equals the first is picked
    scorable = [index % 9 != 0 for index in range(60)]
    for targets in (rows_of_length_1(4, 5, seed=2), np.repeat(rows_of_length_1(1, 5, seed=3), 6, axis=0)):
        for k in (1, 17, 100):
            candidates = candidates_with(targets, rows, scorable, block)
            selection = rds.select(candidates, Budget.of(k, np.ones(60)), SelectSettings(strategy="rds+"))
            expected = plain_rounds(targets, rows, scorable, k)
            assert selection.indices.tolist() == expected
            turns = [targets[turn % len(targets)] @ rows[pick] for turn, pick in enumerate(expected)]
            np.testing.assert_allclose(selection.score, turns, atol=1e-6)
            assert selection.eligible.tolist() == scorable


def test_an_example_passes_over_what_the_budget_does_not_allow_and_keeps_its_turn() -> None:
    rows = np.eye(4, dtype=np.float32)
    targets = np.array([[0.8, 0.6, 0, 0], [0, 0, 0.6, 0.8]], np.float32)
    candidates = candidates_with(targets, rows, [True] * 4, 10)
    budget = Budget(np.array([10, 10]), np.array([11, 4, 4, 2]), np.zeros(4, np.int64), np.array([0]), np.array([9]))
    assert rds.select(candidates, budget, SelectSettings(strategy="rds+")).indices.tolist() == [1, 3, 2]


def test_the_selection_reads_the_table_by_id_and_says_why_a_record_was_not_picked(tmp_path: Path) -> None:
    pool = numbered(5)
    rows = rows_of_length_1(5, 3, seed=5)
    path = tmp_path / "embeddings.parquet"
    with embeddings_writer(path) as append:
        append(["t"], rows[2:3], True)
        append([record.id for record in pool[:4][::-1]], rows[:4][::-1], False)
    assert pq.read_metadata(path).num_rows == 5
    columns: dict[str, list[Any]] = {name: [None] * 5 for name in tables.SCORES.names}
    columns |= {"id": [one.id for one in pool], "response_tokens": [5] * 5, "reason": [None] * 4 + ["it is empty"]}
    settings = SelectSettings(strategy="rds+", ratio=2)
    table = pa.Table.from_pydict({"id": columns["id"], "source": ["s"] * 5, "messages": messages_of(pool)})
    picked = select_records(table, pa.table(columns, schema=tables.SCORES), 2, settings, embeddings=path)
    order = np.argsort(-(rows[:4] @ rows[2]), kind="stable")
    assert picked.rows.tolist() == order[:2].tolist()
    assert picked.rows[0] == 2
    status = picked.table["status"].to_pylist()
    assert sorted(status) == ["eligible", "eligible", "selected", "selected", "unscorable"]
    assert status[4] == "unscorable"


def messages_of(records: list[Record]) -> list[list[dict[str, str]]]:
    return [[{"role": one.role, "content": one.content} for one in record.messages] for record in records]
