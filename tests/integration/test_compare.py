"""iterit compare with a small model: killed, gone on with, and answered; what it will cost; what it refuses."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from components.core.files import read_json
from tests.support.html import assert_self_contained
from tests.support.project import at_work_in, iterit, make_project, start, wait_for

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
    assert measure["records"] in (11, 12)  # a text may be too long for this model
    assert {*measure["arms"]} == {"random-fresh", "iterit"}
    assert group["facts"]["random-fresh"]["passes"] == 0
    assert group["facts"]["iterit"]["passes"] == 80
    assert_self_contained((folder / "comparisons/small/report.html").read_text(encoding="utf-8"))
