"""How hard each record is for the model as it now is: the IFD score (arXiv 2308.12032) of DESIGN's method.

For a record with prompt x and response y of n tokens:

    nll_conditional   = mean over y_t of -log p(y_t | x, y_<t)      nats per token
    nll_unconditional = the same without x                          nats per token
    complexity        = exp(nll_conditional - nll_unconditional)    a ratio of perplexities

components/chat.py makes the two texts and says where the response starts. Scored are the positions from there to
the end of the text (end-of-turn tokens included), the same number in both; truncation at `max_length` shortens both
alike. 1 or more: the prompt does not help (*misaligned*). Nothing left to score, or no finite number: *unscorable*,
kept in the table with the reason.

The loss is float32 whatever the model's dtype, its sums are float64; components/reading.py has what makes it fast.

    python -m components.score --iteration 1 --pool data/pool.parquet --model models/base ...
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components import preloaded, tables
from components.chat import Encoded, encode_conditional, encode_unconditional
from components.digests import known_digest
from components.errors import UserError
from components.launch import ERROR, launch_workers
from components.model import load_model, load_tokenizer, prepack
from components.progress import progress
from components.reading import Reader, Text, make_reader, read_pairs
from components.records import Record, iterate_records
from components.scratch import SCRATCH
from components.settings import ScoreSettings, Settings, load_settings
from components.stage import BAD_INPUT, Stopwatch, collect_rarely, die_with_parent, stage, stage_name

VARIANT = "ifd"
STORE = SCRATCH / "scores"
STORE_FORMAT = "2"  # raise it when a change here changes numbers: stored scores are then not found any more

# Records that are sorted by length and scored together; also a shard, which is what a kill can cost.
WINDOW = 128

UNTIMED = nullcontext()
ARITHMETIC = "arithmetic.json"  # in the scratch folder: what the first of several processes computed for

NO_RESPONSE = "the response is empty"
CUT_OFF = "no token of the response is left within max_length"
NOT_FINITE = "the model gives no finite loss"


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
    """One row of tables.SCORES a record, in the order of `records`.

    A row does not depend on the other records beyond float32's rounding. `advance` is told how many records are done;
    `arithmetic` is entered while the model computes.
    """
    scored = [pa.table({name: [] for name in tables.SCORES.names}, schema=tables.SCORES)]
    reader = None
    for window in _windows(records):
        reader = reader or make_reader(model, tokenizer, system=system, template=template)
        pairs = encode_pairs(window, tokenizer, system=system, template=template, max_length=max_length)
        with arithmetic:
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
    parts = [STORE_FORMAT, known_digest(folder), dtype, version("torch"), version("transformers")]
    return Store(STORE / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32])


def key_of(pair: tuple[Text, Text]) -> str:
    """32 hex characters that stand for the token ids and the scored positions of both texts."""
    total = hashlib.sha256()
    for text in pair:
        total.update(np.array([len(text.ids), text.start, *text.ids], dtype="<i8").tobytes())
    return total.hexdigest()[:32]


# --- the stage --------------------------------------------------------------------------------------------------------


def score_pool(
    pool: Iterable[Record],
    candidates: Sequence[str],
    folder: Path,
    settings: ScoreSettings,
    *,
    what: str = "score",
    share: tuple[int, int] = (0, 1),
    arithmetic: AbstractContextManager[object] = UNTIMED,
) -> pa.Table:
    """tables.SCORES of the candidates, in their order. What the store knows is not computed again.

    `share`: number of this process and of all. Each takes every so-manieth window, and leaves it in the store.
    """
    tokenizer = load_tokenizer(folder)
    store = store_of(folder, settings.dtype)
    wanted = set(candidates)
    shape = {"system": settings.system, "template": settings.template}
    scored = [pa.table({name: [] for name in tables.SCORES.names}, schema=tables.SCORES)]
    reader: Reader | None = None
    own, of = share
    shown = progress(total=len(candidates) // of, unit="records", what=what) if own == 0 else nullcontext(_silent)
    with shown as advance:
        windows = _windows(record for record in pool if record.id in wanted)
        for window in itertools.islice(windows, own, None, of):
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
                    prepack(model)
                    reader = make_reader(model, tokenizer, **shape)
                some = [pairs[row] for row in missing]
                with arithmetic:
                    losses[missing] = read_pairs(some, reader, batch_tokens=settings.batch_tokens, advance=advance)
                store.add([keys[row] for row in missing], losses[missing])
            scored.append(_rows(window, pairs, losses))
    table = pa.concat_tables(scored)
    return _in_order(table, candidates) if of == 1 else table


def _silent(_: int) -> None:
    """The first process shows the progress of all."""


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


def score_stage(
    options: argparse.Namespace, settings: Settings, arithmetic: Stopwatch, share: tuple[int, int] = (0, 1)
) -> tuple[pa.Table, int]:
    """The scores by the model that the strategy goes by, and the size of the pool."""
    models = {"current": options.model, "base": options.base_model, "proxy": options.proxy_model}
    candidates = tables.read(options.candidates, tables.CANDIDATES)["id"].to_pylist()
    what = stage_name("score", options.iteration)
    scores = score_pool(
        iterate_records(options.pool),
        candidates,
        models[settings.select.scored_by],
        settings.score,
        what=what,
        share=share,
        arithmetic=arithmetic,
    )
    return scores, pq.read_metadata(options.pool).num_rows


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
    parser.add_argument("--base-model", type=Path, required=True)
    parser.add_argument("--proxy-model", type=Path, required=True)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    what = stage_name("score", options.iteration)
    scratch = SCRATCH / "tmp" / what
    if options.worker:
        die_with_parent()
        collect_rarely()
        try:
            own, arithmetic = int(os.environ["RANK"]), Stopwatch()
            score_stage(options, load_settings(), arithmetic, (own, int(os.environ["WORLD_SIZE"])))
            if own == 0:
                tables.write_json(scratch / ARITHMETIC, {"seconds": arithmetic.seconds})
        except UserError as error:
            (scratch / ERROR).write_text(str(error), encoding="utf-8")
            sys.exit(BAD_INPUT)
        return
    with stage("score", options.iteration) as arithmetic:
        every = load_settings()
        settings = every.score
        if settings.processes > 1:  # they fill the store; what is left to do here is to read it
            scratch.mkdir(parents=True, exist_ok=True)
            launch_workers("components.score", settings.processes, None, scratch)
            arithmetic.seconds = tables.read_json(scratch / ARITHMETIC)["seconds"]
            shutil.rmtree(scratch)
        scores, pool_size = score_stage(options, every, arithmetic)
        metrics = summarize(scores)
        # candidates of later iterations are meant to hold many misaligned records: the ranking puts them second
        if scores.num_rows == pool_size:
            check_share(metrics, settings)
        tables.write(options.scores, scores, tables.SCORES)
        tables.write_json(options.metrics, metrics)
        print(
            f"{what}: {metrics['records']} records, mean complexity {metrics['mean_complexity']}, "
            f"{metrics['misaligned']} misaligned, {metrics['unscorable']} unscorable"
        )


if __name__ == "__main__":
    preloaded.run("components.score", main)
