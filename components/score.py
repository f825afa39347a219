"""How hard each record is for the model as it now is: the IFD score (arXiv 2308.12032) of DESIGN's method.

For a record with prompt x and response y of n tokens:

    nll_conditional   = mean over y_t of -log p(y_t | x, y_<t)      nats per token
    nll_unconditional = the same without x                          nats per token
    complexity        = exp(nll_conditional - nll_unconditional)    a ratio of perplexities

components/chat.py makes the two texts and says where the response starts. Scored are the positions from there to
the end of the text (end-of-turn tokens included), the same number in both; truncation at `max_length` shortens both
alike. 1 or more: the prompt does not help (*misaligned*). Nothing left to score, or no finite number: *unscorable*,
kept in the table with the reason.

The loss is float32 whatever the model's dtype, its sums are float64. What makes it fast, measured with 135 million
parameters on 2 cores (benchmarks/results.md): batches of texts of like length, by a budget of tokens; the output
layer at scored positions only, a few at a time; the template's opening (system message and all) computed once and
reused as a key-value cache. None of it changes a record's result by more than float32's rounding.

    python -m components.score --iteration 1 --pool data/pool.parquet --model models/base ...
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components import tables
from components.chat import Encoded, encode_conditional, encode_unconditional
from components.digests import folder_digest
from components.errors import UserError
from components.progress import progress
from components.records import Message, Record, iterate_records, make_record
from components.settings import ScoreSettings, load_settings
from components.stage import SCRATCH, reuse_freed_memory, stage, stage_name

VARIANT = "ifd"
STORE = SCRATCH / "scores"
STORE_FORMAT = "1"  # raise it when a change here changes numbers: stored scores are then not found any more

# Records that are sorted by length and scored together; also a shard, which is what a kill can cost.
WINDOW = 128
SHORTEST_OPENING = 8  # tokens; a shorter one is not worth a cache
LOGITS_AT_ONCE = 128  # positions; 128 x 49,152 float32 logits are 25 MB, which still fits the last-level cache
WHOLE_LOGITS_BYTES = 2**29  # where the output layer cannot be called on its own

NO_RESPONSE = "the response is empty"
CUT_OFF = "no token of the response is left within max_length"
NOT_FINITE = "the model gives no finite loss"


@dataclass(frozen=True, slots=True)
class Text:
    """One text to read: `ids` up to the last scored position, of which those from `start` on are scored."""

    ids: list[int]
    start: int

    @property
    def scored(self) -> int:
        return len(self.ids) - self.start


@dataclass(frozen=True, slots=True)
class Opening:
    """Token ids that texts of one kind begin with, and the attention keys and values of each layer over them."""

    ids: list[int]
    layers: tuple[tuple[Any, Any], ...]


@dataclass(frozen=True, slots=True)
class Reader:
    """A model, ready to read texts."""

    model: Any
    openings: tuple[Opening, ...]
    head_alone: bool
    """The output layer alone turns the body's states into the model's logits (not so where these are scaled or
    capped afterwards)."""


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
) -> pa.Table:
    """One row of tables.SCORES a record, in the order of `records`.

    A row does not depend on the other records beyond float32's rounding. `advance` is told how many records are done.
    """
    scored = [pa.table({name: [] for name in tables.SCORES.names}, schema=tables.SCORES)]
    reader = None
    for window in _windows(records):
        reader = reader or make_reader(model, tokenizer, system=system, template=template)
        pairs = encode_pairs(window, tokenizer, system=system, template=template, max_length=max_length)
        losses = read_pairs(pairs, reader, batch_tokens=batch_tokens, advance=advance)
        scored.append(_rows(window, pairs, losses))
    return pa.concat_tables(scored)


def _windows(records: Iterable[Record]) -> Iterator[list[Record]]:
    records = iter(records)
    while window := list(itertools.islice(records, WINDOW)):
        yield window


# --- texts ------------------------------------------------------------------------------------------------------------


def encode_pairs(
    records: Sequence[Record], tokenizer: Any, *, system: str, template: str, max_length: int
) -> list[tuple[Text, Text]]:
    """The conditional and the unconditional text of each record, with as many scored positions in either."""
    conditional = encode_conditional(records, tokenizer, system=system, template=template, max_length=max_length)
    unconditional = encode_unconditional(records, tokenizer, template=template, max_length=max_length)
    return [
        _pair(one, other) if record.response.strip() else (Text([], 0), Text([], 0))
        for record, one, other in zip(records, conditional, unconditional, strict=True)
    ]


def _pair(conditional: Encoded, unconditional: Encoded) -> tuple[Text, Text]:
    # the first token of a text has nothing to be predicted from; it is left out of both
    skipped = 0 if conditional.start and unconditional.start else 1
    count = min(len(text.ids) - text.start for text in (conditional, unconditional)) - skipped
    if count <= 0:
        return Text([], 0), Text([], 0)
    starts = (conditional.start + skipped, unconditional.start + skipped)
    return (
        Text(conditional.ids[: starts[0] + count], starts[0]),
        Text(unconditional.ids[: starts[1] + count], starts[1]),
    )


def _rows(records: Sequence[Record], pairs: Sequence[tuple[Text, Text]], losses: npt.NDArray[np.float64]) -> pa.Table:
    """tables.SCORES of records whose losses (nats per token; one row a record, two columns) are known."""
    rows = []
    for record, (text, _), (conditional, unconditional) in zip(records, pairs, losses.tolist(), strict=True):
        reason = None
        # overflow needs a difference of 709 nats per token: no model, but a broken one
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


# --- the model --------------------------------------------------------------------------------------------------------


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder; needs no torch. Raises UserError when it has no offsets."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no tokenizer that can be loaded: {_first_line(error)}") from error
    if not tokenizer.is_fast:
        raise UserError(
            f"{folder}: the tokenizer has no tokenizer.json; without one it is not known where tokens begin"
        )
    return tokenizer


def load_model(folder: Path, dtype: str) -> tuple[Any, Any]:
    """Model (safetensors only, no remote code, on the GPU where there is one) and tokenizer of a model folder."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    reuse_freed_memory()
    tokenizer = load_tokenizer(folder)
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=getattr(torch, dtype),
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no model that can be loaded: {_first_line(error)}") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval(), tokenizer


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def make_reader(model: Any, tokenizer: Any, *, system: str, template: str) -> Reader:
    """Finds what the texts have in common, and which of the two short cuts this architecture allows, by trying them."""
    import torch

    # two records that share nothing but the template
    probes = [make_record("probe", [Message("user", text), Message("assistant", text)]) for text in ("A b", "1 2")]
    kinds = (
        encode_conditional(probes, tokenizer, system=system, template=template),
        encode_unconditional(probes, tokenizer, template=template),
    )
    with torch.inference_mode():
        openings = [_make_opening(model, first, second) for first, second in kinds]
        head_alone = _head_alone(model, kinds[0][0].ids)
    return Reader(model, tuple(opening for opening in openings if opening), head_alone)


