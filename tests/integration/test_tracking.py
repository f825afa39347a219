"""The MLflow records of a finished pipeline run, in a real SQLite store."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import Unreachable, UserError
from components.core.files import write_json
from components.core.params import load_settings
from components.core.paths import seconds_file
from components.provenance.digests import file_digest
from components.provenance.lockfile import read_entry
from components.tracking import client, runs, stages
from flows.recording import recording

STAGES = ["manifest@incoming", "base_model", "ingest", "benchmark_data", "dedupe", "evaluate_base"]
STAGES += ["contamination", "report"]
STAGES += [f"{name}@{key}" for key in ("1", "2") for name in ("score", "select", "finetune", "evaluate")]


def children(run: runs.PipelineRun) -> dict[str, Any]:
    """Stage -> its child run."""
    runs_ = client.client().search_runs([run.experiment_id], f"tags.`mlflow.parentRunId` = '{run.run_id}'")
    assert len({child.info.run_name for child in runs_}) == len(runs_)
    return {child.info.run_name: child for child in runs_}


def files(run_id: str, folder: str = "") -> set[str]:
    """Paths of a run's artifacts."""
    paths: set[str] = set()
    for item in client.client().list_artifacts(run_id, folder):
        paths |= files(run_id, item.path) if item.is_dir else {item.path}
    return paths


def history(run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client.client().get_metric_history(run_id, key))


def recorded_run() -> runs.PipelineRun:
    settings = load_settings()
    run = runs.start_pipeline_run(settings)
    stages.record_all(run, settings)
    runs.finish_pipeline_run(run)
    return run


def test_a_parent_run_has_a_child_run_per_stage_and_the_series_over_iterations_and_steps(project: Path) -> None:
    run = recorded_run()
    parent = client.client().get_run(run.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["select.diversity_decay"] == "0.1"
    assert parent.data.params["iterations.2.parent"] == "1"
    assert client.client().get_experiment(run.experiment_id).name == "iterit"
    assert sorted(children(run)) == sorted(STAGES)
    # iteration 0 is the base model
    assert history(run.run_id, "evaluate/loss") == [(0, 3.0), (1, 2.5), (2, 2.0)]
    assert history(run.run_id, "score/mean_complexity") == [(1, 0.3679), (2, 0.3679)]
    assert history(run.run_id, "finetune/training_loss") == [(1, 3.5), (2, 1.75)]
    assert history(run.run_id, "picks/new") == [(1, 2), (2, 0)]
    assert history(run.run_id, "step/loss") == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.5)]
    assert run.url.endswith(f"/#/experiments/{run.experiment_id}/runs/{run.run_id}")


def test_a_child_run_has_the_parameters_metrics_tables_and_hashes_of_its_stage(project: Path) -> None:
    stages = children(recorded_run())
    score = stages["score@2"]
    assert score.data.params["score.max_length"] == "512"
    assert [key for key in score.data.params if key.startswith("select")] == []
    assert score.data.metrics["records"] == 4
    assert history(score.info.run_id, "mean_complexity") == [(2, 0.3679)]
    assert score.data.tags["iterit.stage"] == "score@2"
    assert score.data.tags["iterit.iteration"] == "2"
    entry = read_entry("score@2")
    assert score.data.tags["dvc.dep.models/1"] == entry.dependencies["models/1"]
    assert (
        score.data.tags["dvc.out.data/iterations/2/scores.parquet"] == entry.outputs["data/iterations/2/scores.parquet"]
    )
    assert len(score.data.tags["iterit.outputs"]) == 64
    digest = file_digest(Path("data/iterations/2/scores.parquet"))
    assert score.data.tags["sha256.data/iterations/2/scores.parquet"] == digest
    assert files(score.info.run_id) == {
        "data/iterations/2/scores.parquet",
        "data/iterations/2/scores.csv",
        "data/iterations/2/embeddings.parquet",
        "data/iterations/2/embeddings.csv",
        "metrics/score/2.json",
        "provenance/score@2.json",
    }
    finetune = stages["finetune@2"]
    assert history(finetune.info.run_id, "step/learning_rate") == [(3, 0.1), (4, 0.05)]
    assert files(finetune.info.run_id) == {
        "data/iterations/2/steps.csv",
        "metrics/finetune/2.json",
        "provenance/finetune@2.json",
    }
    assert stages["ingest"].data.metrics["rejected/too_long"] == 0
    assert "iterit.iteration" not in stages["ingest"].data.tags
    evaluate = stages["evaluate@1"]
    assert files(evaluate.info.run_id) == {
        "data/evaluations/1.csv",
        "data/evaluations/1.parquet",
        "data/target_evaluations/1.csv",
        "data/target_evaluations/1.parquet",
        "data/answers/1.csv",
        "data/answers/1.parquet",
        "metrics/evaluate/1.json",
        "samples/1.json",
        "provenance/evaluate@1.json",
    }
    preview = client.client().download_artifacts(stages["select@1"].info.run_id, "data/iterations/1/subset.csv")
    assert Path(preview).read_text().splitlines()[0] == '"id","source","prompt","response"'


