"""Which records are duplicates, which record is kept instead, and that no holdout record is trained on."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from itertools import combinations

import pytest

from components.core.errors import UserError
from components.core.settings.dedupe import DedupeSettings
from components.data.records import Record
from components.dedupe import Deduplicated, deduplicate, share_out
from tests.support.corpus import changed, make_corpus, record, text
from tests.support.plain_dedupe import jaccard, shingle

WEIGHTS = {"a": 1.0, "b": 1.0}


@pytest.fixture
def corpus() -> list[Record]:
    return make_corpus()


def run(records: list[Record], **settings: object) -> Deduplicated:
    defaults = {"holdout_share": 0.2, "max_removed_share": 1.0}
    return deduplicate(records, DedupeSettings.model_validate({**defaults, **settings}), WEIGHTS)


def similarity(a: Record, b: Record) -> float:
    return jaccard(shingle(a, 3), shingle(b, 3))


def shingles(records: list[Record]) -> list[frozenset[str]]:
    return [shingle(each, 3) for each in records]


def in_holdout_share(candidate: Record, share: float = 0.2) -> bool:
    return int.from_bytes(hashlib.sha256(f"holdout:{candidate.id}".encode()).digest()[:8]) / 2**64 < share


def ids(records: list[Record]) -> list[str]:
    return [each.id for each in records]


@pytest.mark.parametrize("caps", [{}, {"max_holdout": 20, "max_records": 90}])
def test_every_record_is_either_in_the_pool_or_in_the_holdout_or_removed(
    corpus: list[Record], caps: dict[str, int]
) -> None:
    result = run(corpus, **caps)
    placed = Counter(ids(result.pool) + ids(result.holdout) + [row.id for row in result.removed])
    assert placed == Counter(ids(corpus))
    assert not set(ids(result.pool)) & set(ids(result.holdout))
    kinds = {row.kind for row in result.removed}
    assert {"same_record", "same_response", "near", "near_holdout"} <= kinds


def test_a_record_is_removed_only_for_a_kept_record_that_it_resembles(corpus: list[Record]) -> None:
    result = run(corpus)
    by_id = dict(zip(ids(corpus), corpus, strict=True))
    all_kept = {*ids(result.pool), *ids(result.holdout)}
    holdout = set(ids(result.holdout))
    for row in result.removed:
        removed, kept = by_id[row.id], by_id[str(row.kept_id)]
        assert kept.id in all_kept
        if row.kind == "same_record":
            assert removed.id == kept.id
            continue
        assert removed.id not in all_kept
        if row.kind == "same_response":
            assert removed.response == kept.response
        else:
            assert row.similarity == similarity(removed, kept) >= 0.8
            assert row.kind != "near_holdout" or kept.id in holdout


def test_no_pool_record_is_a_near_duplicate_of_a_holdout_record(corpus: list[Record]) -> None:
    for settings in ({}, {"near": False}):
        result = run(corpus, **settings)
        pool, holdout = shingles(result.pool), shingles(result.holdout)
        assert max(jaccard(a, b) for a in pool for b in holdout) < 0.8


def test_near_duplicates_are_removed_and_less_similar_records_are_kept(corpus: list[Record]) -> None:
    closest = max(jaccard(a, b) for a, b in combinations(shingles(run(corpus).pool), 2))
    assert 0.6 < closest < 0.8  # the fixture has pairs just below the threshold


def test_a_chain_of_near_duplicates_keeps_both_of_its_ends() -> None:
    rng = random.Random(3)
    words = text(rng, 100).split()
    # each step replaces 6 words: neighbours are near duplicates, the ends are not
    chain = [record("Say it.", " ".join([*words[shift:], *(f"x{n}" for n in range(shift))])) for shift in (0, 6, 12)]
    assert similarity(chain[0], chain[1]) >= 0.8 > similarity(chain[0], chain[2])
    assert similarity(chain[1], chain[2]) >= 0.8
    others = [record(text(rng), text(rng)) for _ in range(60)]
    assert not any(in_holdout_share(link, 0.02) for link in chain)
    result = run([*chain, *others], holdout_share=0.02)
    assert chain[0] in result.pool
    assert chain[2] in result.pool
    assert [(row.id, row.kept_id) for row in result.removed] == [(chain[1].id, chain[0].id)]


def test_the_pool_yields_to_the_holdout_whatever_the_order_of_the_records() -> None:
    rng = random.Random(5)
    texts = [(text(rng, 12), text(rng)) for _ in range(40)]
    pairs = [[record(prompt, response), record(prompt, changed(rng, response))] for prompt, response in texts]
    pair = next(pair for pair in pairs if list(map(in_holdout_share, pair)) == [False, True])
    filling = [record(text(rng, 12), text(rng)) for _ in range(20)]
    result = run([*pair, *filling])
    assert pair[1] in result.holdout
    (row,) = result.removed
    assert (row.id, row.kept_id, row.kind) == (pair[0].id, pair[1].id, "near_holdout")


def test_new_pool_records_do_not_change_the_holdout(corpus: list[Record]) -> None:
    rng = random.Random(11)
    before = run(corpus)
    added = [record(text(rng, 12), text(rng), "b") for _ in range(200)]
    # also near duplicates of the holdout: they are removed and do not displace its records
    added += [record(held.prompt, changed(rng, held.response), "b") for held in before.holdout]
    added = [new for new in added if not in_holdout_share(new)]
    assert ids(run([*corpus, *added]).holdout) == ids(before.holdout)
    assert ids(run([*added, *corpus]).holdout) == ids(before.holdout)


def test_a_capped_holdout_and_a_capped_pool_are_part_of_the_uncapped_ones(corpus: list[Record]) -> None:
    whole, capped = run(corpus), run(corpus, max_holdout=10, max_records=50)
    assert len(capped.holdout) == 10
    assert len(capped.pool) == 50
    assert set(ids(capped.holdout)) <= set(ids(whole.holdout))
    over_cap = {row.id: row for row in capped.removed if row.kind == "over_cap"}
    assert {(row.kept_id, row.similarity) for row in over_cap.values()} == {(None, None)}
    # records over the cap of the holdout do not go to the pool
    assert not set(ids(capped.pool)) & set(ids(whole.holdout))
    assert set(ids(whole.holdout)) - set(ids(capped.holdout)) <= set(over_cap)


def test_under_a_cap_only_new_records_displace_records_and_only_a_few() -> None:
    rng = random.Random(13)
    records, added = ([record(text(rng), text(rng)) for _ in range(count)] for count in (300, 60))
    caps = {"max_holdout": 20, "max_records": 80}
    mixed = rng.sample([*records, *added], 360)
    before, after = run(records, **caps), run(mixed, **caps)
    for old, new in ((before.holdout, after.holdout), (before.pool, after.pool)):
        lost, gained = set(ids(old)) - set(ids(new)), set(ids(new)) - set(ids(old))
        assert gained <= set(ids(added))
        assert len(lost) == len(gained) < len(old) / 2


def test_pool_and_holdout_keep_the_order_of_the_sources(corpus: list[Record]) -> None:
    first: dict[str, int] = {}
    for index, id_ in enumerate(ids(corpus)):
        first.setdefault(id_, index)
    result = run(corpus, max_holdout=20, max_records=90)
    for part in (result.pool, result.holdout):
        indices = [first[id_] for id_ in ids(part)]
        assert indices == sorted(indices)


def test_the_same_response_to_another_prompt_is_kept_where_same_response_is_off() -> None:
    rng = random.Random(2)
    drawn = [text(rng, 3) for _ in range(40)]
    pairs = [[record(text(rng, 30), response), record(text(rng, 30), f" {response}\n")] for response in drawn]
    same = next(pair for pair in pairs if not any(map(in_holdout_share, pair)))
    filling = [record(text(rng), text(rng)) for _ in range(30)]
    removed = run([*same, *filling]).removed
    assert [(row.id, row.kind) for row in removed] == [(same[1].id, "same_response")]
    assert run([*same, *filling], same_response=False).removed == []


def test_records_without_words_are_not_duplicates_of_each_other() -> None:
    rng = random.Random(4)
    signs = [record(sign * 3, f"{sign} !") for sign in "+*/=&%$#?"]
    result = run([*signs, *(record(text(rng), text(rng)) for _ in range(30))])
    assert result.removed == []
    assert len(result.pool) + len(result.holdout) == 39


def test_sources_share_the_pool_by_weight_as_far_as_they_have_records() -> None:
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
def test_the_error_for_too_many_duplicates_or_an_empty_pool_or_holdout_names_the_key(
    corpus: list[Record], settings: dict[str, float], key: str
) -> None:
    with pytest.raises(UserError, match=f"^params.yaml: {key}: ") as error:
        run(corpus, **settings)
    assert "\n" not in str(error.value)


def test_a_record_over_a_cap_does_not_count_as_a_duplicate() -> None:
    rng = random.Random(9)
    records = [record(text(rng), text(rng)) for _ in range(100)]
    result = run(records, max_records=2, max_holdout=1, max_removed_share=0.0)
    assert (len(result.pool), len(result.holdout), len(result.removed)) == (2, 1, 97)


def test_the_pool_holds_nothing_like_a_target_and_the_holdout_stays(corpus: list[Record]) -> None:
    rng = random.Random(3)
    before = run(corpus)
    near = next(one for one in before.pool if len(one.response.split()) == 40)
    targets = [
        record(before.pool[0].prompt, before.pool[0].response, "target"),
        record("Another question.", f" {before.pool[1].response}\n", "target"),
        record(near.prompt, changed(rng, near.response), "target"),
        record(before.holdout[0].prompt, before.holdout[0].response, "target"),
        record("Like nothing.", text(rng), "target"),
    ]
    settings = DedupeSettings(holdout_share=0.2, max_removed_share=1.0)
    result = deduplicate(corpus, settings, WEIGHTS, targets)
    assert result.holdout == before.holdout
    aimed = shingles(targets)
    for kept in result.pool:
        assert kept.id not in ids(targets)
        assert kept.response.strip() not in {target.response.strip() for target in targets}
        assert all(jaccard(shingle(kept, 3), one) < 0.8 for one in aimed)
    rows = [row for row in result.removed if row.kind == "like_target"]
    by_id = {target.id: target for target in targets}
    for row in rows:
        removed, target = next(one for one in corpus if one.id == row.id), by_id[str(row.kept_id)]
        same = removed.response.strip() == target.response.strip()
        assert row.similarity == (1.0 if same else similarity(removed, target))
    assert {before.pool[0].id, before.pool[1].id, near.id} <= {row.id for row in rows}
    assert Counter(ids(result.pool) + ids(result.holdout) + [row.id for row in result.removed]) == Counter(ids(corpus))
    # with same_response off a response that is repeated is no duplicate
    apart = DedupeSettings(holdout_share=0.2, max_removed_share=1.0, same_response=False)
    kept_ids = ids(deduplicate(corpus, apart, WEIGHTS, targets[1:2]).pool)
    assert before.pool[1].id in kept_ids
