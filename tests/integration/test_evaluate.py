"""The evaluate stage as a process: its files hold what the functions return, and name the checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from components.core.params import load_settings
from components.core.paths import PARAMS
from components.data import tables
from components.data.records import write_records
from components.evaluation.holdout import evaluation_table, summarize
from components.evaluation.samples import generate_samples
from components.model.load import load_model
from components.provenance.digests import folder_digest
from components.scoring.ifd import score_records
from tests.support.project import SOURCE
from tests.support.records import ask, numbered

SYSTEM = "You are a helpful assistant."
HOLDOUT = [*numbered(4), ask("Say nothing.", "")]
TARGETS = [ask("Wrap a text.", "Every line has fewer characters than the width."), ask("Say two.", "two")]


def test_the_stage_writes_metrics_and_samples_and_names_the_checkpoint(small_model: Path, tmp_path: Path) -> None:
    (tmp_path / PARAMS).write_bytes((SOURCE / PARAMS).read_bytes())
    write_records(tmp_path / "holdout.parquet", HOLDOUT)
    write_records(tmp_path / "targets.parquet", TARGETS)
    command = [sys.executable, "-m", "components.evaluate", "--iteration", "1", "--holdout", "holdout.parquet"]
    command += [
        "--model",
        str(small_model),
        "--evaluations",
        "evaluations.parquet",
        "--targets",
        "targets.parquet",
        "--target-evaluations",
        "target_evaluations.parquet",
        "--answers",
        "answers.parquet",
        "--samples",
        "samples.json",
        "--metrics",
        "metrics.json",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    metrics, samples = (json.loads((tmp_path / name).read_text()) for name in ("metrics.json", "samples.json"))
    loaded = load_model(small_model, "float32")
    scores = score_records(HOLDOUT, *loaded, max_length=512, batch_tokens=8192, system=SYSTEM)
    evaluations = evaluation_table(HOLDOUT, scores)
    settings = load_settings(SOURCE / PARAMS).evaluate
    first = sorted(HOLDOUT, key=lambda record: record.id)[: settings.samples]
    target = metrics.pop("target")
    assert metrics == {"checkpoint": folder_digest(small_model), **asdict(summarize(evaluations))}
    assert tables.read(tmp_path / "evaluations.parquet", tables.EVALUATIONS) == evaluations
    of_targets = evaluation_table(
        TARGETS, score_records(TARGETS, *loaded, max_length=512, batch_tokens=8192, system=SYSTEM)
    )
    assert tables.read(tmp_path / "target_evaluations.parquet", tables.EVALUATIONS) == of_targets
    assert target == asdict(summarize(of_targets))
    assert target["loss_low"] < target["loss"] < target["loss_high"]
    assert samples["checkpoint"] == metrics["checkpoint"]
    generated = generate_samples(first, *loaded, system=SYSTEM, max_length=512, sample_tokens=settings.sample_tokens)
    assert samples["samples"] == [asdict(sample) for sample in generated]