def _make_opening(model: Any, first: Encoded, second: Encoded) -> Opening | None:
    import torch
    from transformers.cache_utils import DynamicLayer

    pairs = enumerate(zip(first.ids, second.ids, strict=False))
    shared = next((place for place, (one, other) in pairs if one != other), min(len(first.ids), len(second.ids)))
    ids = first.ids[: min(shared, first.start - 1, second.start - 1)]
    if len(ids) < SHORTEST_OPENING:
        return None
    cache = model.base_model(input_ids=_tensor([ids], model), use_cache=True).past_key_values
    if cache is None or any(type(layer) is not DynamicLayer for layer in getattr(cache, "layers", [None])):
        return None  # sliding windows and recurrent states are not plain keys and values
    opening = Opening(ids, tuple((layer.keys, layer.values) for layer in cache.layers))
    whole = model.base_model(input_ids=_tensor([first.ids], model), use_cache=False).last_hidden_state[:, len(ids) :]
    rest = _states(model, _tensor([first.ids[len(ids) :]], model), opening)
    tolerance = 1e-3 if whole.dtype == torch.float32 else 5e-2
    return opening if _close(whole, rest, tolerance) else None


def _head_alone(model: Any, ids: list[int]) -> bool:
    head = model.get_output_embeddings()
    if head is None:
        return False
    batch = _tensor([ids], model)
    whole = model(input_ids=batch, use_cache=False).logits
    return _close(whole, head(model.base_model(input_ids=batch, use_cache=False).last_hidden_state), 1e-4)


def _close(expected: Any, actual: Any, tolerance: float) -> bool:
    if expected.shape != actual.shape:
        return False
    distance = (expected.float() - actual.float()).norm()
    return bool(distance <= tolerance * expected.float().norm())  # false for nan too


