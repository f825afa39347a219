"""Spoils a share of the pool by a seed, and lists what was done to which record.

    swapped         the response of another spoiled record
    cut             the first half of the response's words
    boilerplate     a refusal that could stand below any prompt
    language        sentences of another language, about as long as the response
    random-words    words drawn from all responses of the pool, as many as the response has
    near-copy       a copy of a record that stays as it is, with one word in ten left out

A spoiled record stands where the good one stood, with the id of its new content. Which records are spoiled depends on
the seed and their ids alone; a larger share spoils the same ones and more.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from components.core.settings.noise import NoiseSettings
from components.data.records import Message, Record, make_record

LEFT_OUT = 10  # of a near copy, every tenth word

BOILERPLATE = (
    "As an AI language model, I do not have personal opinions and cannot help with this request.",
    "I'm sorry, but as an AI assistant I am not able to provide an answer to that question.",
    "As an AI, I have no access to this information. Please consult a qualified professional.",
)
OTHER_LANGUAGES = (
    "Das Wetter war gestern besser als heute. Wir sind trotzdem mit dem Rad zum See gefahren und spät zurückgekommen.",
    "Le train part à huit heures du matin. Il faut acheter les billets la veille, sinon ils coûtent bien plus cher.",
    "La tienda abre a las nueve y cierra a las dos. Por la tarde no hay nadie, así que es mejor ir temprano.",
    "Il libro che cercavi si trova sul tavolo della cucina. Lo ha lasciato mia sorella prima di uscire di casa.",
    "Pociąg spóźnił się o godzinę, więc zdążyliśmy jeszcze wypić kawę i porozmawiać o planach na lato.",
)


@dataclass(frozen=True, slots=True)
class Planted:
    """A spoiled record: a row of tables.NOISE."""

    id: str
    """Of the spoiled record."""
    kind: str
    original: str
    """Id of the record that stood there before."""


def plant(pool: Sequence[Record], settings: NoiseSettings) -> tuple[Sequence[Record], list[Planted]]:
    """The pool with its spoiled records, in its order, and what was done to them."""
    count = round(settings.share * len(pool))
    if not count:
        return pool, []
    pool = list(pool)  # stored records would be made again for each look at them
    chosen = sorted(range(len(pool)), key=lambda row: _digest(settings.seed, pool[row].id))
    spoiled, kept = chosen[:count], chosen[count:]
    kind_of = {row: settings.kinds[place % len(settings.kinds)] for place, row in enumerate(spoiled)}
    swapped = [row for row in spoiled if kind_of[row] == "swapped"]
    donors = dict(zip(swapped, [*swapped[1:], *swapped[:1]], strict=True))
    words = [word for record in pool for word in record.response.split()]
    result, planted = list(pool), []
    for row in spoiled:
        record, chance = pool[row], random.Random(_digest(settings.seed, pool[row].id))  # noqa: S311
        if kind_of[row] == "near-copy":
            copied = pool[chance.choice(kept or spoiled)]
            record = replace(copied, source=record.source)
            response = _shortened(copied.response)
        elif kind_of[row] == "swapped":
            response = pool[donors[row]].response
        else:
            response = _spoil(kind_of[row], record.response, words, chance)
        messages = (*record.messages[:-1], Message("assistant", response))
        result[row] = make_record(record.source, messages, dict(record.meta))
        planted.append(Planted(result[row].id, kind_of[row], pool[row].id))
    place: Mapping[str, int] = {record.id: row for row, record in enumerate(result)}
    return result, sorted(planted, key=lambda one: place[one.id])


def _spoil(kind: str, response: str, words: Sequence[str], chance: random.Random) -> str:
    length = max(len(response.split()), 1)
    if kind == "cut":
        kept = response.split()[: max(length // 2, 1)]
        return " ".join(kept) if length > 1 else response[: max(len(response) // 2, 1)]
    if kind == "boilerplate":
        return chance.choice(BOILERPLATE)
    if kind == "language":
        sentences = chance.choice(OTHER_LANGUAGES).split()
        return " ".join((sentences * (length // len(sentences) + 1))[: max(length, len(sentences) // 2)])
    assert kind == "random-words"
    return " ".join(chance.choices(words, k=length))


def _shortened(text: str) -> str:
    """The text without every tenth word, and at least without its last word."""
    words = text.split()
    kept = [word for place, word in enumerate(words, 1) if place % LEFT_OUT]
    return " ".join(kept if len(kept) < len(words) else words[:-1]) or text[:-1] or text


def _digest(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"noise:{seed}:{key}".encode()).digest()[:8])
