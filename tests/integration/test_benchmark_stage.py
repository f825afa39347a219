"""The stage benchmark_data as a command: names are the harness's own, and mistakes end in one line each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from components.data import tables
from tests.support.project import SOURCE, edit_params, environment


def benchmark_data(folder: Path, tasks: list[str]) -> subprocess.CompletedProcess[str]:
    (folder / "params.yaml").write_bytes((SOURCE / "params.yaml").read_bytes())
    edit_params(folder, {"benchmark": {"tasks": tasks, "checkpoints": ["base"] if tasks else []}})
    return subprocess.run(
        [sys.executable, "-m", "components.benchmark_data", "--texts", "texts.parquet"],
        cwd=folder,
        env={**environment(), "PYTHONPATH": str(SOURCE), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_mistaken_name_is_told_with_near_ones_and_code_runs_only_where_it_is_allowed(tmp_path: Path) -> None:
    ended = benchmark_data(tmp_path, ["arc_chalenge", "humaneval", "hellaswag"])
    assert ended.returncode == 2
    unknown, code = ended.stderr.splitlines()
    assert unknown.startswith(
        "error: params.yaml: benchmark.tasks: arc_chalenge: no task that lm-evaluation-harness knows"
    )
    assert "arc_challenge" in unknown.partition("near: ")[2]
    assert code.startswith("error: params.yaml: benchmark.tasks: humaneval: it runs the code that a model writes")
    assert not (tmp_path / "texts.parquet").exists()


def test_a_task_whose_data_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    ended = benchmark_data(tmp_path, ["hellaswag"])
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: params.yaml: benchmark.tasks: hellaswag: its data cannot be had: ")
    assert ended.returncode == 2


def test_without_tasks_the_table_is_empty(tmp_path: Path) -> None:
    ended = benchmark_data(tmp_path, [])
    assert (ended.returncode, ended.stderr) == (0, "")
    assert tables.read(tmp_path / "texts.parquet", tables.BENCHMARK_TEXTS).num_rows == 0
