"""The complexity of a record: the IFD score of arXiv 2308.12032, section 2.2, as IterIT uses it (arXiv 2412.17365).

For a record with prompt x and response y of n tokens:

    nll_conditional   = mean over y_t of -log p(y_t | x, y_<t)      nats per token
    nll_unconditional = the same without x                          nats per token
    complexity        = exp(nll_conditional - nll_unconditional)    a ratio of perplexities

components/model/chat.py renders the two texts and says where the response starts. Scored are the positions from there
to the end of the text (end-of-turn tokens included), the same number in both; truncation at `max_length` shortens both
alike. A complexity of 1 or more means that the prompt does not help: the record is *misaligned*. Where nothing is left
to score, or no loss is finite, the record is *unscorable*: it is kept in the table, with the reason.

The loss is float32 whatever the model's dtype; its sums are float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.core.errors import UserError
from components.data import tables
from components.data.records import Record
from components.model.chat import Encoded, encode_conditional, encode_unconditional
from components.scoring.losses import Text, make_reader, measure_pairs

VARIANT = "ifd"
UNTIMED = nullcontext()

NO_RESPONSE = "the response is empty"
CUT_OFF = "no token of the response is left within max_length"
NOT_FINITE = "the model gives no finite loss"


WINDOW = 128  # records sorted by length and scored together; also a shard of the store, so all that a kill costs


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

    A row does not depend on the other records beyond float32's rounding. `advance` is called with the number of
    records just finished; `arithmetic` is entered while the model computes.
    """
    scored = [pa.table({name: [] for name in tables.SCORES.names}, schema=tables.SCORES)]
    reader = None
    for window in windows(records):
        reader = reader or make_reader(model, tokenizer, system=system, template=template)
        pairs = encode_pairs(window, tokenizer, system=system, template=template, max_length=max_length)
        with arithmetic:
            losses = measure_pairs(pairs, reader, batch_tokens=batch_tokens, advance=advance)
        scored.append(score_rows(window, pairs, losses))
    return pa.concat_tables(scored)


def windows(records: Iterable[Record]) -> Iterator[list[Record]]:
    """The records in lists of WINDOW at most."""
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
        _pair(with_prompt, alone) if record.response.strip() else (Text([], 0), Text([], 0))
        for record, with_prompt, alone in zip(records, conditional, unconditional, strict=True)
    ]


def _pair(conditional: Encoded, unconditional: Encoded) -> tuple[Text, Text]:
    # nothing precedes the first token of a text, so it cannot be predicted: it is left out of both
    skipped = 0 if conditional.start and unconditional.start else 1
    count = min(len(text.ids) - text.start for text in (conditional, unconditional)) - skipped
    if count <= 0:
        return Text([], 0), Text([], 0)
    starts = (conditional.start + skipped, unconditional.start + skipped)
    return (
        Text(conditional.ids[: starts[0] + count], starts[0]),
        Text(unconditional.ids[: starts[1] + count], starts[1]),
    )


def score_rows(
    records: Sequence[Record], pairs: Sequence[tuple[Text, Text]], losses: npt.NDArray[np.float64]
) -> pa.Table:
    """tables.SCORES of the records, from their losses in nats per token: shape (records, 2), conditional first."""
    rows = []
    for record, (text, _), (conditional, unconditional) in zip(records, pairs, losses.tolist(), strict=True):
        reason = None
        # exp overflows above 709, a difference in nats per token that only a broken model reaches
        complexity = math.exp(min(conditional - unconditional, 709.0)) if text.scored else math.nan
        if not record.response.strip():
            reason = NO_RESPONSE
        elif not text.scored:
            reason = CUT_OFF
        elif not math.isfinite(complexity) or not math.isfinite(conditional + unconditional):
            reason = NOT_FINITE
        numbers = (None, None, None) if reason else (conditional, unconditional, complexity)
        rows.append((record.id, text.scored, *numbers, reason))
    columns = [
        pa.array(column, type=field.type) for column, field in zip(zip(*rows, strict=True), tables.SCORES, strict=True)
    ]
    return pa.table(columns, schema=tables.SCORES)


def check_length(model: Any, max_length: int) -> None:
    """Raises UserError when the model has fewer positions than `max_length`."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and max_length > longest:
        raise UserError(
            f"params.yaml: score.max_length: {max_length} is more than the {longest} positions of the model"
        )