def _tensor(rows: Sequence[Sequence[int]], model: Any) -> Any:
    import torch

    return torch.tensor(rows, dtype=torch.long).to(model.device, non_blocking=True)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_pairs(
    pairs: Sequence[tuple[Text, Text]],
    reader: Reader,
    *,
    batch_tokens: int,
    advance: Callable[[int], object] = lambda _: None,
) -> npt.NDArray[np.float64]:
    """Mean loss of both texts of each pair in nats per token, shape (pairs, 2); nan where nothing is scored."""
    import torch

    texts = [text for pair in pairs for text in pair]
    losses = np.full(len(texts), np.nan)
    unread = np.fromiter((2 if pair[0].scored else 0 for pair in pairs), int, len(pairs))
    advance(int((unread == 0).sum()))
    with torch.inference_mode():
        for opening, batch in _batches(texts, reader, batch_tokens):
            losses[batch] = _read([texts[position] for position in batch], reader, opening)
            done = 0
            for position in batch:
                unread[position // 2] -= 1
                done += int(unread[position // 2] == 0)
            advance(done)
    return losses.reshape(-1, 2)


def _batches(texts: Sequence[Text], reader: Reader, batch_tokens: int) -> list[tuple[Opening | None, list[int]]]:
    """Positions of texts that are read together: same opening, like length, `batch_tokens` with the padding."""
    if not reader.head_alone:
        size = WHOLE_LOGITS_BYTES // (4 * reader.model.config.get_text_config().vocab_size)
        batch_tokens = min(batch_tokens, max(size, 1))
    groups: dict[int, list[int]] = {}
    for position, text in enumerate(texts):
        if text.scored:
            groups.setdefault(_opening_of(text, reader.openings), []).append(position)
    batches = []
    for number, positions in sorted(groups.items()):
        opening = reader.openings[number] if number >= 0 else None
        skipped = len(opening.ids) if opening else 0
        positions.sort(key=lambda position: (-len(texts[position].ids), position))
        for longest, batch in _of_like_length(
            [len(texts[position].ids) - skipped for position in positions], batch_tokens
        ):
            batches.append((longest, opening, positions[batch]))
    # the longest first: a batch that is too large for the memory is met at once
    batches.sort(key=lambda batch: -batch[0])
    return [(opening, positions) for _, opening, positions in batches]


def _of_like_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[tuple[int, slice]]:
    """Cuts falling lengths into batches: each batch's longest text, and its place.

    A batch holds `batch_tokens` at most, padding included, and ends early, once it is a quarter full, where the next
    text would be more than a sixth padding: 11 instead of 27 tokens of padding in 100, on instructions of all lengths.
    """
    first = 0
    for last in range(1, len(lengths) + 1):
        longest, count = lengths[first], last - first
        if (
            last == len(lengths)
            or (count + 1) * longest > batch_tokens
            or (4 * count * longest >= batch_tokens and 6 * lengths[last] < 5 * longest)
        ):
            yield longest, slice(first, last)
            first = last


def _opening_of(text: Text, openings: Sequence[Opening]) -> int:
    """Number of the longest opening that the text begins with and that leaves a token before the response, or -1."""
    fitting = (
        number
        for number, opening in enumerate(openings)
        if len(opening.ids) < text.start and text.ids[: len(opening.ids)] == opening.ids
    )
    return max(fitting, key=lambda number: len(openings[number].ids), default=-1)


def _read(texts: Sequence[Text], reader: Reader, opening: Opening | None) -> npt.NDArray[np.float64]:
    """Mean loss of each text, one forward pass.

    Texts are padded on the right: a causal model's state at a position does not see what follows it, so no
    attention mask is needed, and none can mask an end-of-turn token that doubles as padding.
    """
    import torch

    model, skipped = reader.model, len(opening.ids) if opening else 0
    # the last token is predicted, never read
    length = max(len(text.ids) for text in texts) - 1 - skipped
    batch = torch.zeros((len(texts), length), dtype=torch.long)
    for row, text in enumerate(texts):
        batch[row, : len(text.ids) - 1 - skipped] = torch.tensor(text.ids[skipped:-1])
    counts = [text.scored for text in texts]
    # row by row, the place of the state that predicts each scored token
    places = torch.cat(
        [torch.arange(text.start - 1, len(text.ids) - 1) + (row * length - skipped) for row, text in enumerate(texts)]
    ).to(model.device)
    targets = torch.tensor([token for text in texts for token in text.ids[text.start :]]).to(model.device)
    if reader.head_alone:
        states = _states(model, batch.to(model.device), opening).flatten(0, 1)[places]
        head = model.get_output_embeddings()
        losses = torch.cat(
            [
                _loss(head(states[first : first + LOGITS_AT_ONCE]), targets[first : first + LOGITS_AT_ONCE])
                for first in range(0, len(targets), LOGITS_AT_ONCE)
            ]
        )
    else:
        cache = _cache(opening, len(texts))
        logits = model(input_ids=batch.to(model.device), past_key_values=cache, use_cache=cache is not None).logits
        losses = _loss(logits.flatten(0, 1)[places], targets)
    firsts = np.cumsum([0, *counts[:-1]])
    sums: npt.NDArray[np.float64] = np.add.reduceat(losses.double().cpu().numpy(), firsts)
    return sums / counts


def _states(model: Any, batch: Any, opening: Opening | None) -> Any:
    """Final states of the model's body, shape (texts, positions, width)."""
    cache = _cache(opening, len(batch))
    return model.base_model(input_ids=batch, past_key_values=cache, use_cache=cache is not None).last_hidden_state


def _cache(opening: Opening | None, texts: int) -> Any:
    from transformers import DynamicCache

    if opening is None:
        return None
    # views: the cache copies when it appends
    return DynamicCache(
        [(keys.expand(texts, -1, -1, -1), values.expand(texts, -1, -1, -1)) for keys, values in opening.layers]
    )


def _loss(logits: Any, targets: Any) -> Any:
    """-log p(target) in nats, float32."""
    import torch

    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


# --- scores that are already known ------------------------------------------------------------------------------------


class Store:
    """Losses by what decides them: the model's files, the arithmetic, and the token ids of both texts.

    One Parquet file a window, written beside its place and renamed, so that a killed stage goes on where it was.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shards = [shard for path in sorted(folder.glob("*.parquet")) if (shard := _read_shard(path)) is not None]
        keys = np.concatenate(
            [np.array(shard["key"].to_pylist(), dtype="S32") for shard in shards] or [np.array([], "S32")]
        )
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        self._losses = np.concatenate(
            [np.column_stack([shard["conditional"], shard["unconditional"]]) for shard in shards] or [np.empty((0, 2))]
        )[self._order]

    def find(self, keys: Sequence[str]) -> npt.NDArray[np.float64]:
        """Losses, shape (keys, 2); nan where they are not known."""
        wanted = np.array(keys, dtype="S32")
        found = np.full((len(keys), 2), np.nan)
        if len(self._keys):
            places = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
            known = self._keys[places] == wanted
            found[known] = self._losses[places[known]]
        return found

    def add(self, keys: Sequence[str], losses: npt.NDArray[np.float64]) -> None:
        """For the next run; this one does not ask again."""
        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:32]
        shard = pa.table({"key": list(keys), "conditional": losses[:, 0], "unconditional": losses[:, 1]})
        with tables.written_beside(self.folder / f"{name}.parquet") as beside:
            pq.write_table(shard, beside)


def _read_shard(path: Path) -> pa.Table | None:
    try:
        return pq.read_table(path, columns=["key", "conditional", "unconditional"])
    except (pa.ArrowInvalid, OSError):
        return None  # damaged on disk: scored again and replaced


def store_of(folder: Path, dtype: str) -> Store:
    """The store of a model. Template, system message and truncation need no place in its name: they are in the keys."""
    parts = [STORE_FORMAT, folder_digest(folder), dtype, version("torch"), version("transformers")]
    return Store(STORE / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32])


def key_of(pair: tuple[Text, Text]) -> str:
    """32 hex characters that stand for the token ids and the scored positions of both texts."""
    total = hashlib.sha256()
    for text in pair:
        total.update(np.array([len(text.ids), text.start, *text.ids], dtype="<i8").tobytes())
    return total.hexdigest()[:32]


# --- the stage --------------------------------------------------------------------------------------------------------


def score_pool(
    pool: Iterable[Record], candidates: Sequence[str], folder: Path, settings: ScoreSettings, *, what: str = "score"
) -> pa.Table:
    """tables.SCORES of the candidates, in their order. What the store knows is not computed again."""
    tokenizer = load_tokenizer(folder)
    store = store_of(folder, settings.dtype)
    wanted = set(candidates)
    shape = {"system": settings.system, "template": settings.template}
    scored = [pa.table({name: [] for name in tables.SCORES.names}, schema=tables.SCORES)]
    reader: Reader | None = None
    with progress(total=len(candidates), unit="records", what=what) as advance:
        for window in _windows(record for record in pool if record.id in wanted):
            pairs = encode_pairs(window, tokenizer, max_length=settings.max_length, **shape)
            keys = [key_of(pair) for pair in pairs]
            losses = store.find(keys)
            missing = [
                row
                for row, (pair, loss) in enumerate(zip(pairs, losses, strict=True))
                if pair[0].scored and np.isnan(loss).any()
            ]
            advance(len(window) - len(missing))
            if missing:
                # the whole window when none of it is known: what a stage gives does not depend on where it was killed
                if reader is None:
                    model, _ = load_model(folder, settings.dtype)
                    check_length(model, settings.max_length)
                    reader = make_reader(model, tokenizer, **shape)
                some = [pairs[row] for row in missing]
                losses[missing] = read_pairs(some, reader, batch_tokens=settings.batch_tokens, advance=advance)
                store.add([keys[row] for row in missing], losses[missing])
            scored.append(_rows(window, pairs, losses))
    return _in_order(pa.concat_tables(scored), candidates)


def _in_order(scores: pa.Table, candidates: Sequence[str]) -> pa.Table:
    row_of = {key: row for row, key in enumerate(scores["id"].to_pylist())}
    absent = [key for key in candidates if key not in row_of]
    if absent:
        raise UserError(f"candidate {absent[0]} is not in the pool ({len(absent)} such); `dvc repro` makes both anew")
    return scores.take(pa.array([row_of[key] for key in candidates], pa.int64()))


def check_length(model: Any, max_length: int) -> None:
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and max_length > longest:
        raise UserError(
            f"params.yaml: score.max_length: {max_length} is more than the {longest} positions of the model"
        )


def summarize(scores: pa.Table) -> dict[str, Any]:
    """What metrics/score/N.json holds; means and shares over the scorable and all records."""
    complexity = scores["complexity"].drop_null().to_numpy()
    misaligned = int((complexity >= 1).sum())
    unscorable = scores.num_rows - len(complexity)
    return {
        "variant": VARIANT,
        "records": scores.num_rows,
        "scored": len(complexity),
        "misaligned": misaligned,
        "unscorable": unscorable,
        "misaligned_share": round((misaligned + unscorable) / max(scores.num_rows, 1), 6),
        "mean_complexity": round(float(complexity.mean()), 6) if len(complexity) else None,
    }


def check_share(metrics: dict[str, Any], settings: ScoreSettings) -> None:
    """Raises UserError when so much of a whole pool is misaligned or unscorable that the texts must be wrong."""
    if metrics["misaligned_share"] > settings.max_misaligned_share:
        raise UserError(
            f"{metrics['misaligned']} of {metrics['records']} records are misaligned (complexity 1 or more) and "
            f"{metrics['unscorable']} unscorable, more than score.max_misaligned_share "
            f"{settings.max_misaligned_share} allows: does the chat template fit the model (score.template: none "
            "scores plain text), does score.system, and is score.max_length long enough?"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m components.score", description="Score each candidate's complexity."
    )
    parser.add_argument("--iteration", required=True)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--candidates", type=Path, required=True)
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    options = parser.parse_args()
    with stage("score", options.iteration):
        settings = load_settings().score
        candidates = tables.read(options.candidates, tables.CANDIDATES)["id"].to_pylist()
        pool_size = pq.read_metadata(options.pool).num_rows
        what = stage_name("score", options.iteration)
        scores = score_pool(iterate_records(options.pool), candidates, options.model, settings, what=what)
        metrics = summarize(scores)
        # candidates of later iterations are meant to hold many misaligned records: the ranking puts them second
        if len(candidates) == pool_size:
            check_share(metrics, settings)
        tables.write(options.scores, scores, tables.SCORES)
        tables.write_json(options.metrics, metrics)
        print(
            f"{what}: {metrics['records']} records, mean complexity {metrics['mean_complexity']}, "
            f"{metrics['misaligned']} misaligned, {metrics['unscorable']} unscorable"
        )


if __name__ == "__main__":
    main()
