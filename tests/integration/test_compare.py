"""iterit compare with a small model: killed, gone on with, and answered; what it will cost; what it refuses."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from components.core.files import read_json
from tests.support.browser import CHROMIUM, assert_drawn
from tests.support.html import assert_self_contained
from tests.support.project import at_work_in, call, hashes, iterit, make_project, ran, start, wait_for

COMPARE = {
    "name": "small",
    "arms": ["random-fresh", "iterit"],
    "seeds": [1, 2],
    "budgets": [8],
    "noise": [0.25],
    "set": {
        "dedupe.max_records": 40,
        "dedupe.max_holdout": 12,
        "evaluate.samples": 0,
        "finetune.planned_iterations": 1,
        "iterations": {"1": {"parent": "base"}},
    },
}
KILLED = Path("comparisons/small/cells/random-fresh-k8-n25-s1.json")


def write_compare(folder: Path, **changes: object) -> None:
    YAML().dump({**COMPARE, **changes}, folder / "compare.yaml")


@pytest.fixture(scope="module")
def project(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_project(tmp_path_factory.mktemp("compare"), small_model)
    write_compare(folder)
    return folder


@pytest.fixture(scope="module")
def compared(project: Path) -> Iterator[tuple[Path, str, int]]:
    """The project after a comparison that was killed once; what the second start printed; when the first cell ended."""
    process = start(project, ["python", "-m", "flows.cli", "compare", "--workers", "2"])
    wait_for((project / KILLED).is_file, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not at_work_in(project))
    ended = (project / KILLED).stat().st_mtime_ns
    yield project, iterit(project, "compare", "--workers", "2"), ended


def test_a_killed_comparison_goes_on_with_the_cells_that_are_not_finished(compared: tuple[Path, str, int]) -> None:
    folder, printed, ended = compared
    assert "of 4 cells are finished" in printed
    assert "0 of 4 cells" not in printed
    assert (folder / KILLED).stat().st_mtime_ns == ended
    assert len(list((folder / "comparisons/small/cells").iterdir())) == 4
    assert "answer       comparisons/small/answer.md" in printed


def test_the_answer_has_each_arm_with_the_noise_that_it_chose(compared: tuple[Path, str, int]) -> None:
    folder, _, _ = compared
    (group,) = read_json(folder / "comparisons/small/answer.json")["groups"]
    assert group["pool"]["records"] == 40
    assert sum(group["pool"]["noise"].values()) == 10
    (measure,) = group["measures"]
    assert measure["records"] == 11  # one text is too long for this model
    assert {*measure["arms"]} == {"random-fresh", "iterit"}
    assert group["facts"]["random-fresh"]["passes"] == 0
    assert group["facts"]["iterit"]["passes"] == 80
    assert_self_contained((folder / "comparisons/small/report.html").read_text(encoding="utf-8"))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_a_browser_draws_the_page(compared: tuple[Path, str, int]) -> None:
    folder, _, _ = compared
    assert_drawn(folder / "comparisons/small/report.html")


def test_every_cell_is_a_dvc_experiment_and_nothing_large_is_left(compared: tuple[Path, str, int]) -> None:
    folder, _, _ = compared
    listed = call(folder, "dvc", "exp", "list", "--name-only")
    assert sorted(listed.split()) == sorted(f"small-{cell}-k8-n25-s{s}" for cell in COMPARE["arms"] for s in (1, 2))
    assert call(folder, "git", "worktree", "list").count("\n") == 1
    assert not (folder / ".iterit/compare/small").exists()


def test_a_cell_s_checkpoint_is_made_again_on_a_branch(compared: tuple[Path, str, int], tmp_path: Path) -> None:
    folder, _, _ = compared
    project = tmp_path / "project"
    shutil.copytree(folder, project, symlinks=True)
    call(project, "dvc", "exp", "branch", "small-iterit-k8-n25-s2", "again")
    call(project, "git", "switch", "--quiet", "again")
    before = hashes(project)
    printed = call(project, "dvc", "repro", "evaluate@1")
    assert ran(printed) == {"finetune@1"}  # the rest is in the project's cache
    assert hashes(project) == before
    assert (project / "models/1/model.safetensors").is_file()


def test_another_start_runs_nothing_and_gives_the_same_answer(compared: tuple[Path, str, int]) -> None:
    folder, _, _ = compared
    answer = folder / "comparisons/small/answer.json"
    before = answer.read_bytes()
    shutil.rmtree(folder / ".iterit/compare", ignore_errors=True)
    assert "4 of 4 cells are finished" in iterit(folder, "compare")
    assert answer.read_bytes() == before
    assert "nothing to run: all cells are finished" in iterit(folder, "compare", "--plan")


def test_a_choice_alone_is_compared_in_a_moment_and_planned_before(compared: tuple[Path, str, int]) -> None:
    folder, _, _ = compared
    write_compare(folder, name="choice", train=False, seeds=[1])
    planned = iterit(folder, "compare", "--plan")
    assert "cells        2 to run (arms 2 x seeds 1 x budgets 1 x noise 1), 1 at a time" in planned
    assert "passes       80 forward passes to choose, 0 to measure" in planned
    printed = iterit(folder, "compare")
    assert "nothing was trained" in printed
    assert not read_json(folder / "comparisons/choice/answer.json")["groups"][0]["measures"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"budgets": [41]}, "error: compare.yaml: budgets: 41: the pool has 40 records"),
        ({"arms": ["random-fresh", "best"]}, "error: compare.yaml: arms: no arm 'best'"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    compared: tuple[Path, str, int], changes: dict[str, object], line: str
) -> None:
    folder, _, _ = compared
    write_compare(folder, name="wrong", **changes)
    printed = iterit(folder, "compare", expect=2)
    assert line in printed
    assert "Traceback" not in printed


def test_code_that_git_does_not_have_is_named(compared: tuple[Path, str, int]) -> None:
    folder, _, _ = compared
    write_compare(folder)
    with (folder / "components/score.py").open("a", encoding="utf-8") as file:
        file.write("\n")
    printed = iterit(folder, "compare", expect=2)
    subprocess.run(["git", "checkout", "--quiet", "components"], cwd=folder, check=True)
    assert "error: components/score.py: not committed; a comparison runs what git has: commit it first" in printed
