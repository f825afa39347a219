"""Every duplicate is found, with its exact similarity: row for row what a comparison of every pair finds."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from components.core.settings.dedupe import DedupeSettings
from components.core.settings.noise import NoiseSettings
from components.data import tables
from components.data.records import Record, open_records, write_records
from components.dedupe import deduplicate, exclude_contaminated
from components.noise.plant import plant
from components.overlap.ngrams import record_text, split_words
from components.overlap.shingles import ShingleCollector
from components.overlap.similarity_join import Match, SimilarityIndex
from tests.support.corpus import record
from tests.support.plain_dedupe import plain_deduplicate, shingle, similarities

COUNT = 2000
WORDLESS = ("+ + +", "!!", "==|++", "٪ ٪")
ODD = ("Straße", "STRASSE", "İstanbul", "日本語のテキスト", "e\u0301te\u0301", "été", "x_1", "Ⅳ", "٣٤")


def make_records(seed: int = 0) -> list[Record]:
    """Short and long texts of few words, so that n-grams recur; half of them are copies with changes of any size."""
    rng = random.Random(seed)
    words = [*(f"w{number}" for number in range(90)), *ODD]
    texts: list[list[str]] = []
    while len(texts) < COUNT:
        text = rng.choices(words, k=rng.choice([0, 1, 2, 3, 5, 9, 20, 40, 60]))
        if texts and rng.random() < 0.6:
            text = list(rng.choice(texts))
            for _ in range(rng.choice([0, 1, 1, 2, 4])):
                place = rng.randrange(len(text) + 1)
                text[place : place + rng.randrange(2)] = rng.choices(words, k=rng.randrange(2))
        texts.append(text)
    return [_as_record(text, rng) for text in texts]


def _as_record(text: Sequence[str], rng: random.Random) -> Record:
    """Some of the words as the prompt, the others as the response, which may be empty or have white space around it."""
    cut = rng.choice([0, len(text) // 2, len(text) // 2, len(text)])
    response = rng.choice(["{}", "{}", " {}\n"]).format(" ".join(text[cut:]) if text else rng.choice(WORDLESS))
    return record(" ".join(text[:cut]), response.upper() if rng.random() < 0.1 else response, rng.choice("ab"))


RECORDS = make_records()


@pytest.mark.parametrize(
    "changed",
    [
        {"ngram": 3, "threshold": 0.8},
        {"ngram": 1, "threshold": 0.55},
        {"ngram": 2, "threshold": 1 / 3, "same_response": False},
        {"ngram": 3, "threshold": 0.6, "near": False},
        {"ngram": 5, "threshold": 1.0, "max_holdout": 100},
        {"ngram": 3, "threshold": 0.75, "max_holdout": 60, "same_response": False},
    ],
)
def test_pool_holdout_and_duplicates_are_those_of_a_comparison_of_every_pair(changed: dict[str, float]) -> None:
    settings = DedupeSettings.model_validate({"holdout_share": 0.1, "max_removed_share": 1.0, **changed})
    targets = make_records(1)[:40] + RECORDS[::250]
    result = deduplicate(RECORDS, settings, {"a": 1.0, "b": 1.0}, targets)
    pool, holdout, removed = plain_deduplicate(RECORDS, settings, targets)
    assert (result.pool, result.holdout, result.removed) == (pool, holdout, removed)
    kinds = {"same_record", "near_holdout", "like_target", *(["near"] if settings.near else [])}
    assert kinds <= {row.kind for row in removed}


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8, 0.9])
def test_the_nearest_of_the_sets_that_were_added_is_found_whatever_the_order(threshold: float) -> None:
    count, ngram = 600, 2
    alike = similarities([shingle(one, ngram) for one in RECORDS[:count]])
    collector = ShingleCollector(ngram)
    for one in RECORDS[:count]:
        collector.add(record_text(one))
    order = random.Random(2).sample(range(count), count)
    index, added = SimilarityIndex(collector.finish(), threshold, order), list[int]()
    for row in order:
        similarity, negated = max(((float(alike[row, other]), -other) for other in added), default=(0.0, 0))
        match = index.nearest(row)
        assert match == (Match(-negated, similarity) if similarity >= threshold else None)
        index.add(row)
        added.append(row)


def test_records_that_stay_in_a_table_give_the_same_rows(tmp_path: Path) -> None:
    write_records(tmp_path / "raw.parquet", RECORDS)
    settings = DedupeSettings(holdout_share=0.1, max_removed_share=1.0, max_records=500)
    listed = deduplicate(RECORDS, settings, {"a": 2.0, "b": 1.0}, RECORDS[:9])
    stored = deduplicate(open_records(tmp_path / "raw.parquet"), settings, {"a": 2.0, "b": 1.0}, RECORDS[:9])
    assert [*stored.pool] == listed.pool
    assert [*stored.holdout] == listed.holdout
    assert stored.removed == listed.removed
    noise = NoiseSettings(share=0.2)
    assert plant(stored.pool, noise) == plant(listed.pool, noise)
    write_records(tmp_path / "stored", stored.pool)
    write_records(tmp_path / "listed", listed.pool)
    assert (tmp_path / "stored").read_bytes() == (tmp_path / "listed").read_bytes()
    clean = exclude_contaminated(stored, tables.BENCHMARK_TEXTS.empty_table(), 4)
    held = set().union(*map(_runs, listed.holdout))
    assert [*clean.pool] == [one for one in listed.pool if not _runs(one) & held]
    assert {row.id for row in clean.removed if row.kind == "contaminated"} == (
        {one.id for one in listed.pool} - {one.id for one in clean.pool}
    )


def _runs(one: Record) -> set[tuple[str, ...]]:
    words = split_words(record_text(one))
    return {tuple(words[start : start + 4]) for start in range(len(words) - 3)}
