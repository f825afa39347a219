"""Spoiled records: how many, which, and what is done to them."""

from __future__ import annotations

from collections import Counter

import pytest

from components.core.settings.noise import NoiseSettings
from components.data.records import Message, Record, make_record
from components.noise.plant import plant

POOL = [
    make_record("a" if number % 2 else "b", (Message("user", f"question {number}"), Message("assistant", text)))
    for number in range(60)
    for text in [" ".join(f"word{number}x{place}" for place in range(number % 13 + 1))]
]


def spoiled(kind: str, share: float = 0.5) -> list[tuple[Record, Record]]:
    """Each record of the pool that is spoiled in this way, before and after."""
    pool, planted = plant(POOL, NoiseSettings(share=share, kinds=[kind]))  # type: ignore[list-item]
    by_id, after = {record.id: record for record in POOL}, {record.id: record for record in pool}
    return [(by_id[row.original], after[row.id]) for row in planted]


def test_without_a_share_the_pool_stays_as_it_is() -> None:
    assert plant(POOL, NoiseSettings()) == (POOL, [])


def test_the_share_is_spoiled_each_kind_equally_often_and_the_rest_stays_in_its_place() -> None:
    settings = NoiseSettings(share=0.3)
    pool, planted = plant(POOL, settings)
    assert Counter(row.kind for row in planted) == dict.fromkeys(settings.kinds, 3)
    changed = [row for row, (before, after) in enumerate(zip(POOL, pool, strict=True)) if before != after]
    assert [pool[row].id for row in changed] == [row.id for row in planted]
    assert [POOL[row].id for row in changed] == [row.original for row in planted]


def test_a_larger_share_spoils_the_same_records_and_more() -> None:
    few, many = ({row.original for row in plant(POOL, NoiseSettings(share=share))[1]} for share in (0.1, 0.5))
    assert few < many


def test_the_seed_decides_which_records_are_spoiled() -> None:
    one, other = (plant(POOL, NoiseSettings(share=0.3, seed=seed)) for seed in (1, 2))
    assert one == plant(POOL, NoiseSettings(share=0.3, seed=1))
    assert {row.original for row in one[1]} != {row.original for row in other[1]}


def test_swapped_responses_are_those_of_each_other_and_none_is_its_own() -> None:
    pairs = spoiled("swapped")
    assert Counter(before.response for before, _ in pairs) == Counter(after.response for _, after in pairs)
    assert all(before.response != after.response and before.prompt == after.prompt for before, after in pairs)


def test_a_cut_response_is_the_beginning_of_the_whole_one() -> None:
    for before, after in spoiled("cut"):
        assert before.response.startswith(after.response)
        assert len(after.response) < len(before.response)


@pytest.mark.parametrize("kind", ["boilerplate", "language", "random-words"])
def test_the_prompt_stays_and_the_response_is_another(kind: str) -> None:
    for before, after in spoiled(kind):
        assert after.prompt == before.prompt
        assert after.response not in ("", before.response)
        assert after.source == before.source


def test_a_near_copy_resembles_a_record_that_stays() -> None:
    pool, planted = plant(POOL, NoiseSettings(share=0.2, kinds=["near-copy"]))
    copies = {row.id for row in planted}
    kept = {record.prompt: record for record in pool if record.id not in copies}
    for copy in (record for record in pool if record.id in copies):
        words = kept[copy.prompt].response.split()
        assert 0 < len(copy.response.split()) <= len(words)
        assert set(copy.response.split()) <= {*words, copy.response}