def test_the_records_that_a_stage_reads_are_dataset_inputs_with_the_digest_of_dvc(project: Path) -> None:
    stages = children(recorded_run())

    def inputs(stage: str) -> set[tuple[str, str, str]]:
        datasets = stages[stage].inputs.dataset_inputs
        return {(item.dataset.name, item.dataset.digest, item.tags[0].value) for item in datasets}

    outputs = {**read_entry("dedupe").outputs, **read_entry("select@2").outputs}
    subset, pool, holdout = (outputs[f"data/{name}.parquet"] for name in ("iterations/2/subset", "pool", "holdout"))
    assert inputs("finetune@2") == {("subset-2", subset, "training")}
    assert inputs("evaluate@2") == inputs("evaluate_base") == {("holdout", holdout, "evaluation")}
    assert inputs("score@1") == {("pool", pool, "evaluation")}
    assert inputs("dedupe") == {("pool", pool, "training"), ("holdout", holdout, "evaluation")}


def test_recording_twice_changes_nothing_and_replaces_an_incomplete_record(project: Path) -> None:
    run = recorded_run()
    mlflow = client.client()
    before = {name: child.info.run_id for name, child in children(run).items()}
    mlflow.set_terminated(before["score@1"], status="RUNNING")
    stages.record_all(run, load_settings())
    after = {name: child.info.run_id for name, child in children(run).items()}
    assert {name for name in STAGES if before[name] != after[name]} == {"score@1"}
    assert sorted(after) == sorted(STAGES)


def test_a_stage_that_ran_is_distinguished_from_a_cached_one(project: Path) -> None:
    run = runs.start_pipeline_run(load_settings())
    for name, age in (("select@1", 0), ("score@1", -1000)):
        write_json(seconds_file(name), {"seconds": 12.5})
        os.utime(seconds_file(name), (time.time() + age, time.time() + age))
    for name in ("score@1", "select@1", "finetune@1"):
        stages.record_stage(run, name)
    recorded = children(run)
    outcomes = {name: child.data.tags["iterit.outcome"] for name, child in recorded.items()}
    assert outcomes == {"score@1": "cached", "select@1": "ran", "finetune@1": "cached"}
    info = recorded["select@1"].info
    assert info.end_time - info.start_time == pytest.approx(12_500, abs=2)
    assert recorded["select@1"].data.metrics["seconds"] == 12.5


def test_iterations_removed_from_params_are_not_recorded(project: Path) -> None:
    settings = load_settings()
    shorter = settings.model_copy(update={"iterations": {"1": settings.iterations["1"]}})
    run = runs.start_pipeline_run(shorter)
    stages.record_all(run, shorter)
    assert not any(name.endswith("@2") for name in children(run))


def test_the_parent_run_is_named_after_the_dvc_experiment(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "sappy-imam")
    run = runs.start_pipeline_run(load_settings(), tags={"iterit.flow_run": "x"})
    parent = client.client().get_run(run.run_id)
    assert parent.info.run_name == "sappy-imam"
    assert parent.data.tags["iterit.flow_run"] == "x"
    assert runs.open_pipeline_run(run.run_id) == run


def test_a_deleted_experiment_is_reported_with_the_remedy(project: Path) -> None:
    run = runs.start_pipeline_run(load_settings())
    client.client().delete_experiment(run.experiment_id)
    with pytest.raises(UserError, match="experiment: iterit: deleted in MLflow; restore it"):
        runs.start_pipeline_run(load_settings())


def test_a_stage_missing_in_dvc_lock_is_reported(project: Path) -> None:
    run = runs.start_pipeline_run(load_settings())
    with pytest.raises(UserError, match=r"dvc.lock: no stage score@7"):
        stages.record_stage(run, "score@7")


def test_an_unreachable_tracking_server_is_reported_within_seconds(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    client.client.cache_clear()
    started = time.monotonic()
    with pytest.raises(Unreachable, match=r"MLFLOW_TRACKING_URI http://127.0.0.1:9: .*`dvc repro register`") as raised:
        runs.start_pipeline_run(load_settings())
    assert "\n" not in str(raised.value)
    assert time.monotonic() - started < 30


def test_a_store_that_refuses_during_a_run_costs_one_warning_and_the_next_run_is_told(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unfinished: list[str] = []
    with recording(load_settings(), logging.getLogger("test"), unfinished) as records:
        assert records.run is not None
        client.client().delete_run(records.run.run_id)
        for stage in ("ingest", "score@1", "score@2"):
            records.record(stage)
        records.wait()
    assert len(caplog.messages) == 1
    assert "the training is kept" in caplog.messages[0]
    assert unfinished == [records.run.run_id]


@pytest.mark.parametrize(
    ("given", "user", "password"),
    [
        ("https://me:p%40w@mlflow.example.org/base", "me", "p@w"),
        ("http://mlflow.example.org:5000", None, None),
    ],
)
def test_the_password_of_a_server_s_address_is_given_to_mlflow_and_not_shown(
    given: str, user: str | None, password: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    for name in names:
        monkeypatch.setenv(name, "x")  # so that it is put back at the end
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert client.tracking_uri() == given.replace("me:p%40w@", "")
    assert tuple(map(os.environ.get, names)) == (user, password)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://token@mlflow.example.org")
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI https://mlflow.example.org: expected USER:PASSWORD"):
        client.tracking_uri()
