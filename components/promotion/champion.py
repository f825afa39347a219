"""The champion of the registered model: promoted through the gate after a retraining, or by hand.

Every new version gets the alias `challenger`. The first version becomes `champion` without a comparison. The previous
champion keeps the alias `previous_champion` and can still be loaded. The gate's decision, with its figures and its
reason, is a tag of the version.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from components.core.errors import UserError
from components.core.files import write_json
from components.core.params import load_settings
from components.core.paths import SCRATCH
from components.core.settings.pipeline import Settings
from components.data import tables
from components.promotion.benchmarks import (
    BenchmarkDifference,
    Benchmarked,
    BenchmarkFiles,
    compare_benchmarks,
    read_benchmarked,
)
from components.promotion.gate import Decision, decide, metrics_of
from components.provenance.digests import file_digest
from components.tracking import registry
from components.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    HOLDOUT_DIGEST,
    PREVIOUS_CHAMPION,
    READ_AS,
    AliasedVersion,
)

GATE = "iterit.gate"  # tag of a version: the decision about it, as JSON


@dataclass(frozen=True, slots=True)
class Candidate:
    """A registered version that is up for promotion."""

    model: str
    version: str
    evaluations: pa.Table
    """tables.EVALUATIONS of the holdout."""
    benchmarks: Benchmarked | None = None
    """None where it was not benchmarked."""


def pass_gate(
    candidate: Candidate, holdout: Path, settings: Settings, arithmetic: AbstractContextManager[object]
) -> Decision:
    """Make the version the challenger, and the champion if the gate lets it pass.

    A champion whose evaluation was not logged, or was of another holdout or of other texts, is evaluated again, and so
    are benchmarks that gate.benchmarks compares; `arithmetic` is entered for its forward passes.
    """
    decision = _decide(candidate, holdout, settings, arithmetic)
    registry.set_alias(candidate.model, CHALLENGER, candidate.version)
    registry.tag_version(candidate.model, candidate.version, {GATE: json.dumps(asdict(decision))})
    if decision.promoted:
        registry.promote(candidate.model, candidate.version, "gate")
    return decision


def _decide(
    candidate: Candidate, holdout: Path, settings: Settings, arithmetic: AbstractContextManager[object]
) -> Decision:
    champion = registry.version_with_alias(candidate.model, CHAMPION)
    if champion is None:
        return decide(candidate.evaluations, None, settings.gate)
    if champion.number == candidate.version:
        return _decide_again(candidate, champion, settings)
    reigning = None
    if champion.tags.get(HOLDOUT_DIGEST) == file_digest(holdout) and champion.tags.get(READ_AS) == read_as(settings):
        reigning = logged_evaluations(candidate, champion.number)
    evaluated_again = reigning is None
    if reigning is None:
        reigning = evaluate_again(candidate.model, champion.number, holdout, settings, arithmetic)
    return decide(
        candidate.evaluations,
        reigning,
        settings.gate,
        champion_version=champion.number,
        evaluated_again=evaluated_again,
        benchmarks=_compare_benchmarks(candidate, champion, settings, arithmetic),
    )


def _decide_again(candidate: Candidate, champion: AliasedVersion, settings: Settings) -> Decision:
    """That the version stays the champion, with the figures by which the gate once promoted it."""
    metrics = metrics_of(candidate.evaluations, settings.gate)
    earlier = Decision.from_json(json.loads(champion.tags[GATE])) if GATE in champion.tags else None
    figures = earlier.differences if earlier and earlier.promoted else {}
    compared = earlier.champion_version if earlier and figures else candidate.version
    benchmarks = earlier.benchmarks if earlier and earlier.promoted else {}
    return Decision(True, "is the champion already", metrics, None, compared, False, figures, benchmarks)


def read_as(settings: Settings) -> str:
    """The settings that decide which texts a holdout's losses are of, as JSON: the tag READ_AS of a version."""
    fields = ("system", "template", "template_date", "max_length", "dtype")
    return json.dumps({name: getattr(settings.score, name) for name in fields})


