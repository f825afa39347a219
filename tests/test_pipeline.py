"""The whole pipeline with a small model and every real part: Prefect, DVC, DeepSpeed, MLflow."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from components.stage import seconds_file
from tests.project import call, edit_params, hashes, iterit, make_project, start

LOOP = ("score", "select", "finetune", "evaluate")
FIRST = {"base_model", "watch@incoming", "ingest", "dedupe", "evaluate_base"}
LAST = {"report", "register"}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> tuple[Path, str]:
    """A project after its first `iterit run`, and what that printed; copied by the tests that change it."""
    folder = make_project(tmp_path_factory.mktemp("project"), small_model)
    return folder, iterit(folder, "run")


@pytest.fixture
def project(finished: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the finished project, to change."""
    folder = tmp_path / "project"
    shutil.copytree(finished[0], folder, symlinks=True)
    return folder


def task_states(folder: Path) -> dict[str, str]:
    """Task run name -> state name of the newest flow run, as Prefect's own database has it."""
    with sqlite3.connect(folder / ".prefect" / "prefect.db") as database:
        newest = database.execute("select id from flow_run order by created desc limit 1").fetchone()[0]
        return dict(database.execute("select name, state_name from task_run where flow_run_id = ?", [newest]))


def ran(output: str) -> set[str]:
    """The stages that `dvc repro` ran, by what it printed."""
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")}


def test_one_flow_run_shows_the_loop(finished: tuple[Path, str]) -> None:
    loop = {f"{name}@{number}" for name in LOOP for number in (1, 2)}
    assert task_states(finished[0]) == dict.fromkeys(FIRST | loop | LAST, "Ran")
    with sqlite3.connect(finished[0] / ".prefect" / "prefect.db") as database:
        assert {row[0] for row in database.execute("select key from artifact")} >= {
            "iteration-1",
            "iteration-2",
            "mlflow-run",
        }


def test_a_run_ends_with_a_table_and_where_things_are(finished: tuple[Path, str]) -> None:
    output = finished[1]
    for expected in ("base", "perplexity", "models/2", "iterit version 1", "mlflow server", "prefect server start"):
        assert expected in output
    assert "Traceback" not in output
    assert "Warning" not in output


def test_a_second_run_finds_nothing_new_and_registers_nothing(project: Path) -> None:
    before = (project / "dvc.lock").read_bytes()
    assert "nothing new" in iterit(project, "run")
    assert (project / "dvc.lock").read_bytes() == before
    with sqlite3.connect(project / "mlflow.db") as database:
        assert database.execute("select count(*) from model_versions").fetchone()[0] == 1
    assert ran(call(project, "dvc", "repro")) == set()


def test_dvc_alone_gives_the_same_files_and_records(
    finished: tuple[Path, str], tmp_path: Path, small_model: Path
) -> None:
    folder = make_project(tmp_path, small_model)
    call(folder, "dvc", "repro")
    assert hashes(folder) == hashes(finished[0])
    assert mlflow_records(folder) == mlflow_records(finished[0])


def mlflow_records(folder: Path) -> dict[str, tuple[set[str], set[str]]]:
    """Run name (`parent` for the parent run) -> names of its metrics and of its parameters."""
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


def test_another_decay_selects_again_but_neither_scores_the_pool_nor_ingests(project: Path) -> None:
    edit_params(project, {"select": {"diversity_decay": 0.9}})
    before = hashes(project)
    reran = ran(call(project, "dvc", "repro"))
    assert "select@1" in reran
    assert reran.isdisjoint(FIRST | {"score@1"})
    assert hashes(project)["data/iterations/1/scores.parquet"] == before["data/iterations/1/scores.parquet"]


def test_one_more_line_runs_one_more_iteration_and_nothing_before_it(project: Path) -> None:
    edit_params(project, {"iterations": {"3": {"parent": "2"}}})
    before = hashes(project)
    assert ran(call(project, "dvc", "repro")) == {f"{name}@3" for name in LOOP} | LAST
    unchanged = {path: md5 for path, md5 in hashes(project).items() if path in before and not path.startswith("plots/")}
    assert {path for path, md5 in unchanged.items() if before[path] != md5} <= {"metrics/register.json"}


def test_a_dropped_file_reruns_from_ingest_on(project: Path) -> None:
    records = [{"instruction": f"Count to {number}.", "output": " ".join(map(str, range(number)))} for number in (5, 9)]
    (project / "data/incoming/numbers.json").write_text(json.dumps(records))
    iterit(project, "run")
    states = task_states(project)
    assert states["base_model"] == "Cached"
    assert {states[name] for name in ("watch@incoming", "ingest", "dedupe", "score@1")} == {"Ran"}


