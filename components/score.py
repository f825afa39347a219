"""Stage `score@N`: each candidate's complexity (components/scoring/ifd.py) for the model as trained so far.

Losses in the store (components/scoring/store.py) are not computed again. With score.processes > 1 the stage starts that
many workers of itself, which fill the store, and then only reads it. With score.model: none no model computes, and
the table says only which candidates have something to score. With score.measure: embedding the model computes their
embeddings instead (components/scoring/embeddings.py), and those of the targets; by default that table is empty.

    python -m components.score --iteration 1 --pool data/pool.parquet --model models/base ...
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.core.errors import UserError, printable
from components.core.files import read_json, write_json
from components.core.launch import launch_workers, worker
from components.core.params import load_settings
from components.core.paths import scratch_folder
from components.core.progress import progress
from components.core.settings.pipeline import Settings
from components.core.settings.score import ScoreSettings
from components.core.stage import Stopwatch, stage, stage_name
from components.data import tables
from components.data.embeddings import Matrix, embeddings_writer
from components.data.records import Record, iterate_records, read_records
from components.model.chat import pin_date
from components.model.load import load_model, load_tokenizer, prepack_linear_layers
from components.provenance.statements import statement_of
from components.scoring.embeddings import embed_windows
from components.scoring.ifd import (
    UNTIMED,
    VARIANT,
    check_length,
    encode_pairs,
    explain_unscorable,
    score_rows,
    unscored_rows,
    windows,
)
from components.scoring.losses import Scorer, make_scorer, measure_pairs
from components.scoring.store import open_embeddings, open_store, pair_key

NO_TARGET = "data/target.parquet: no example of the target can be embedded; see score.max_length and score.template"
ARITHMETIC = "arithmetic.json"  # in the scratch folder: for how many seconds the first worker's model computed


@dataclass(frozen=True, slots=True)
class Share:
    """The part of one of several processes: every `processes`-th window of records, beginning with window `rank`."""

    rank: int = 0
    processes: int = 1


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """The content of metrics/score/N.json. The mean is over scorable records, the share over all records."""

    variant: str
    records: int
    scored: int
    misaligned: int
    unscorable: int
    misaligned_share: float
    mean_complexity: float | None


def score_pool(
    pool: Iterable[Record],
    candidates: Sequence[str],
    folder: Path,
    settings: ScoreSettings,
    *,
    what: str = "score",
    share: Share | None = None,
    arithmetic: AbstractContextManager[object] = UNTIMED,
) -> pa.Table:
    """tables.SCORES of the candidates (ids), in their order, by the model in `folder`.

    With a `share` only its windows are scored and stored, and the table holds only these, in pool order. `what` names
    the work in the progress line; `arithmetic` is entered while the model computes. Raises UserError for a candidate
    that is not in the pool.
    """
    rank, processes = (share.rank, share.processes) if share else (0, 1)
    tokenizer = load_tokenizer(folder)
    pin_date(tokenizer, settings.template_date)
    store = open_store(folder, settings.dtype)
    wanted = set(candidates)
    scored = [tables.SCORES.empty_table()]
    scorer: Scorer | None = None
    with _progress_of_first(rank, len(candidates) // processes, what) as advance:
        all_windows = windows(record for record in pool if record.id in wanted)
        for window in itertools.islice(all_windows, rank, None, processes):
            pairs = encode_pairs(
                window,
                tokenizer,
                max_length=settings.max_length,
                system=settings.system,
                template=settings.template,
            )
            keys = [pair_key(pair) for pair in pairs]
            losses = store.find(keys)
            # windows are stored as a whole, so the moment at which a stage is killed does not change its batches
            missing = [row for row, pair in enumerate(pairs) if pair[0].scored and np.isnan(losses[row]).any()]
            advance(len(window) - len(missing))
            if missing:
                scorer = scorer or _load_scorer(folder, settings)
                with arithmetic:
                    losses[missing] = measure_pairs(
                        [pairs[row] for row in missing], scorer, batch_tokens=settings.batch_tokens, advance=advance
                    )
                store.add([keys[row] for row in missing], losses[missing])
            scored.append(score_rows(window, pairs, losses))
    table = pa.concat_tables(scored)
    return table if share else _order_by(candidates, table)


def embed_pool(
    pool: Iterable[Record],
    candidates: Sequence[str],
    targets: Sequence[Record],
    folder: Path,
    settings: ScoreSettings,
    *,
    what: str = "score",
    share: Share | None = None,
    arithmetic: AbstractContextManager[object] = UNTIMED,
    append: Callable[[Sequence[str], Matrix, bool], None] = lambda *_: None,
) -> pa.Table:
    """tables.SCORES of the candidates (ids), in their order, without losses; `append` gets the embeddings.

    Those of the targets come first, then those of the candidates in pool order. The rest is as in score_pool. Raises
    UserError when no target can be embedded.
    """
    tokenizer = load_tokenizer(folder)
    pin_date(tokenizer, settings.template_date)
    store = open_embeddings(folder, settings.dtype)
    wanted = set(candidates)
    rank, processes = (share.rank, share.processes) if share else (0, 1)
    listed = [tables.SCORES.empty_table()]
    with _progress_of_first(rank, (len(candidates) + len(targets)) // processes, what) as advance:
        for records, is_target in ((iter(targets), True), ((record for record in pool if record.id in wanted), False)):
            embedded = 0
            for window in embed_windows(
                records,
                tokenizer,
                lambda: _load_scorer(folder, settings),
                store,
                settings,
                every=slice(rank, None, processes),
                advance=advance,
                arithmetic=arithmetic,
            ):
                append(window.ids, window.embeddings, is_target)
                embedded += len(window.ids)
                if not is_target:
                    listed.append(unscored_rows(window.records, window.pairs))
            if is_target and not embedded and not share:
                raise UserError(NO_TARGET)
    table = pa.concat_tables(listed)
    return table if share else _order_by(candidates, table)


def list_pool(pool: Iterable[Record], candidates: Sequence[str], folder: Path, settings: ScoreSettings) -> pa.Table:
    """tables.SCORES of the candidates (ids), in their order, without losses; the tokenizer is that in `folder`."""
    tokenizer = load_tokenizer(folder)
    pin_date(tokenizer, settings.template_date)
    wanted = set(candidates)
    listed = [tables.SCORES.empty_table()]
    for window in windows(record for record in pool if record.id in wanted):
        pairs = encode_pairs(
            window, tokenizer, max_length=settings.max_length, system=settings.system, template=settings.template
        )
        listed.append(unscored_rows(window, pairs))
    return _order_by(candidates, pa.concat_tables(listed))


@contextmanager
def _progress_of_first(rank: int, total: int, what: str) -> Iterator[Callable[[int], object]]:
    """Progress of the first process, as an estimate for all; the others show none."""
    if rank:
        yield lambda _: None
        return
    with progress(total=total, unit="records", what=what) as advance:
        yield advance


def _load_scorer(folder: Path, settings: ScoreSettings) -> Scorer:
    model, tokenizer = load_model(folder, settings.dtype)
    pin_date(tokenizer, settings.template_date)
    check_length(model, settings.max_length)
    prepack_linear_layers(model)
    return make_scorer(model, tokenizer, system=settings.system, template=settings.template)


def _order_by(candidates: Sequence[str], scores: pa.Table) -> pa.Table:
    row_of = {key: row for row, key in enumerate(scores["id"].to_pylist())}
    absent = [key for key in candidates if key not in row_of]
    if absent:
        raise UserError(
            f"candidate {absent[0]} is not in the pool ({len(absent)} in all are not); `dvc repro` makes both again"
        )
    return scores.take(pa.array([row_of[key] for key in candidates], pa.int64()))


def summarize(scores: pa.Table) -> ScoreSummary:
    """Counts and mean of tables.SCORES."""
    complexity = scores["complexity"].drop_null().to_numpy()
    misaligned = int((complexity >= 1).sum())
    unscorable = scores["reason"].drop_null().length()
    return ScoreSummary(
        variant=VARIANT,
        records=scores.num_rows,
        scored=len(complexity),
        misaligned=misaligned,
        unscorable=unscorable,
        misaligned_share=round((misaligned + unscorable) / max(scores.num_rows, 1), 6),
        mean_complexity=round(float(complexity.mean()), 6) if len(complexity) else None,
    )


def check_misaligned_share(summary: ScoreSummary, settings: ScoreSettings, reasons: Sequence[str] = ()) -> None:
    """Raises UserError when more is misaligned or unscorable than score.max_misaligned_share allows.

    That is a sign of wrong texts, not of bad records. `reasons` are those of the unscorable records.
    """
    if summary.misaligned_share > settings.max_misaligned_share:
        raise UserError(
            f"{summary.misaligned} of {summary.records} records are misaligned (complexity 1 or more) and "
            f"{summary.unscorable} unscorable, more than score.max_misaligned_share "
            f"{settings.max_misaligned_share} allows: does the chat template fit the model (score.template: none "
            "scores plain text), does score.system, and is score.max_length long enough?"
            + "".join(f" ({reason})" for reason in reasons)
        )


def score_candidates(
    options: argparse.Namespace, settings: Settings, arithmetic: Stopwatch, share: Share | None = None
) -> pa.Table:
    """tables.SCORES of the candidates named on the command line, by the model of score.model.

    With score.measure: embedding it also writes the embeddings, unless it has only a `share` to put into the store.
    """
    pool, candidates = (
        iterate_records(options.pool),
        tables.read(options.candidates, tables.CANDIDATES)["id"].to_pylist(),
    )
    if settings.score.model == "none":
        return list_pool(pool, candidates, options.model, settings.score)
    models = {"current": options.model, "base": options.base_model, "proxy": options.proxy_model}
    folder, what = models[settings.score.model], stage_name("score", options.iteration)
    if settings.score.measure == "complexity":
        return score_pool(pool, candidates, folder, settings.score, what=what, share=share, arithmetic=arithmetic)
    targets = read_records(options.targets)
    if share:
        return embed_pool(
            pool, candidates, targets, folder, settings.score, what=what, share=share, arithmetic=arithmetic
        )
    with embeddings_writer(options.embeddings) as append:
        return embed_pool(
            pool, candidates, targets, folder, settings.score, what=what, arithmetic=arithmetic, append=append
        )


def fill_store(processes: int, scratch: Path) -> float:
    """Score in workers of this stage; returns for how many seconds the first one's model computed."""
    scratch.mkdir(parents=True, exist_ok=True)
    launch_workers("components.score", processes, None, scratch)
    seconds: float = read_json(scratch / ARITHMETIC)["seconds"]
    shutil.rmtree(scratch)
    return seconds


