"""The whole pipeline with a small model and real Prefect, DVC, DeepSpeed and MLflow.

A run is slow, so several tests look at the same one.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from components.core.paths import seconds_file
from components.provenance.digests import folder_digest
from tests.support.project import (
    FinishedRun,
    at_work_in,
    call,
    edit_params,
    hashes,
    iterit,
    make_project,
    ran,
    start,
    task_states,
    wait_for,
)

LOOP = ("score", "select", "finetune", "evaluate")
FIRST = {"base_model", "manifest@incoming", "ingest", "benchmark_data", "dedupe", "evaluate_base"}
LAST = {"contamination", "report", "register"}


@pytest.fixture
def project(after_a_run: Path) -> Path:
    """A project after its first run, for a test to change."""
    return after_a_run


def query(folder: Path, database: str, sql: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(folder / database) as connection:
        return connection.execute(sql).fetchall()


def test_a_flow_run_has_a_task_per_stage_and_a_table_per_iteration(finished_run: FinishedRun) -> None:
    loop = {f"{name}@{number}" for name in LOOP for number in (1, 2)}
    assert task_states(finished_run.folder) == dict.fromkeys(FIRST | loop | LAST, "Ran")
    artifacts = {row[0] for row in query(finished_run.folder, ".prefect/prefect.db", "select key from artifact")}
    assert artifacts >= {"iteration-1", "iteration-2", "mlflow-run"}


def test_mlflow_has_every_optimizer_step_and_its_speed(finished_run: FinishedRun) -> None:
    steps = """
        select distinct m.step from metrics m join runs r using (run_uuid)
        where m.key = '%s' and r.name not like '%%@%%'
    """
    files = [finished_run.folder / f"data/iterations/{iteration}/steps.csv" for iteration in (1, 2)]
    total = sum(len(file.read_text().splitlines()) - 1 for file in files)
    for key in ("step/loss", "step/learning_rate", "step/gradient_norm", "step/tokens_per_second"):
        assert sorted(query(finished_run.folder, "mlflow.db", steps % key)) == [
            (step,) for step in range(1, total + 1)
        ], key
    metrics = {key for (key,) in query(finished_run.folder, "mlflow.db", "select distinct key from metrics")}
    assert metrics >= {f"throughput/{name}" for name in ("tokens_per_second", "share_of_gemm", "peak_memory_bytes")}


def test_a_run_ends_with_a_table_and_where_the_results_are(finished_run: FinishedRun) -> None:
    table = finished_run.printed.partition("Retrained")[2]
    for expected in ("base", "perplexity", "models/2", "iterit version 1", "mlflow server", "prefect server start"):
        assert expected in table
    assert not [line for line in table.splitlines() if "…" in line]  # a cell was cut off
    total, arithmetic, rest = map(
        int, re.search(r"time +(\d+) s: (\d+) s of .*, (\d+) s of everything", table).groups()
    )
    assert 0 <= arithmetic < total
    for name in ("evaluate_base", "score@1", "finetune@1", "evaluate@1"):
        timing = json.loads((finished_run.folder / seconds_file(name)).read_text())
        assert 0 < timing["arithmetic"] < timing["seconds"]
    assert abs(total - arithmetic - rest) <= 1  # each is rounded


def test_what_the_holdout_can_show_is_said_as_soon_as_two_models_are_evaluated(finished_run: FinishedRun) -> None:
    before, said, after = re.split(r"gate: (6 holdout records can show .*)\n", finished_run.printed)
    assert said.endswith("by the spread of iteration 1 against the base model")
    assert "score@2" in after
    assert "score@2" not in before


def test_a_first_run_prints_no_warning_that_a_user_cannot_act_on(finished_run: FinishedRun) -> None:
    for noise in ("Traceback", "WARNING", "Warning", "warning", "ERROR", "locked"):
        assert noise not in finished_run.printed


def test_a_run_ends_with_a_commit_and_a_tag_and_the_audit_holds(finished_run: FinishedRun) -> None:
    folder = finished_run.folder
    assert call(folder, "git", "log", "-1", "--format=%an %s").strip() == "iterit Retrain: iterit version 1"
    assert call(folder, "git", "status", "--porcelain") == ""
    message = json.loads(call(folder, "git", "tag", "--list", "--format=%(contents)", "iterit/iterit/v1"))
    assert message.keys() == {"checkpoint", "dvc_lock", "mlflow_run", "prefect_flow_run"}
    assert message["checkpoint"] == folder_digest(folder / "models/2")
    *_, holds, compared = iterit(folder, "audit", "verify").splitlines()
    assert holds.endswith(message["checkpoint"])
    assert compared.startswith("compared with the sealed commit ")
    assert compared.endswith("(tag iterit/iterit/v1); there is no signature")
    for reference in (message["mlflow_run"], "models:/iterit/1", "models:/iterit@latest_iterit"):
        found = json.loads(iterit(folder, "audit", "checkpoint", reference, "--format", "json"))
        assert found["checkpoint"] == message["checkpoint"]
        assert [step["iteration"] for step in found["iterations"]] == ["1", "2"]
        assert found["iterations"][0]["code"]["clean"]
        assert found["sealed"] == [{"tag": "iterit/iterit/v1", **message, "registered": True}]
    earlier = json.loads(iterit(folder, "audit", "checkpoint", "models/1", "--format", "json"))
    assert earlier["sealed"] == [{"tag": "iterit/iterit/v1", **message, "registered": False}]
    # the trainer state after iteration 1 was pruned: it is made again, too
    replay = iterit(folder, "audit", "verify", "--replay", "2").splitlines()
    for path in ("models/1", "state/1", "data/iterations/2/scores.parquet", "models/2", "state/2"):
        assert any(line.startswith(f"ok        {path} made again") for line in replay), path
    assert "the iterations are 1, 2" in iterit(folder, "audit", "verify", "--replay", "3", expect=2)


def test_a_run_without_changes_registers_nothing(project: Path) -> None:
    before = (project / "dvc.lock").read_bytes()
    assert "nothing new" in iterit(project, "run")
    assert (project / "dvc.lock").read_bytes() == before
    assert query(project, "mlflow.db", "select count(*) from model_versions") == [(1,)]
    assert query(project, ".prefect/prefect.db", "select state_name from flow_run order by created") == [
        ("Retrained",),
        ("Unchanged",),
    ]
    assert ran(call(project, "dvc", "repro")) == set()
    assert (project / "dvc.lock").read_bytes() == before


def test_the_module_of_the_flow_runs_as_the_command_does(project: Path) -> None:
    assert "nothing new" in call(project, "python", "-m", "flows.retrain")
    assert task_states(project) == {}
    assert query(project, ".prefect/prefect.db", "select count(*) from flow_run") == [(2,)]
    (project / "params.yaml").write_text("select: {}\n")
    assert "error: params.yaml: base_model: missing" in call(project, "python", "-m", "flows.retrain", expect=2)


def test_a_bare_dvc_repro_gives_the_same_files_and_records(
    finished_run: FinishedRun, tmp_path: Path, small_model: Path
) -> None:
    folder = make_project(tmp_path, small_model)
    call(folder, "dvc", "repro")
    assert hashes(folder) == hashes(finished_run.folder)
    assert mlflow_records(folder) == mlflow_records(finished_run.folder)


def mlflow_records(folder: Path) -> dict[str, tuple[set[str], set[str]]]:
    """Run name (`parent` for the parent run) -> names of its metrics, names of its parameters."""
    records = {}
    with sqlite3.connect(folder / "mlflow.db") as database:
        runs = database.execute(
            "select r.run_uuid, r.name, t.value from runs r left join tags t "
            "on t.run_uuid = r.run_uuid and t.key = 'mlflow.parentRunId' where r.lifecycle_stage = 'active'"
        )
        for run, name, parent in runs.fetchall():
            metrics = {row[0] for row in database.execute("select key from metrics where run_uuid = ?", [run])}
            params = {row[0] for row in database.execute("select key from params where run_uuid = ?", [run])}
            records[name if parent else "parent"] = (metrics, params)
    return records


def test_an_experiment_with_a_new_decay_selects_again_but_neither_scores_the_pool_nor_ingests(project: Path) -> None:
    before = folder_digest(project / "models/2")
    call(project, "git", "add", "--all")
    assert call(project, "git", "status", "--porcelain") == "", "the end of the run has committed everything"
    reran = ran(call(project, "dvc", "exp", "run", "--set-param", "select.diversity_decay=0.0"))
    assert "select@1" in reran
    assert reran.isdisjoint(FIRST | {"score@1"})
    # and DVC's commands show the difference
    assert "diversity_decay" in call(project, "dvc", "params", "diff")
    assert "perplexity" in call(project, "dvc", "metrics", "show")
    assert "metrics/" in call(project, "dvc", "metrics", "diff", "--all")
    call(project, "dvc", "plots", "show")
    page = (project / "dvc_plots" / "index.html").read_text()
    for shown in ("loss", "complexity", "perplexity"):
        assert shown in page
    # with the old decay the run cache restores the old result
    edit_params(project, {"select": {"diversity_decay": 0.1}})
    assert ran(call(project, "dvc", "repro")) <= LAST
    assert folder_digest(project / "models/2") == before


def test_one_more_line_in_params_runs_one_more_iteration_and_nothing_before_it(project: Path) -> None:
    edit_params(project, {"iterations": {"3": {"parent": "2"}}})
    before = hashes(project)
    assert ran(call(project, "dvc", "repro")) == {f"{name}@3" for name in LOOP} | LAST
    changed = {path for path, md5 in hashes(project).items() if before.get(path, md5) != md5}
    result = {f"provenance/{name}.json" for name in LAST} | {"metrics/register.json", "metrics/contamination.json"}
    assert {path for path in changed if not path.startswith("plots/")} == result


def test_a_new_file_reruns_the_pipeline_from_ingest_on_and_a_second_run_ends_at_once(project: Path) -> None:
    records = [{"instruction": f"Count to {number}.", "output": " ".join(map(str, range(number)))} for number in (5, 9)]
    (project / "data/incoming/numbers.json").write_text(json.dumps(records))
    sealed = call(project, "git", "rev-parse", "HEAD")
    first = start(project, ["python", "-m", "flows.cli", "run", "--no-commit"])
    try:
        wait_for(lambda: any("components.ingest" in line for line in at_work_in(project)), first)
        second = iterit(project, "run", expect=75)
        assert second.startswith(f"error: another run is at work in this folder (process {first.pid})")
    finally:
        output = first.communicate(timeout=300)[0]
    assert first.returncode == 0, output
    states = task_states(project)
    assert states["base_model"] == "Cached"
    assert {states[name] for name in ("manifest@incoming", "ingest", "dedupe", "score@1")} == {"Ran"}
    assert "Count to 9." in str(pool_prompts(project))
    assert call(project, "git", "rev-parse", "HEAD") == sealed


def pool_prompts(folder: Path) -> list[str]:
    from components.data.records import read_records

    return [record.prompt for name in ("pool", "holdout") for record in read_records(folder / f"data/{name}.parquet")]


def test_the_errors_of_a_failed_stage_end_the_run_with_its_exit_code(project: Path) -> None:
    (project / "data/incoming/odd.json").write_text(json.dumps([{"colour": "red"}] * 3))
    output = iterit(project, "run", expect=2)
    assert output.splitlines()[-1].startswith("error: data/incoming/odd.json record 1: keys 'colour'")
    assert "Traceback" not in output
    assert task_states(project)["ingest"] == "Failed"
    (project / "data/incoming/odd.json").unlink()
    assert "models/2" in iterit(project, "run")
    assert "Ran" not in task_states(project).values()  # DVC's run cache has all results


def test_a_killed_run_leaves_no_process_behind_and_resumes_to_the_same_hashes(
    finished_run: FinishedRun, project: Path
) -> None:
    """Killed in score, when the first shard exists, then in finetune, after the first step."""
    forget_iterations(project)
    edit_params(project, {"finetune": {"save_steps": 1}})
    halfway = {
        "score@1": lambda: any(project.glob(".iterit/scores/*/*.parquet")),
        "finetune@1": lambda: (project / ".iterit/tmp/finetune@1/steps.jsonl").is_file(),
    }
    for stage, reached in halfway.items():
        flow = start(project, ["python", "-m", "flows.cli", "run"])
        wait_for(reached, flow)
        flow.send_signal(signal.SIGKILL)
        flow.wait()
        wait_for(lambda: not at_work_in(project), seconds=20)
        assert not (project / seconds_file(stage)).exists(), f"{stage} had ended before it was killed"
    iterit(project, "run")
    states = task_states(project)
    assert {states[name] for name in (*FIRST, "score@1", "select@1")} == {"Cached"}
    assert states["finetune@1"] == "Ran"
    # the statement of a finetune stage holds finetune.save_steps, which was changed here
    resumed, undisturbed = (
        {path: md5 for path, md5 in hashes(place).items() if not path.startswith("provenance/finetune")}
        for place in (project, finished_run.folder)
    )
    assert resumed == undisturbed


def forget_iterations(folder: Path) -> None:
    """Remove the outputs of all iterations and of the stages after them, also from dvc.lock and DVC's run cache."""
    yaml = YAML()
    lock = yaml.load(folder / "dvc.lock")
    for stage in {f"{name}@{number}" for name in LOOP for number in (1, 2)} | LAST:
        for out in lock["stages"].pop(stage)["outs"]:
            path = folder / out["path"]
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    yaml.dump(lock, folder / "dvc.lock")
    for store in (".dvc/cache/runs", ".iterit/scores", ".iterit/states"):
        shutil.rmtree(folder / store)


