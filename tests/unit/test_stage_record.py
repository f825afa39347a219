"""What MLflow is to hold of a stage, read from the stage's files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from components.core.files import write_csv, write_json
from components.core.paths import seconds_file, throughput_file
from components.provenance.lockfile import StageEntry
from components.tracking.runs import StepMetrics
from components.tracking.stages import StageRecord, read_record

FINETUNE = StageEntry(
    params={"finetune.seed": 42},
    dependencies={"models/base": "a.dir"},
    outputs={"models/1": "b.dir", "data/iterations/1/steps.csv": "c", "metrics/finetune/1.json": "d"},
)
METRICS = {"steps": 2, "training_loss": 3.0, "dtype": "float32", "resumed": False, "by_reason": {"short": 4}}


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"step": step, "iteration": "1", "loss": 4.0 / step, "learning_rate": 0.1, "gradient_norm": "nan"}
        for step in (1, 2)
    ]
    write_csv(Path("data/iterations/1/steps.csv"), list(rows[0]), rows)
    write_json(Path("metrics/finetune/1.json"), METRICS)


def finetune(age: float | None, **defaults: object) -> StageRecord:
    """The record of a stage that took 12.5 s and ended `age` seconds before the run started; None: it never ran."""
    started = time.time()
    if age is not None:
        for file, value in (
            (seconds_file("finetune@1"), {"seconds": 12.5}),
            (throughput_file("finetune@1"), {"tokens_per_second": 7.5, "steps": {"2": 5.5}}),
        ):
            write_json(file, value)
            os.utime(file, (started - age, started - age))
    return read_record("finetune@1", FINETUNE, run_started=started, **defaults)


def test_numbers_of_the_metrics_files_are_metrics_and_nested_keys_are_paths() -> None:
    assert finetune(None).metrics == {"steps": 2.0, "training_loss": 3.0, "by_reason/short": 4.0}


def test_a_stage_that_ended_after_the_run_began_ran_in_it_with_its_time_and_speed() -> None:
    record = finetune(-1)
    assert (record.outcome, record.seconds) == ("ran", 12.5)
    assert record.ended is not None
    assert record.throughput == {"throughput/tokens_per_second": 7.5}
    first, second = record.steps
    assert "step/tokens_per_second" not in first.values
    assert second.values["step/tokens_per_second"] == 5.5


def test_a_stage_that_ended_before_the_run_is_cached_and_its_speed_is_left_out() -> None:
    record = finetune(1)
    assert (record.outcome, record.seconds, record.ended, record.throughput) == ("cached", 12.5, None, {})
    assert all("step/tokens_per_second" not in step.values for step in record.steps)


def test_a_stage_that_never_ran_here_is_cached_without_a_time() -> None:
    record = finetune(None)
    assert (record.outcome, record.seconds, record.ended) == ("cached", None, None)


def test_what_the_caller_knows_comes_before_the_files() -> None:
    record = finetune(1, outcome="ran", seconds=3.0)
    assert (record.outcome, record.seconds) == ("ran", 3.0)


def test_the_optimizer_steps_are_those_of_the_stage_s_table() -> None:
    first = finetune(None).steps[0]
    assert isinstance(first, StepMetrics)
    assert first.step == 1
    assert list(first.values) == ["step/loss", "step/learning_rate", "step/gradient_norm"]
    assert first.values["step/loss"] == 4.0


@pytest.mark.parametrize(
    ("stage", "iteration", "tag"),
    [
        ("evaluate_base", 0, "base"),
        ("score@2", 2, "2"),
        ("ingest", None, None),
        ("manifest@incoming", None, None),
        ("register", None, None),
    ],
)
def test_only_stages_of_the_loop_have_an_iteration(stage: str, iteration: int | None, tag: str | None) -> None:
    record = read_record(stage, StageEntry({}, {}, {}), run_started=0.0)
    assert record.iteration == iteration
    assert record.tags.get("iterit.iteration") == tag


def test_the_tags_hold_the_hashes_of_dvc_and_of_the_statement() -> None:
    subject = {"name": "models/1", "digest": {"iteritFolder": "f" * 64}}
    write_json(Path("provenance/finetune@1.json"), {"subject": [subject]})
    tags = finetune(None).tags
    assert tags["dvc.dep.models/base"] == "a.dir"
    assert tags["dvc.out.models/1"] == "b.dir"
    assert tags["sha256.models/1"] == "f" * 64


def test_the_digest_of_the_outputs_depends_on_every_path_and_hash_and_not_on_their_order() -> None:
    def digest(**outputs: str) -> str:
        return read_record("dedupe", StageEntry({}, {}, outputs), run_started=0.0).outputs_digest

    assert digest(a="1", b="2") == digest(b="2", a="1")
    assert len({digest(a="1", b="2"), digest(a="2", b="1"), digest(a="1"), digest(c="1")}) == 4
