"""What is a duplicate, in favour of what it goes, and that nothing tested is trained on."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from components.core.errors import UserError
from components.core.files import read_json
from components.core.settings.dedupe import DedupeSettings
from components.data import tables
from components.data.records import Message, Record, make_record, read_records, write_records
from components.dedupe import Deduplicated, deduplicate, jaccard, near_across, rows_per_band, share_out, shingle
from tests.support.project import SOURCE, edit_params

WORDS = [f"word{number}" for number in range(400)]
WEIGHTS = {"a": 1.0, "b": 1.0}


def record(prompt: str, response: str, source: str = "a") -> Record:
    return make_record(source, [Message("user", prompt), Message("assistant", response)])


def text(rng: random.Random, words: int = 40) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def changed(rng: random.Random, of: str, words: int = 1) -> str:
    parts = of.split()
    for place in rng.sample(range(len(parts)), words):
        parts[place] = f"new{rng.randrange(10**6)}"
    return " ".join(parts)


@pytest.fixture
def corpus() -> list[Record]:
    """300 texts in two sources; then repeated records, repeated responses, and near duplicates of all degrees."""
    rng = random.Random(7)
    records = [record(text(rng, 12), text(rng), rng.choice("ab")) for _ in range(300)]
    for one in records[:120]:
        records.append(record(one.prompt, one.response, "b"))
        records.append(record(text(rng, 12), one.response, "b"))
    for one in records[100:300]:
        records += [record(one.prompt, changed(rng, one.response, words), "b") for words in (1, 2, 4, 8)]
    rng.shuffle(records)
    return records


def run(records: list[Record], **settings: object) -> Deduplicated:
    defaults = {"holdout_share": 0.2, "max_removed_share": 1.0}
    return deduplicate(records, DedupeSettings.model_validate({**defaults, **settings}), WEIGHTS)


def similarity(one: Record, other: Record) -> float:
    return jaccard(shingle(one, 3), shingle(other, 3))


def shingles(records: list[Record]) -> list[frozenset[str]]:
    return [shingle(one, 3) for one in records]


def in_holdout_share(one: Record, share: float = 0.2) -> bool:
    return int.from_bytes(hashlib.sha256(f"holdout:{one.id}".encode()).digest()[:8]) / 2**64 < share


def ids(records: list[Record]) -> list[str]:
    return [one.id for one in records]


@pytest.mark.parametrize("caps", [{}, {"max_holdout": 20, "max_records": 90}])
def test_every_record_is_in_the_pool_in_the_holdout_or_among_the_removed(
    corpus: list[Record], caps: dict[str, int]
) -> None:
    result = run(corpus, **caps)
    placed = Counter(ids(result.pool) + ids(result.holdout) + [row["id"] for row in result.removed])
    assert placed == Counter(ids(corpus))
    assert not set(ids(result.pool)) & set(ids(result.holdout))
    kinds = {row["kind"] for row in result.removed}
    assert {"same_record", "same_response", "near", "near_holdout"} <= kinds


def test_a_record_goes_only_in_favour_of_one_that_stays_and_that_it_resembles(corpus: list[Record]) -> None:
    result = run(corpus)
    by_id = {one.id: one for one in corpus}
    stays = {*ids(result.pool), *ids(result.holdout)}
    holdout = set(ids(result.holdout))
    for row in result.removed:
        one, kept = by_id[row["id"]], by_id[row["kept_id"]]
        assert kept.id in stays
        if row["kind"] == "same_record":
            assert one.id == kept.id
            continue
        assert one.id not in stays
        if row["kind"] == "same_response":
            assert one.response == kept.response
        else:
            assert row["similarity"] == similarity(one, kept) >= 0.8
            assert row["kind"] != "near_holdout" or kept.id in holdout


def test_nothing_in_the_pool_is_like_anything_in_the_holdout(corpus: list[Record]) -> None:
    # bands of one MinHash would find next to nothing: the separation must not depend on them
    for settings in ({}, {"near": False}, {"permutations": 1}):
        result = run(corpus, **settings)
        pool, holdout = shingles(result.pool), shingles(result.holdout)
        assert max(jaccard(one, other) for one in pool for other in holdout) < 0.8


def test_near_duplicates_are_found_and_less_similar_records_stay(corpus: list[Record]) -> None:
    closest = max(jaccard(one, other) for one, other in combinations(shingles(run(corpus).pool), 2))
    assert 0.6 < closest < 0.8  # the fixture has pairs just below the threshold, and they are kept


def test_a_chain_of_near_duplicates_keeps_both_of_its_ends() -> None:
    rng = random.Random(3)
    words = text(rng, 100).split()
    # each step moves a window by 6 words: neighbours are alike, the ends are not
    chain = [record("Say it.", " ".join([*words[shift:], *(f"x{n}" for n in range(shift))])) for shift in (0, 6, 12)]
    assert similarity(chain[0], chain[1]) >= 0.8 > similarity(chain[0], chain[2])
    assert similarity(chain[1], chain[2]) >= 0.8
    others = [record(text(rng), text(rng)) for _ in range(60)]
    chain_in_pool = [one for one in chain if not in_holdout_share(one, 0.02)]
    assert len(chain_in_pool) == 3
    result = run([*chain, *others], holdout_share=0.02)
    assert chain[0] in result.pool
    assert chain[2] in result.pool
    assert [(row["id"], row["kept_id"]) for row in result.removed] == [(chain[1].id, chain[0].id)]


def test_the_pool_yields_to_the_holdout_whatever_came_first() -> None:
    rng = random.Random(5)
    texts = [(text(rng, 12), text(rng)) for _ in range(40)]
    pairs = [[record(prompt, response), record(prompt, changed(rng, response))] for prompt, response in texts]
    pair = next(pair for pair in pairs if list(map(in_holdout_share, pair)) == [False, True])
    filling = [record(text(rng, 12), text(rng)) for _ in range(20)]
    result = run([*pair, *filling])
    assert pair[1] in result.holdout
    (row,) = result.removed
    assert (row["id"], row["kept_id"], row["kind"]) == (pair[0].id, pair[1].id, "near_holdout")


def test_the_holdout_keeps_its_records_when_data_are_added(corpus: list[Record]) -> None:
    rng = random.Random(11)
    before = run(corpus)
    added = [record(text(rng, 12), text(rng), "b") for _ in range(200)]
    # also variants of what is held out: they yield, they do not push it out
    added += [record(one.prompt, changed(rng, one.response), "b") for one in before.holdout]
    added = [one for one in added if not in_holdout_share(one)]
    assert ids(run([*corpus, *added]).holdout) == ids(before.holdout)
    assert ids(run([*added, *corpus]).holdout) == ids(before.holdout)


def test_a_capped_holdout_and_a_capped_pool_are_part_of_the_uncapped_ones(corpus: list[Record]) -> None:
    whole, capped = run(corpus), run(corpus, max_holdout=10, max_records=50)
    assert len(capped.holdout) == 10
    assert len(capped.pool) == 50
    assert set(ids(capped.holdout)) <= set(ids(whole.holdout))
    over = {row["id"]: row for row in capped.removed if row["kind"] == "over_cap"}
    assert {(row["kept_id"], row["similarity"]) for row in over.values()} == {(None, None)}
    # what is over the holdout's cap is not given to the pool
    assert not set(ids(capped.pool)) & set(ids(whole.holdout))
    assert set(ids(whole.holdout)) - set(ids(capped.holdout)) <= set(over)


def test_new_data_take_a_capped_record_s_place_only_by_being_chosen_themselves() -> None:
    rng = random.Random(13)
    records, added = ([record(text(rng), text(rng)) for _ in range(count)] for count in (300, 60))
    caps = {"max_holdout": 20, "max_records": 80}
    mixed = rng.sample([*records, *added], 360)
    before, after = run(records, **caps), run(mixed, **caps)
    for one, other in ((before.holdout, after.holdout), (before.pool, after.pool)):
        lost, gained = set(ids(one)) - set(ids(other)), set(ids(other)) - set(ids(one))
        assert gained <= set(ids(added))
        assert len(lost) == len(gained) < len(one) / 2


def test_pool_and_holdout_keep_the_order_of_the_sources(corpus: list[Record]) -> None:
    first: dict[str, int] = {}
    for place, one in enumerate(corpus):
        first.setdefault(one.id, place)
    result = run(corpus, max_holdout=20, max_records=90)
    for part in (result.pool, result.holdout):
        places = [first[one.id] for one in part]
        assert places == sorted(places)


def test_the_same_response_to_another_prompt_may_be_kept() -> None:
    rng = random.Random(2)
    drawn = [text(rng, 3) for _ in range(40)]
    pairs = [[record(text(rng, 30), one), record(text(rng, 30), f" {one}\n")] for one in drawn]
    same = next(pair for pair in pairs if not any(map(in_holdout_share, pair)))
    filling = [record(text(rng), text(rng)) for _ in range(30)]
    removed = run([*same, *filling]).removed
    assert [(row["id"], row["kind"]) for row in removed] == [(same[1].id, "same_response")]
    assert run([*same, *filling], same_response=False).removed == []


def test_records_without_a_word_are_not_all_alike() -> None:
    rng = random.Random(4)
    signs = [record(sign * 3, f"{sign} !") for sign in "+*/=&%$#?"]
    result = run([*signs, *(record(text(rng), text(rng)) for _ in range(30))])
    assert result.removed == []
    assert len(result.pool) + len(result.holdout) == 39


def test_near_across_agrees_with_every_pair_compared_one_by_one(corpus: list[Record]) -> None:
    sets = shingles(corpus)
    held, rest = list(range(200)), list(range(200, len(corpus)))  # more than one block
    found = near_across(sets, rest, held, 0.6)
    for index in rest:
        best = max((jaccard(sets[index], sets[other]), -other) for other in held)
        if best[0] >= 0.6:
            assert found[index] == (-best[1], best[0])
        else:
            assert index not in found
    assert len(found) > 100
    assert near_across(sets, rest, [], 0.6) == {}


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("permutations", [64, 128, 256])
def test_the_bands_miss_at_most_one_pair_in_a_hundred(threshold: float, permutations: int) -> None:
    rows = rows_per_band(threshold, permutations)
    assert 1 <= rows <= permutations
    if 1 - (1 - threshold) ** permutations >= 0.99:
        assert (1 - threshold**rows) ** (permutations // rows) <= 0.01


def test_sources_share_the_pool_by_weight_and_fill_each_other_s_gaps() -> None:
    assert share_out(100, {"a": 500, "b": 500}, {"a": 1.0, "b": 1.0}) == {"a": 50, "b": 50}
    assert share_out(100, {"a": 500, "b": 500}, {"a": 3.0, "b": 1.0}) == {"a": 75, "b": 25}
    assert share_out(100, {"a": 10, "b": 500}, {"a": 3.0, "b": 1.0}) == {"a": 10, "b": 90}
    assert share_out(100, {"a": 10, "b": 45, "c": 500}, {"a": 1.0, "b": 1.0, "c": 1.0}) == {"a": 10, "b": 45, "c": 45}
    assert share_out(10, {"a": 9, "b": 9, "c": 9}, {"a": 1.0, "b": 1.0, "c": 1.0}) == {"a": 4, "b": 3, "c": 3}
    rng = random.Random(1)
    for _ in range(300):
        available = {name: rng.randrange(1, 60) for name in "abcde"[: rng.randrange(1, 6)]}
        weights = {name: rng.choice([0.1, 0.3, 1.0, 2.5]) for name in available}
        total = rng.randrange(1, sum(available.values()) + 1)
        quotas = share_out(total, available, weights)
        assert sum(quotas.values()) == total
        assert all(0 <= quotas[name] <= available[name] for name in available)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"max_removed_share": 0.3}, "dedupe.max_removed_share"),
        ({"holdout_share": 0.99999}, "dedupe.holdout_share"),
        ({"holdout_share": 0.00001}, "dedupe.holdout_share"),
    ],
)
def test_too_many_duplicates_and_an_empty_pool_or_holdout_name_the_key(
    corpus: list[Record], settings: dict[str, float], key: str
) -> None:
    with pytest.raises(UserError, match=f"^params.yaml: {key}: ") as raised:
        run(corpus, **settings)
    assert "\n" not in str(raised.value)


def test_a_record_over_a_cap_does_not_count_as_a_duplicate() -> None:
    rng = random.Random(9)
    records = [record(text(rng), text(rng)) for _ in range(100)]
    result = run(records, max_records=2, max_holdout=1, max_removed_share=0.0)
    assert (len(result.pool), len(result.holdout), len(result.removed)) == (2, 1, 97)


def test_two_processes_write_the_same_bytes(corpus: list[Record], tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes((SOURCE / "params.yaml").read_bytes())
    edit_params(
        tmp_path,
        {
            "ingest": {"docstrings": {"a": {}, "b": {}}, "files": {}},
            "dedupe": {"holdout_share": 0.2, "max_holdout": 20, "max_records": 90},
        },
    )
    write_records(tmp_path / "raw.parquet", corpus)
    names = ("pool", "holdout", "duplicates", "candidates", "metrics")
    written = []
    for seed in ("1", "2"):  # Python's own hash of texts differs between the two
        options = [option for name in names for option in (f"--{name}", f"{seed}/{name}")]
        done = subprocess.run(
            [sys.executable, "-m", "components.dedupe", "--records", "raw.parquet", *options],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(SOURCE)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        written.append([(tmp_path / seed / name).read_bytes() for name in names])
    assert written[0] == written[1]
    pool = read_records(tmp_path / "1" / "pool")
    candidates = tables.read(tmp_path / "1" / "candidates", tables.CANDIDATES)
    assert candidates["id"].to_pylist() == ids(pool)
    metrics = read_json(tmp_path / "1" / "metrics")
    assert metrics["records"] == metrics["pool"] + metrics["holdout"] + sum(metrics["removed"].values())