def logged_evaluations(candidate: Candidate, number: str) -> pa.Table | None:
    """tables.EVALUATIONS logged with a version; None where there is none, or one of other tokens than the candidate's.

    The tokens of a record are others after a change of the chat template or of the tokenizer.
    """
    SCRATCH.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        file = registry.download_file(candidate.model, number, registry.EVALUATIONS, Path(folder))
        logged = tables.read(file, tables.EVALUATIONS) if file else None
    key = ["id", "tokens"]
    return logged if logged is not None and logged.select(key) == candidate.evaluations.select(key) else None


def evaluate_again(
    name: str, number: str, holdout: Path, settings: Settings, arithmetic: AbstractContextManager[object]
) -> pa.Table:
    """Download a registered version and return its tables.EVALUATIONS of this holdout."""
    # PyTorch is needed here only, and most runs do not come here
    from components.data.records import read_records
    from components.evaluation.holdout import evaluate_records
    from components.model.load import load_model

    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        checkpoint = registry.download_version(name, number, Path(folder))
        model, tokenizer = load_model(checkpoint, settings.score.dtype)
        title = f"evaluate {name} version {number} again"
        return evaluate_records(model, tokenizer, read_records(holdout), settings.score, title, arithmetic)


def _compare_benchmarks(
    candidate: Candidate, champion: AliasedVersion, settings: Settings, arithmetic: AbstractContextManager[object]
) -> dict[str, BenchmarkDifference]:
    """The figures of gate.benchmarks; the champion is benchmarked again where what was logged cannot be compared."""
    if not settings.gate.benchmarks:
        return {}
    assert candidate.benchmarks is not None, "params.yaml names the checkpoint in benchmark.checkpoints"
    reigning = None
    if champion.tags.get(READ_AS) == read_as(settings):
        reigning = _logged_benchmarks(candidate.model, champion.number)
    if reigning is None or not candidate.benchmarks.is_comparable(reigning, settings.gate.benchmarks):
        print(f"gate: version {champion.number} has no comparable benchmarks: they are run on it, once", flush=True)
        reigning = _benchmark_again(candidate.model, champion, settings, arithmetic)
    return compare_benchmarks(reigning, candidate.benchmarks, settings.gate)


def _logged_benchmarks(name: str, number: str) -> Benchmarked | None:
    SCRATCH.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        documents, result = (
            registry.download_file(name, number, artifact, Path(folder))
            for artifact in (registry.BENCHMARKS, registry.BENCHMARK_RESULT)
        )
        return read_benchmarked(BenchmarkFiles(documents, result)) if documents and result else None


def _benchmark_again(
    name: str, champion: AliasedVersion, settings: Settings, arithmetic: AbstractContextManager[object]
) -> Benchmarked:
    """Download a registered version, run the tasks on it, and log what they find in its run."""
    from components.benchmarks.run import run_benchmarks, stored_result

    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        checkpoint = registry.download_version(name, champion.number, Path(folder) / "model")
        found = run_benchmarks(checkpoint, settings, arithmetic)
        files = BenchmarkFiles(Path(folder) / "documents.parquet", Path(folder) / "result.json")
        tables.write(files.documents, found.documents, tables.BENCHMARKS)
        write_json(files.result, stored_result(found, champion.tags.get(registry.CHECKPOINT, ""), settings))
        log_benchmarks(name, champion.number, files)
        return read_benchmarked(files)


def log_benchmarks(name: str, number: str, files: BenchmarkFiles) -> None:
    """Keep the benchmarks of a version in its run, for the gate of a later challenger."""
    registry.log_files(name, number, {registry.BENCHMARKS: files.documents, registry.BENCHMARK_RESULT: files.result})


def promote_by_hand(number: str) -> str:
    """Make a version the champion; returns a line for people. Raises UserError when the version does not exist."""
    name = load_settings().register_.name
    if not registry.has_version(name, number):
        raise UserError(f"{name} has no version {number}")
    previous = registry.promote(name, number, "hand")
    return f"{name} version {number} is the champion" + (f"; before it was version {previous}" if previous else "")


def roll_back() -> str:
    """Make the previous champion the champion again, as promote_by_hand does. Raises UserError when there is none."""
    name = load_settings().register_.name
    previous = registry.version_with_alias(name, PREVIOUS_CHAMPION)
    if previous is None:
        raise UserError(f"{name} has no previous champion")
    return promote_by_hand(previous.number)
