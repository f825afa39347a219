"""The complexity of a record: the IFD score of arXiv 2308.12032, section 2.2, as used by IterIT (arXiv 2412.17365).

For a record with prompt x and response y of n tokens:

    nll_conditional   = mean over y_t of -log p(y_t | x, y_<t)      nats per token
    nll_unconditional = the same without x                          nats per token
    complexity        = exp(nll_conditional - nll_unconditional)    a ratio of perplexities

components/model/chat.py renders the two texts and finds the start of the response. The positions from there to the end
of the text are scored, end-of-turn tokens included, and equally many in both texts: truncation at `max_length` shortens
both alike. A complexity of 1 or more means that the prompt does not help: the record is *misaligned*. A record of which
nothing is left to score, or whose loss is not finite, is *unscorable*: it stays in the table, with the reason.

Losses are float32 whatever the model's dtype; they are summed in float64.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.core.errors import UserError
from components.core.paths import PARAMS
from components.data import tables
from components.data.records import Record
from components.model.chat import Encoded, encode_conditional, encode_unconditional
from components.scoring.losses import Text, make_scorer, measure_pairs

VARIANT = "ifd"
UNTIMED = nullcontext()

NO_RESPONSE = "the response is empty"
CUT_OFF = "no token of the response is left within max_length"
NOT_FINITE = "the model gives no finite loss"
OTHER_TOKENS = "the response has other tokens with the prompt than without it"

SHOWN_REASONS = 3

WINDOW = 128  # records that are sorted by length and scored together; also a shard of the store: what a kill can cost
LARGEST_EXPONENT = 709.0  # exp overflows above it; only a broken model's losses differ by so many nats per token


def score_records(
    records: Iterable[Record],
    model: Any,
    tokenizer: Any,
    *,
    max_length: int,
    batch_tokens: int,
    system: str,
    template: str = "chat",
    advance: Callable[[int], object] = lambda _: None,
    arithmetic: AbstractContextManager[object] = UNTIMED,
) -> pa.Table:
    """tables.SCORES with one row per record, in the order of `records`.

    A row depends on the other records only by float32's rounding. `advance` is called with the number of records just
    finished; `arithmetic` is entered while the model computes.
    """
    scored = [tables.SCORES.empty_table()]
    scorer = None
    for window in windows(records):
        scorer = scorer or make_scorer(model, tokenizer, system=system, template=template)
        pairs = encode_pairs(window, tokenizer, system=system, template=template, max_length=max_length)
        with arithmetic:
            losses = measure_pairs(pairs, scorer, batch_tokens=batch_tokens, advance=advance)
        scored.append(score_rows(window, pairs, losses))
    return pa.concat_tables(scored)


def windows(records: Iterable[Record]) -> Iterator[list[Record]]:
    """The records in lists of at most WINDOW."""
    records = iter(records)
    while window := list(itertools.islice(records, WINDOW)):
        yield window


def encode_pairs(
    records: Sequence[Record], tokenizer: Any, *, system: str, template: str, max_length: int
) -> list[tuple[Text, Text]]:
    """The conditional and the unconditional text of each record, with equally many scored positions in both."""
    conditional = encode_conditional(records, tokenizer, system=system, template=template, max_length=max_length)
    unconditional = encode_unconditional(records, tokenizer, template=template, max_length=max_length)
    return [
        _pair(with_prompt, without_prompt) if record.response.strip() else _nothing(NO_RESPONSE)
        for record, with_prompt, without_prompt in zip(records, conditional, unconditional, strict=True)
    ]


def _pair(conditional: Encoded, unconditional: Encoded) -> tuple[Text, Text]:
    problem = conditional.problem or unconditional.problem
    if problem:
        return _nothing(problem)
    # the first token of a text cannot be predicted from anything; it is left out of both
    skipped = 0 if conditional.start and unconditional.start else 1
    count = min(len(text.ids) - text.start for text in (conditional, unconditional)) - skipped
    if count <= 0:
        return _nothing(CUT_OFF)
    starts = (conditional.start + skipped, unconditional.start + skipped)
    texts = (
        Text(conditional.ids[: starts[0] + count], starts[0]),
        Text(unconditional.ids[: starts[1] + count], starts[1]),
    )
    if texts[0].ids[starts[0] :] != texts[1].ids[starts[1] :]:
        return _nothing(OTHER_TOKENS)
    return texts


def _nothing(reason: str) -> tuple[Text, Text]:
    return Text([], 0, reason), Text([], 0, reason)


def score_rows(
    records: Sequence[Record], pairs: Sequence[tuple[Text, Text]], losses: npt.NDArray[np.float64]
) -> pa.Table:
    """tables.SCORES of the records, from their losses in nats per token: shape (records, 2), conditional first."""
    rows = []
    for record, (text, _), (conditional, unconditional) in zip(records, pairs, losses.tolist(), strict=True):
        reason = None
        complexity = math.exp(min(conditional - unconditional, LARGEST_EXPONENT)) if text.scored else math.nan
        if not text.scored:
            reason = text.problem
        elif not math.isfinite(complexity) or not math.isfinite(conditional + unconditional):
            reason = NOT_FINITE
        numbers = (None, None, None) if reason else (conditional, unconditional, complexity)
        rows.append((record.id, text.scored, *numbers, reason))
    columns = [
        pa.array(column, type=field.type) for column, field in zip(zip(*rows, strict=True), tables.SCORES, strict=True)
    ]
    return pa.table(columns, schema=tables.SCORES)


def unscored_rows(records: Sequence[Record], pairs: Sequence[tuple[Text, Text]]) -> pa.Table:
    """tables.SCORES of the records without losses: what could be scored has no reason."""
    columns = {
        "id": [record.id for record in records],
        "response_tokens": [text.scored for text, _ in pairs],
        "reason": [None if text.scored else text.problem for text, _ in pairs],
    }
    empty = {name: [None] * len(pairs) for name in tables.SCORES.names if name not in columns}
    return pa.table(columns | empty).select(tables.SCORES.names).cast(tables.SCORES)


def explain_unscorable(scores: pa.Table) -> list[str]:
    """A line for each of the commonest reasons for which records of tables.SCORES are unscorable, with one id."""
    unscorable = [row for row in scores.select(["id", "reason"]).to_pylist() if row["reason"] is not None]
    counts = Counter(row["reason"] for row in unscorable)
    examples = {row["reason"]: row["id"] for row in reversed(unscorable)}
    return [
        f"{count} unscorable, for example record {examples[reason]}: {reason}"
        for reason, count in counts.most_common(SHOWN_REASONS)
    ]


def check_length(model: Any, max_length: int) -> None:
    """Raises UserError when the model has fewer positions than `max_length`."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and max_length > longest:
        raise UserError(f"{PARAMS}: score.max_length: {max_length} is more than the {longest} positions of the model")