def run_worker(options: argparse.Namespace, settings: Settings, scratch: Path) -> None:
    """Fill the store with this process's share; the first process also reports how long its model computed."""
    share, arithmetic = Share(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])), Stopwatch()
    score_candidates(options, settings, arithmetic, share)
    if share.rank == 0:
        write_json(scratch / ARITHMETIC, {"seconds": arithmetic.seconds})


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m components.score", description="Score each candidate's complexity."
    )
    parser.add_argument("--iteration", required=True)
    models, outputs = ("model", "base-model", "proxy-model"), ("scores", "embeddings", "metrics")
    for name in ("pool", "targets", "candidates", *models, *outputs):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    scratch = scratch_folder(stage_name("score", options.iteration))
    if options.worker:
        with worker(scratch):
            run_worker(options, load_settings(), scratch)
        return
    with stage("score", options.iteration) as running, statement_of(running.name):
        settings = load_settings()
        if settings.score.processes > 1 and settings.score.model != "none":
            running.arithmetic.seconds = fill_store(settings.score.processes, scratch)
        scores = score_candidates(options, settings, running.arithmetic)
        summary, reasons = summarize(scores), explain_unscorable(scores)
        # later iterations score many misaligned records by design: the ranking puts them right after the picks
        if scores.num_rows == pq.read_metadata(options.pool).num_rows:
            check_misaligned_share(summary, settings.score, reasons)
        tables.write(options.scores, scores, tables.SCORES)
        if settings.score.measure == "complexity":
            tables.write(options.embeddings, tables.EMBEDDINGS.empty_table(), tables.EMBEDDINGS)
        write_json(options.metrics, asdict(summary))
        print(
            f"{running.name}: {summary.records} records, mean complexity {summary.mean_complexity}, "
            f"{summary.misaligned} misaligned, {summary.unscorable} unscorable"
        )
        for reason in reasons:
            print(f"{running.name}: {printable(reason)}")


if __name__ == "__main__":
    main()
