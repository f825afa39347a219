"""Registration with real DVC and a real SQLite store: one version per checkpoint, aliases, and the gate."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
import pyarrow as pa
import pytest
import torch
from mlflow.entities.model_registry import ModelVersion
from transformers import AutoModelForCausalLM, AutoTokenizer

from components.benchmarks.run import run_benchmarks, stored_result
from components.core.errors import UserError
from components.core.files import write_json
from components.core.params import load_settings
from components.data import tables
from components.data.records import write_records
from components.promotion.champion import promote_by_hand, roll_back
from components.provenance.digests import folder_digest
from components.register import describe_checkpoint
from components.tracking import client, registry, runs, stages
from tests.support.finished_pipeline import RECORDS, dvc, put_model
from tests.support.project import edit_params
from tests.support.small_model import make_small_model


def register(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "components.register", "--models", "models", "--metrics", "metrics"]
    command += [
        "--holdout",
        "data/holdout.parquet",
        "--evaluations",
        "data/evaluations",
        "--benchmarks",
        "data/benchmarks",
    ]
    return subprocess.run(
        [*command, "--result", "metrics/register.json"],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def aliased() -> ModelVersion:
    return client.client().get_model_version_by_alias("iterit", "latest_iterit")


def records(run_id: str) -> dict[str, Any]:
    """What MLflow holds of a pipeline run, except what must differ: ids, times, and which stages ran."""
    content = {}
    experiment = client.client().get_run(run_id).info.experiment_id
    for run in [
        client.client().get_run(run_id),
        *client.client().search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'"),
    ]:
        clock = ("seconds", "mlflow.parentRunId", "mlflow.runName", "iterit.outcome", "mlflow.loggedModels")
        series = {
            key: [(point.step, point.value) for point in client.client().get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
            if key not in clock
        }
        inputs = sorted((item.dataset.name, item.dataset.digest) for item in run.inputs.dataset_inputs)
        tags = {key: value for key, value in run.data.tags.items() if key not in clock}
        name = "parent" if run.info.run_id == run_id else run.info.run_name
        content[name] = (
            run.info.status,
            run.data.params,
            {key: sorted(value) for key, value in series.items()},
            inputs,
            tags,
        )
    return content


def test_the_flow_and_a_bare_dvc_repro_leave_the_same_records(project: Path) -> None:
    done = dvc(project, "repro", "--quiet", "--single-item", "register")
    bare = json.loads(Path(".iterit/registered.json").read_text())
    # nothing but the stage's own lines: no migration of MLflow's store, no warning
    assert done.stdout.splitlines() == [
        "register: iterit version 1: registered; alias latest_iterit",
        "gate: champion: there was no champion",
    ]
    assert done.stderr == ""
    settings = load_settings()
    run = runs.start_pipeline_run(settings)
    for stage in ("base_model", "ingest", "score@1"):  # recorded by a flow so far; `register` records the others
        stages.record_stage(run, stage)
    result = Path("metrics/register.json").read_bytes()
    again = register(project, ITERIT_PIPELINE_RUN=run.run_id)
    assert again.stdout.splitlines() == [
        "register: iterit version 1: already registered, not again; alias latest_iterit",
        "gate: champion: is the champion already",
    ]
    assert Path("metrics/register.json").read_bytes() == result
    runs.finish_pipeline_run(run)
    of_flow, of_dvc = records(run.run_id), records(bare["run_id"])
    # the version was created in DVC's run: its holdout metrics are tied to a model only there
    for key in [key for key in of_dvc["parent"][2] if key.startswith("holdout/")]:
        del of_dvc["parent"][2][key]
    assert of_flow == of_dvc
    assert len(of_flow) == 18


def test_the_registered_checkpoint_opens_by_its_alias(project: Path, tmp_path: Path) -> None:
    assert register(project).returncode == 0
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    uri = "models:/iterit@latest_iterit"
    inputs = torch.arange(3, 40)[None]
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained("models/2")(input_ids=inputs).logits
        pipeline = mlflow.transformers.load_model(uri)
        assert torch.equal(pipeline.model(input_ids=inputs).logits, expected)
        assert pipeline("Say one", max_new_tokens=3, do_sample=False)[0]["generated_text"].startswith("Say one")
        plain = mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / "plain"))
        assert torch.equal(AutoModelForCausalLM.from_pretrained(plain)(input_ids=inputs).logits, expected)
    assert AutoTokenizer.from_pretrained(plain).chat_template == AutoTokenizer.from_pretrained("models/2").chat_template
    version = aliased()
    assert version.tags["iterit.checkpoint"] == folder_digest(Path("models/2"))
    assert version.tags["iterit.iteration"] == "2"
    assert version.tags["holdout.loss"] == "2.0"
    assert version.run_id == json.loads(Path(".iterit/registered.json").read_text())["run_id"]


def test_the_result_holds_only_what_is_the_same_on_every_machine(project: Path) -> None:
    assert asdict(describe_checkpoint(load_settings(), Path("models"), Path("metrics"))) == {
        "model": "iterit",
        "alias": "latest_iterit",
        "iteration": "2",
        "checkpoint": folder_digest(Path("models/2")),
        "holdout": {
            "records": 2,
            "unscorable": 0,
            "tokens": 20,
            "perplexity": 7.389056,
            "misaligned_share": 0.0,
            **dict.fromkeys(("loss", "loss_low", "loss_high"), 2.0),
            **dict.fromkeys(("mean_complexity", "mean_complexity_low", "mean_complexity_high"), 0.5),
        },
    }


def test_the_alias_follows_the_checkpoint_back_and_forth_and_nothing_is_registered_twice(
    project: Path, tmp_path: Path
) -> None:
    def repro() -> str:
        dvc(project, "repro", "--quiet", "--single-item", "register")
        return str(aliased().version)

    shutil.copytree("models/2", tmp_path / "first")
    assert repro() == "1"
    put_model(project, "2", make_small_model(tmp_path / "other", seed=9), loss=1.5)
    assert repro() == "2"
    # DVC has run the stage on these inputs before: its run cache must not stand in for the registry
    put_model(project, "2", tmp_path / "first", loss=2.0)
    assert repro() == "1"
    assert len(client.client().search_model_versions("name = 'iterit'")) == 2


def test_an_unreachable_tracking_server_ends_the_stage_with_one_line_and_the_remedy(project: Path) -> None:
    unreachable = register(project, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert unreachable.returncode == 75
    assert len(unreachable.stderr.splitlines()) == 1
    assert "MLFLOW_TRACKING_URI http://127.0.0.1:9" in unreachable.stderr
    assert "`dvc repro register`" in unreachable.stderr
    assert not Path("metrics/register.json").exists()


# --- the gate ---------------------------------------------------------------------------------------------------------


def version_of(alias: str) -> str | None:
    aliased_version = registry.version_with_alias("iterit", alias)
    return aliased_version.number if aliased_version else None


def retrained(folder: Path, tmp_path: Path, seed: int, loss: float) -> str:
    """Register a new checkpoint; returns the line that the stage printed of the gate."""
    put_model(folder, "2", make_small_model(tmp_path / str(seed), seed=seed), loss=loss)
    done = register(folder)
    assert done.returncode == 0, done.stderr
    return next(line for line in done.stdout.splitlines() if line.startswith("gate: "))


def gate_decision() -> dict[str, Any]:
    decision: dict[str, Any] = json.loads(Path(".iterit/registered.json").read_text())["gate"]
    return decision


BETTER = dict.fromkeys(("difference", "lower_bound", "interval_low", "interval_high"), 0.5)


def test_only_a_model_that_beats_the_champion_replaces_it(project: Path, tmp_path: Path) -> None:
    assert retrained(project, tmp_path, 11, 2.0) == "gate: champion: there was no champion"
    worse = retrained(project, tmp_path, 12, 2.5)
    assert worse == "gate: kept: -0.5000, interval -0.5000 to -0.5000, 2 records; champion: version 1"
    assert (version_of("champion"), version_of("challenger"), version_of("previous_champion")) == ("1", "2", None)
    better = retrained(project, tmp_path, 13, 1.5)
    assert better == "gate: promoted: +0.5000, interval 0.5000 to 0.5000, 2 records; before: version 1"
    assert (version_of("champion"), version_of("challenger"), version_of("previous_champion")) == ("3", "3", "1")
    tags = client.client().get_model_version("iterit", "2").tags
    assert json.loads(tags["iterit.gate"])["champion"] == {"loss": 2.0}
    difference = {"difference": -0.5, "lower_bound": -0.5, "interval_low": -0.5, "interval_high": -0.5, "records": 2}
    difference |= {"confidence": 0.95, "margin": 0.0, "detectable": 0.0, "standard_error": 0.0}
    assert json.loads(tags["iterit.gate"])["differences"] == {"loss": difference}
    decided = json.loads(Path("metrics/register.json").read_text())["gate"]
    assert decided == {"promoted": True, "differences": {"loss": {**difference, **BETTER}}, "benchmarks": {}}
    # the champion comes to the gate again: the figures that made it the champion stay
    assert register(project).stdout.splitlines()[1] == "gate: champion: is the champion already"
    assert json.loads(Path("metrics/register.json").read_text())["gate"] == decided
    edit_params(project, {"gate": {"margin": 0.5}})
    assert "2 records, margin 0.5; champion: version 3" in retrained(project, tmp_path, 14, 1.1)


def test_the_champion_is_compared_by_the_records_that_were_logged_with_it(project: Path, tmp_path: Path) -> None:
    retrained(project, tmp_path, 11, 0.5)  # a figure that no model has
    run_id = client.client().get_model_version("iterit", "1").run_id
    logged = client.client().download_artifacts(run_id, "holdout/evaluation.parquet")
    assert Path(logged).read_bytes() == Path("data/evaluations/2.parquet").read_bytes()
    assert "+0.2000" in retrained(project, tmp_path, 12, 0.3)
    assert not gate_decision()["evaluated_again"]


@pytest.mark.parametrize("missing", ["table", "run"])
def test_a_champion_whose_evaluation_is_not_in_mlflow_is_evaluated_again(
    project: Path, tmp_path: Path, missing: str
) -> None:
    retrained(project, tmp_path, 11, 0.5)
    run_id = client.client().get_model_version("iterit", "1").run_id
    if missing == "table":
        artifacts = client.client().get_run(run_id).info.artifact_uri
        shutil.rmtree(Path(artifacts.removeprefix("file://")) / "holdout")
    else:
        client.client().delete_run(run_id)
        gc = [sys.executable, "-m", "mlflow", "gc", "--run-ids", run_id]
        subprocess.run([*gc, "--backend-store-uri", os.environ["MLFLOW_TRACKING_URI"]], check=True, capture_output=True)
    assert retrained(project, tmp_path, 12, 0.3).startswith("gate: promoted: +6.")
    assert gate_decision()["evaluated_again"]


def test_the_champion_is_evaluated_again_when_the_holdout_has_changed(project: Path, tmp_path: Path) -> None:
    retrained(project, tmp_path, 11, 0.001)  # a figure that no model has
    write_records(project / "data/holdout.parquet", RECORDS[3:])
    line = retrained(project, tmp_path, 12, 2.0)
    assert line.startswith("gate: promoted: +4.")
    assert line.endswith("3 records; before: version 1")
    assert gate_decision()["evaluated_again"]


def test_the_champion_is_evaluated_again_when_the_holdout_is_read_in_another_way(project: Path, tmp_path: Path) -> None:
    retrained(project, tmp_path, 11, 0.001)  # a figure that no model has
    edit_params(project, {"score": {"system": "Be brief."}})
    assert retrained(project, tmp_path, 12, 2.0).startswith("gate: promoted: +4.")


def test_a_holdout_that_is_too_small_is_reported_after_the_gate(project: Path, tmp_path: Path) -> None:
    retrained(project, tmp_path, 11, 2.0)
    put_model(project, "2", make_small_model(tmp_path / "other", seed=12), loss=1.9)
    table = tables.read(Path("data/evaluations/2.parquet"), tables.EVALUATIONS).to_pylist()
    table[0]["nll_conditional"] = 2.1
    rows = pa.Table.from_pylist(table, schema=tables.EVALUATIONS)
    tables.write(Path("data/evaluations/2.parquet"), rows, tables.EVALUATIONS)
    _, verdict, resolution = register(project).stdout.splitlines()
    assert verdict == "gate: kept: +0.0000, interval -1.2706 to 1.2706, 2 records; champion: version 1"
    assert resolution == "gate: 2 records can show a difference of 0.77 nats or more"
    dvc(project, "commit", "--quiet", "--force", "evaluate@2")
    summary = "from components.core.params import load_settings; from flows.summary import print_summary; "
    done = subprocess.run(
        [sys.executable, "-c", summary + "print_summary(load_settings(), new=True)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\ngate         kept: +0.0000" in done.stdout
    assert f"\n             {resolution.removeprefix('gate: ')}\n" in done.stdout


def test_a_champion_without_benchmarks_is_benchmarked_once_and_a_worse_challenger_is_refused(
    project: Path, tmp_path: Path
) -> None:
    retrained(project, tmp_path, 11, 2.0)
    edit_params(
        project,
        {
            "benchmark": {"tasks": ["local"], "checkpoints": ["2"]},
            "gate": {"benchmarks": {"plain_text/byte_perplexity": 0.0, "general_choice/acc": 1.0}},
        },
    )
    put_model(project, "2", make_small_model(tmp_path / "other", seed=12), loss=1.0)
    found = run_benchmarks(Path("models/2"), load_settings(), nullcontext())
    rows = found.documents.to_pylist()
    for row in rows:
        row["value"] += row["metric"] == "byte_perplexity"  # worse by a nat a byte
    worse = pa.Table.from_pylist(rows, schema=tables.BENCHMARKS)
    tables.write(Path("data/benchmarks/2.parquet"), worse, tables.BENCHMARKS)
    stored = stored_result(found, folder_digest(Path("models/2")), load_settings())
    write_json(Path("metrics/benchmark/2.json"), stored)
    first = register(project).stdout.splitlines()
    assert "gate: version 1 has no comparable benchmarks: they are run on it, once" in first
    verdict, perplexity, accuracy = first[-3:]
    assert verdict.startswith("gate: kept: +1.0000")
    assert verdict.endswith("; refused by plain_text/byte_perplexity; champion: version 1")
    assert perplexity.startswith("gate: plain_text/byte_perplexity: -")
    assert perplexity.endswith("8 documents: may be worse by more than 0")
    assert accuracy.startswith("gate: general_choice/acc: ")
    assert accuracy.endswith("24 documents: not worse by more than 1")
    decided = json.loads(Path("metrics/register.json").read_text())["gate"]
    assert not decided["promoted"]
    assert decided["benchmarks"]["plain_text/byte_perplexity"]["documents"] == 8
    assert gate_decision()["benchmarks"] == decided["benchmarks"]
    # the values are kept with both versions; the next challenger needs no other run on the champion
    for number in ("1", "2"):
        run_id = client.client().get_model_version("iterit", number).run_id
        kept = client.client().download_artifacts(run_id, "benchmark/documents.parquet", str(tmp_path))
        assert tables.read(Path(kept), tables.BENCHMARKS).num_rows == len(rows)
    tables.write(Path("data/benchmarks/2.parquet"), found.documents, tables.BENCHMARKS)
    edit_params(project, {"gate": {"benchmarks": {"plain_text/byte_perplexity": 5.0}}})
    again = register(project)
    assert "comparable" not in again.stdout
    assert "gate: promoted: +1.0000" in again.stdout, again.stderr
    # of another checkpoint than the one that would be registered
    put_model(project, "2", make_small_model(tmp_path / "third", seed=13), loss=0.5)
    refused = register(project)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: metrics/benchmark/2.json: of another checkpoint")


def test_the_best_checkpoint_is_registered_when_gate_register_asks_for_it(project: Path) -> None:
    assert describe_checkpoint(load_settings(), Path("models"), Path("metrics")).iteration == "2"
    edit_params(project, {"gate": {"register": "best"}})
    evaluated = project / "metrics/evaluate/1.json"
    evaluated.write_text(json.dumps({**json.loads(evaluated.read_text()), "loss": 0.5}))
    assert describe_checkpoint(load_settings(), Path("models"), Path("metrics")).iteration == "1"


def test_promotion_and_rollback_by_hand_are_listed_in_the_registry(project: Path, tmp_path: Path) -> None:
    for seed, loss in ((11, 2.0), (12, 2.5)):
        retrained(project, tmp_path, seed, loss)
    assert promote_by_hand("2") == "iterit version 2 is the champion; before it was version 1"
    assert roll_back() == "iterit version 1 is the champion; before it was version 2"
    assert version_of("previous_champion") == "2"
    champions = json.loads(client.client().get_registered_model("iterit").tags["iterit.champions"])
    assert champions == [{"version": "1", "by": "gate"}, {"version": "2", "by": "hand"}, {"version": "1", "by": "hand"}]
    with pytest.raises(UserError, match="iterit has no version 9"):
        promote_by_hand("9")
