"""Commits, tags, records and printed lines follow from what is there, whatever was killed, edited or tried before."""

from __future__ import annotations

import json
import logging
import signal
import sqlite3
from pathlib import Path

import psutil
import pytest

from components.tracking.client import client
from flows.interrupted import NOTE, RunningNote, begin_run, note_run
from flows.server import LOST
from tests.support.project import at_work_in, call, edit_params, hashes, iterit, start, task_states, wait_for

TAG = "iterit/iterit/v1"


def query(folder: Path, database: str, sql: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(folder / database) as connection:
        return connection.execute(sql).fetchall()


def open_runs(folder: Path) -> list[str]:
    """MLflow runs that the next run has to end."""
    note = json.loads((folder / NOTE).read_text())
    return [*note["unfinished"], *([note["mlflow_run"]] if note["mlflow_run"] else [])]


def versions_and_aliases(folder: Path) -> tuple[int, dict[str, int]]:
    """How many versions are registered, and the version of each alias."""
    count = query(folder, "mlflow.db", "select count(*) from model_versions")[0][0]
    aliases = query(folder, "mlflow.db", "select alias, version from registered_model_aliases")
    return int(str(count)), {str(alias): int(str(version)) for alias, version in aliases}


def test_a_run_that_was_killed_between_register_and_seal_is_sealed_by_the_next(after_a_run: Path) -> None:
    call(after_a_run, "git", "tag", "--delete", TAG)
    call(after_a_run, "git", "reset", "--quiet", "HEAD~1")  # the files stay as the run has left them
    assert "nothing new" in iterit(after_a_run, "run")
    assert call(after_a_run, "git", "log", "-1", "--format=%s").strip() == "Retrain: iterit version 1"
    assert call(after_a_run, "git", "rev-parse", f"{TAG}^{{commit}}") == call(after_a_run, "git", "rev-parse", "HEAD")
    assert call(after_a_run, "git", "status", "--porcelain") == ""
    tagged = call(after_a_run, "git", "rev-parse", TAG)
    assert "sealed" not in iterit(after_a_run, "run")
    assert call(after_a_run, "git", "rev-parse", TAG) == tagged


def test_a_killed_run_is_ended_in_prefect_and_mlflow_by_the_next(after_a_run: Path) -> None:
    edit_params(after_a_run, {"evaluate": {"samples": 2}})
    flow = start(after_a_run, ["python", "-m", "flows.cli", "run"])
    wait_for(lambda: any("components.evaluate" in line for line in at_work_in(after_a_run)), flow)
    wait_for(lambda: json.loads((after_a_run / NOTE).read_text())["mlflow_run"], flow)
    flow.send_signal(signal.SIGKILL)
    flow.wait()
    killed = json.loads((after_a_run / NOTE).read_text())
    wait_for(lambda: not at_work_in(after_a_run), seconds=20)
    edit_params(after_a_run, {"evaluate": {"samples": 1}})  # back: nothing is to be done
    iterit(after_a_run, "run")
    state = "select state_name from flow_run where replace(id, '-', '') = '{}'"
    flow_run = killed["flow_run"].replace("-", "")
    assert query(after_a_run, ".prefect/prefect.db", state.format(flow_run)) == [("Crashed",)]
    running = "select count(*) from task_run where state_type = 'RUNNING'"
    assert query(after_a_run, ".prefect/prefect.db", running) == [(0,)]
    status = f"select status from runs where run_uuid = '{killed['mlflow_run']}'"
    assert query(after_a_run, "mlflow.db", status) == [("KILLED",)]
    assert query(after_a_run, "mlflow.db", "select count(*) from runs where status = 'RUNNING'") == [(0,)]
    assert open_runs(after_a_run) == []


def test_a_killed_run_that_mlflow_cannot_end_now_is_ended_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    client.cache_clear()
    note_run(RunningNote(mlflow_run="a" * 32))
    for number in range(2):
        assert begin_run(f"00000000-0000-0000-0000-00000000000{number}", logging.getLogger("test")) == ["a" * 32]
        note = json.loads(Path(NOTE).read_text())
        note_run(RunningNote(None, unfinished=tuple(note["unfinished"])))  # Prefect is not asked here
    assert "still RUNNING in MLflow" in caplog.messages[0]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")  # which does not know the run
    client.cache_clear()
    assert begin_run("00000000-0000-0000-0000-000000000003", logging.getLogger("test")) == []
    assert json.loads(Path(NOTE).read_text())["unfinished"] == []
    client.cache_clear()


def test_a_run_that_was_killed_before_prefect_knew_its_end_is_ended_by_the_next(after_a_run: Path) -> None:
    """The kill of a moment in which the run has done everything, and its state is not set yet."""
    flow_run = json.loads((after_a_run / NOTE).read_text())["flow_run"].replace("-", "")
    with sqlite3.connect(after_a_run / ".prefect/prefect.db") as database:
        mine = f"replace(id, '-', '') = '{flow_run}'"
        state = f"id = (select state_id from flow_run where {mine})"
        database.execute(f"update flow_run_state set type = 'RUNNING', name = 'Running' where {state}")
        database.execute(f"update flow_run set state_type = 'RUNNING', state_name = 'Running' where {mine}")
    assert "was killed" in iterit(after_a_run, "run")
    assert query(after_a_run, ".prefect/prefect.db", f"select state_name from flow_run where {mine}") == [("Crashed",)]
    assert "was killed" not in iterit(after_a_run, "run")


def test_a_run_whose_prefect_server_is_lost_ends_with_one_line_and_the_next_goes_on(after_a_run: Path) -> None:
    edit_params(after_a_run, {"evaluate": {"samples": 2}})
    flow = start(after_a_run, ["python", "-m", "flows.cli", "run"])
    wait_for(lambda: any("components.evaluate" in line for line in at_work_in(after_a_run)), flow)
    servers = [
        process for process in psutil.process_iter(["cmdline"]) if "flows.server" in (process.info["cmdline"] or ())
    ]
    [server] = [process for process in servers if process.ppid() == flow.pid]
    server.kill()
    output = flow.communicate(timeout=60)[0]
    assert flow.returncode == 75, output
    assert output.splitlines()[-1] == f"error: {LOST}"
    assert "Traceback" not in output
    assert "Error" not in output
    assert at_work_in(after_a_run) == []
    edit_params(after_a_run, {"evaluate": {"samples": 1}})
    assert "was killed" in iterit(after_a_run, "run")
    assert open_runs(after_a_run) == []
    assert query(after_a_run, "mlflow.db", "select count(*) from runs where status = 'RUNNING'") == [(0,)]


def test_parameters_that_are_edited_during_a_run_end_it_and_are_never_recorded_beside_other_bytes(
    after_a_run: Path,
) -> None:
    before = hashes(after_a_run)
    edit_params(after_a_run, {"evaluate": {"samples": 2}})
    flow = start(after_a_run, ["python", "-m", "flows.cli", "run"])
    wait_for(lambda: any("components.evaluate" in line for line in at_work_in(after_a_run)), flow)
    edit_params(after_a_run, {"evaluate": {"samples": 3}})
    output = flow.communicate(timeout=120)[0]
    assert flow.returncode == 75, output
    assert "Traceback" not in output
    assert [line for line in output.splitlines() if line.startswith("error: ")], output
    assert "changed" in output.splitlines()[-1]
    assert open_runs(after_a_run) == [], "a run that failed was not killed"
    edit_params(after_a_run, {"evaluate": {"samples": 1}})
    iterit(after_a_run, "run")
    assert hashes(after_a_run) == before


def test_an_experiment_is_recorded_and_changes_nothing_in_production(after_a_run: Path) -> None:
    before = versions_and_aliases(after_a_run)
    sealed = call(after_a_run, "git", "rev-parse", "HEAD")
    printed = call(after_a_run, "dvc", "exp", "run", "--set-param", "select.strategy=random")
    assert "recorded, not registered" in printed
    assert versions_and_aliases(after_a_run) == before
    assert call(after_a_run, "git", "rev-parse", "HEAD") == sealed
    parents = {
        str(name) for (name,) in query(after_a_run, "mlflow.db", "select name from runs where name not like '%@%'")
    }
    assert any(f"register: experiment {name}: recorded" in printed for name in parents)
    # what the summary says follows from the files that are here now
    summary = iterit(after_a_run, "run")
    assert "no version of iterit holds models/2: `iterit register`" in summary
    assert "registered   iterit version 1" not in summary
    assert call(after_a_run, "git", "rev-parse", "HEAD") == sealed
    assert "iterit version 2: registered" in iterit(after_a_run, "register")
    assert versions_and_aliases(after_a_run)[0] == 2
    assert "registered   iterit version 2" in iterit(after_a_run, "run")


def test_an_experiment_in_a_temporary_folder_records_into_the_project_s_store(after_a_run: Path) -> None:
    before = query(after_a_run, "mlflow.db", "select count(*) from runs")[0][0]
    call(after_a_run, "dvc", "exp", "run", "--temp", "--set-param", "gate.margin=0.5")
    assert int(str(query(after_a_run, "mlflow.db", "select count(*) from runs")[0][0])) > int(str(before))
    roots = {str(row[0]) for row in query(after_a_run, "mlflow.db", "select artifact_uri from runs")}
    assert not [root for root in roots if ".dvc/tmp" in root]
    assert versions_and_aliases(after_a_run)[0] == 1


@pytest.mark.parametrize(
    "name",
    ['\x1e{"came": "cached"}', "error: all is well\x1b[2J", "two\nerror: lines"],
    ids=["answer", "error", "lines"],
)
def test_a_file_s_name_is_no_answer_to_the_flow_and_no_control_of_the_terminal(after_a_run: Path, name: str) -> None:
    (after_a_run / "data/incoming" / f"{name}.txt").write_text("not a format that is read")
    output = iterit(after_a_run, "run")
    states = task_states(after_a_run)
    assert (states["manifest@incoming"], states["ingest"]) == ("Ran", "Ran")
    assert not [character for character in output if not character.isprintable() and character != "\n"]
    assert not [line for line in output.splitlines() if line.startswith("error")]