def test_experiments_metrics_and_plots_show_something(project: Path) -> None:
    call(project, "git", "add", "--all")
    call(project, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "--message", "run")
    call(project, "dvc", "exp", "run", "--set-param", "select.diversity_decay=0.0")
    assert "diversity_decay" in call(project, "dvc", "params", "diff")
    assert "perplexity" in call(project, "dvc", "metrics", "show")
    assert "metrics/" in call(project, "dvc", "metrics", "diff", "--all")
    call(project, "dvc", "plots", "show")
    page = (project / "dvc_plots" / "index.html").read_text()
    for shown in ("loss", "complexity", "perplexity"):
        assert shown in page


@pytest.mark.parametrize(
    ("set_", "line"),
    [
        (
            "select.ratio=1.5",
            "error: --set: select.ratio: 1.5 is neither a share (0 to 1] nor a whole number of records",
        ),
        ("select.foo=1", "error: --set: select.foo: unknown key; known here: "),
        ("ratio", "error: --set ratio: expected KEY=VALUE"),
        ("base_model.path=nowhere", "error: params.yaml: base_model.path: nowhere: no such file or folder"),
        ("ingest.files.incoming.path=no.json", "error: params.yaml: ingest.files.incoming.path: no.json: no such file"),
        (
            "finetune.deepspeed=zero9",
            "error: params.yaml: finetune.deepspeed: no conf/deepspeed/zero9.json; there are: ",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, small_model: Path, set_: str, line: str) -> None:
    output = iterit(make_project(tmp_path, small_model), "run", "--set", set_, expect=2)
    assert any(printed.startswith(line) for printed in output.splitlines())
    assert "Traceback" not in output


def test_a_failed_stage_says_why_and_the_run_ends_with_its_exit_code(project: Path) -> None:
    (project / "data/incoming/odd.json").write_text(json.dumps([{"colour": "red"}] * 3))
    output = iterit(project, "run", expect=2)
    assert "odd.json" in output.splitlines()[-1] or "odd.json" in output
    assert "Traceback" not in output
    assert task_states(project)["ingest"] == "Failed"


def test_two_runs_never_work_in_one_folder(project: Path) -> None:
    edit_params(project, {"finetune": {"seed": 7}})
    first = start(project, ["python", "-m", "flows.cli", "run"])
    try:
        wait_for(lambda: (project / ".iterit/lock").read_text().strip() not in ("", str(first.pid + 1)), first)
        wait_for(lambda: locked(project), first)
        assert "another run is at work" in iterit(project, "run", expect=75)
    finally:
        first.communicate(timeout=300)
    assert first.returncode == 0


def locked(folder: Path) -> bool:
    import fcntl

    with (folder / ".iterit/lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def wait_for(condition: object, process: object) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def at_work_in(folder: Path) -> list[str]:
    """Command lines of the processes whose current folder is the project."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == folder:
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.mark.parametrize("stage", ["score", "finetune"])
def test_a_killed_run_leaves_nobody_at_work_and_goes_on_to_the_same_hashes(
    finished: tuple[Path, str], tmp_path: Path, small_model: Path, stage: str
) -> None:
    folder = make_project(tmp_path, small_model)
    flow = start(folder, ["python", "-m", "flows.cli", "run"])
    wait_for(lambda: any(f"components.{stage}" in line for line in at_work_in(folder)), flow)
    time.sleep(1)
    flow.send_signal(signal.SIGKILL)
    flow.wait()
    deadline = time.monotonic() + 5
    while at_work_in(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert at_work_in(folder) == []
    assert not seconds_file_of(folder, f"{stage}@1").exists()  # it was in the middle of it
    iterit(folder, "run")
    assert task_states(folder)["dedupe"] == "Cached"
    assert task_states(folder)[f"{stage}@1"] == "Ran"
    assert hashes(folder) == hashes(finished[0])


def seconds_file_of(folder: Path, stage: str) -> Path:
    return folder / seconds_file(stage)


@pytest.fixture
def serving(project: Path) -> Iterator[tuple[Path, object]]:
    server = start(project, ["python", "-m", "flows.cli", "serve", "--interval", "10s"])
    yield project, server
    if server.poll() is None:
        server.kill()


def test_a_schedule_fires_and_ends_on_sigterm(serving: tuple[Path, object]) -> None:
    folder, server = serving

    def runs() -> list[str]:
        with sqlite3.connect(folder / ".prefect" / "prefect.db") as database:
            query = "select state_name from flow_run where deployment_id is not null and state_type = 'COMPLETED'"
            return [row[0] for row in database.execute(query)]

    wait_for(lambda: len(runs()) >= 1, server)
    assert set(runs()) == {"Unchanged"}
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=20) == 0
    assert at_work_in(folder) == []
