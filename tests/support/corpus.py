"""Records with duplicates of every kind, drawn with a fixed seed."""

from __future__ import annotations

import random

from components.data.records import Message, Record, make_record

WORDS = [f"word{number}" for number in range(400)]


def record(prompt: str, response: str, source: str = "a") -> Record:
    return make_record(source, [Message("user", prompt), Message("assistant", response)])


def text(rng: random.Random, words: int = 40) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def changed(rng: random.Random, original: str, words: int = 1) -> str:
    """The text with that many of its words replaced."""
    parts = original.split()
    for index in rng.sample(range(len(parts)), words):
        parts[index] = f"new{rng.randrange(10**6)}"
    return " ".join(parts)


def make_corpus() -> list[Record]:
    """300 texts in the sources a and b, with repeated records, repeated responses, and near duplicates of all degrees.

    The same records in the same order every time.
    """
    rng = random.Random(7)
    records = [record(text(rng, 12), text(rng), rng.choice("ab")) for _ in range(300)]
    for original in records[:120]:
        records.append(record(original.prompt, original.response, "b"))
        records.append(record(text(rng, 12), original.response, "b"))
    for original in records[100:300]:
        variants = [changed(rng, original.response, words) for words in (1, 2, 4, 8)]
        records += [record(original.prompt, variant, "b") for variant in variants]
    rng.shuffle(records)
    return records
