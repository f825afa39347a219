"""Contamination: what shares a run of words with the holdout or a benchmark is found, by its words and at its place."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from components.contamination import find_overlaps, summarize
from components.core.errors import UserError
from components.data import tables
from components.data.records import Message, Record, make_record
from components.dedupe import Deduplicated, exclude_contaminated
from components.overlap import ngrams
from components.overlap.contamination import References
from components.overlap.ngrams import NgramIndex, Overlap, split_words

NO_TEXTS = tables.BENCHMARK_TEXTS.empty_table()


def record(prompt: str, response: str) -> Record:
    return make_record("a", [Message("user", prompt), Message("assistant", response)])


def words(first: int, last: int) -> str:
    return " ".join(f"w{number}" for number in range(first, last))


def test_the_shared_n_grams_and_their_first_place_are_those_of_the_plain_definition() -> None:
    generator = np.random.default_rng(0)
    draw = lambda count: " ".join(generator.choice(list("abc"), count))  # noqa: E731
    references, n = [draw(30) for _ in range(5)], 5
    index = NgramIndex({"r": references}, n)

    def plain(text: str) -> Overlap | None:
        own = split_words(text)
        found = []
        for word in range(len(own) - n + 1):
            for number, reference in enumerate(map(split_words, references)):
                places = [at for at in range(len(reference) - n + 1) if reference[at : at + n] == own[word : word + n]]
                if places:
                    found.append((word, number, places[0]))
                    break
        return Overlap(len(found), *found[0]) if found else None

    texts = [draw(25) for _ in range(60)]
    assert [index.overlaps(text).get("r") for text in texts] == [plain(text) for text in texts]
    assert any(map(plain, texts))


def test_one_word_less_is_no_overlap_and_case_and_punctuation_are_none_of_it() -> None:
    index = NgramIndex({"r": [words(0, 20)]}, 13)
    assert index.overlaps("x " + words(3, 15) + " y") == {}
    shouted = "x, " + words(3, 16).upper().replace(" ", "; ")
    assert index.overlaps(shouted) == {"r": Overlap(1, 1, 0, 3)}


def test_words_are_compared_and_not_their_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "PRIME", 0)  # the hash is then that of the last word alone
    index = NgramIndex({"r": ["a b z", "c d z"]}, 3)
    assert index.overlaps("x y z") == {}
    assert index.overlaps("c d z")["r"].reference == 1


def test_a_text_that_is_too_short_shares_nothing_and_is_counted() -> None:
    index = NgramIndex({"r": [words(0, 12), words(0, 13)], "none": []}, 13)
    assert (index.too_short("r"), index.too_short("none")) == (1, 0)
    assert index.overlaps(words(0, 12)) == {}


HELD = record("Say it.", words(0, 40))
COPY = record("Go on.", "before " + words(10, 30) + " after")  # 20 of 40 words: no near duplicate
CLEAN = record("Go on.", words(100, 140))
TEXTS = pa.Table.from_pylist([{"task": "t", "document": 7, "text": words(100, 114)}], schema=tables.BENCHMARK_TEXTS)


def test_the_table_names_the_record_the_text_and_the_place_in_both() -> None:
    references = References([HELD], TEXTS, 13)
    rows = find_overlaps({"pool": [COPY, CLEAN]}, references).to_pylist()
    place = {"id": COPY.id, "source": "a", "place": "pool", "against": "holdout", "against_id": HELD.id}
    assert rows[0] == {**place, "ngrams": 8, "word": 3, "against_word": 12}
    assert (rows[1]["against"], rows[1]["against_id"], rows[1]["ngrams"]) == ("t", "7", 2)


def test_pool_picks_and_what_near_duplicate_removal_took_out_are_counted_apart() -> None:
    references = References([HELD], TEXTS, 13)
    near = record("Say it!", words(0, 40))
    overlaps = find_overlaps({"pool": [COPY, CLEAN], "near_holdout": [near], "contaminated": []}, references)
    places = {"pool": [COPY.id, CLEAN.id], "near_holdout": [near.id], "contaminated": []}
    found = summarize(overlaps, references, 13, places, {"1": [CLEAN.id]})
    assert (found.pool.records, found.pool.holdout, found.pool.benchmarks) == (2, 1, 1)
    assert (found.removed["near_holdout"].records, found.removed["near_holdout"].holdout) == (1, 1)
    assert (found.iterations["1"].holdout, found.iterations["1"].benchmarks) == (0, 1)
    assert {name: against.pool for name, against in found.against.items()} == {"holdout": 1, "t": 1}


def test_excluded_records_are_listed_with_what_they_share_words_with() -> None:
    kept = record("Go.", words(200, 240))
    result = exclude_contaminated(Deduplicated([COPY, CLEAN, kept], [HELD], []), TEXTS, 13)
    assert result.pool == [kept]
    assert [(row.id, row.kept_id, row.kind) for row in result.removed] == [
        (COPY.id, HELD.id, "contaminated"),
        (CLEAN.id, "t/7", "contaminated"),
    ]
    assert result.summary().removed == {"contaminated": 2}


def test_a_pool_of_nothing_else_is_an_error_that_names_the_key() -> None:
    with pytest.raises(UserError, match=r"params\.yaml: contamination\.exclude: every record"):
        exclude_contaminated(Deduplicated([COPY], [HELD], []), NO_TEXTS, 13)