def test_ctrl_c_ends_the_stage_and_tells_how_to_resume(project: Path) -> None:
    edit_params(project, {"evaluate": {"samples": 2}})
    flow = start(project, ["python", "-m", "flows.cli", "run"])
    wait_for(lambda: any("components.evaluate" in line for line in at_work_in(project)), flow)
    flow.send_signal(signal.SIGINT)
    output = flow.communicate(timeout=30)[0]
    assert flow.returncode == 130, output
    assert output.splitlines()[-1] == "stopped; `iterit run` goes on with the stage that was interrupted"
    assert "Traceback" not in output
    assert at_work_in(project) == []
    assert query(project, "mlflow.db", "select distinct status from runs order by status") == [
        ("FINISHED",),
        ("KILLED",),
    ]


def test_a_schedule_runs_the_flow_and_ends_on_sigterm(project: Path) -> None:
    # as a shell starts a process in the background: SIGINT is ignored
    server = start(project, ["sh", "-c", "trap '' INT; exec python -m flows.cli serve --interval 10s"])
    done = "select state_name from flow_run where deployment_id is not null and state_type = 'COMPLETED'"
    try:
        wait_for(lambda: query(project, ".prefect/prefect.db", done), server)
        server.send_signal(signal.SIGTERM)
        output = server.communicate(timeout=60)[0]
    finally:
        server.kill()
    assert set(query(project, ".prefect/prefect.db", done)) == {("Unchanged",)}
    assert server.returncode == 0, output
    assert "Traceback" not in output
    wait_for(lambda: not at_work_in(project), seconds=20)
