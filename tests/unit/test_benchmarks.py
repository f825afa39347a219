"""Benchmarks: the shipped tasks run offline, what is stored depends on the model alone, mistakes are one line."""

from __future__ import annotations

import math
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from components.benchmarks.harness import BenchmarkResult, run_tasks
from components.benchmarks.tasks import SETS, load_tasks
from components.benchmarks.texts import task_texts
from components.core.errors import UserError
from components.core.params import check_settings, read_params
from components.core.settings.benchmark import BenchmarkSettings
from components.model.load import load_model
from tests.support.small_model import make_small_model

PROJECT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the shipped tasks; no hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(PROJECT / "conf/benchmarks", tmp_path / "conf/benchmarks")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_model(tmp_path_factory.mktemp("model"))


def settings(*tasks: str, **others: object) -> BenchmarkSettings:
    return BenchmarkSettings.model_validate({"tasks": list(tasks), "checkpoints": ["base"], **others})


def run(folder: Path, chosen: BenchmarkSettings) -> BenchmarkResult:
    return run_tasks(*load_model(folder, "float32"), load_tasks(chosen), chosen, "", nullcontext())


def test_the_shipped_tasks_are_one_of_each_kind_and_have_figures_with_standard_errors(model: Path) -> None:
    result = run(model, settings("local"))
    assert {name: (task.documents, task.fewshot) for name, task in result.tasks.items()} == {
        "general_choice": (24, 0),
        "plain_text": (8, 0),
        "short_answers": (16, 2),
    }
    assert all(figure.standard_error is not None for task in result.tasks.values() for figure in task.metrics.values())
    assert result == run(model, settings("local"))


def test_a_figure_is_the_mean_of_its_documents_rows(model: Path) -> None:
    result = run(model, settings("local"))
    rows = result.documents.to_pylist()

    def mean(task: str, metric: str) -> float:
        own = [row for row in rows if (row["task"], row["metric"]) == (task, metric)]
        return sum(row["value"] * row["weight"] for row in own) / sum(row["weight"] for row in own)

    choice, text = result.tasks["general_choice"].metrics, result.tasks["plain_text"].metrics
    assert mean("general_choice", "acc") == pytest.approx(choice["acc"].value, abs=1e-6)
    assert math.exp(mean("plain_text", "byte_perplexity")) == pytest.approx(text["byte_perplexity"].value, rel=1e-6)
    assert mean("plain_text", "bits_per_byte") == pytest.approx(text["bits_per_byte"].value, abs=1e-6)
    assert {row["metric"] for row in rows if not row["higher_is_better"]} == set(text)


def test_the_digests_tell_what_has_changed(project: Path, model: Path) -> None:
    before = run(model, settings("local")).tasks["general_choice"]
    file = project / "conf/benchmarks/local/general_choice.yaml"
    file.write_text(file.read_text().replace("Question:", "Q:"))
    asked_otherwise = run(model, settings("local")).tasks["general_choice"]
    assert asked_otherwise.template != before.template
    assert asked_otherwise.data == before.data
    fewer = run(model, settings("local", limit=3)).tasks["general_choice"]
    assert (fewer.documents, fewer.template) == (3, asked_otherwise.template)
    assert fewer.data != before.data


def test_the_place_of_the_project_is_in_no_digest(model: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = run(model, settings("local"))
    shutil.copytree(project / "conf", project / "elsewhere/conf")
    monkeypatch.chdir(project / "elsewhere")
    assert run(model, settings("local")).tasks == here.tasks


def test_a_number_of_examples_can_be_set(model: Path) -> None:
    result = run(model, settings("local", fewshot={"short_answers": 1}))
    assert result.tasks["short_answers"].fewshot == 1


def test_the_texts_hold_question_and_answers() -> None:
    texts = task_texts(load_tasks(settings("local"))).to_pylist()
    assert len(texts) == 48
    assert texts[0]["text"].splitlines()[-4:] == ["steam", "ice", "sand", "oil"]


def test_a_folder_of_the_user_is_named_by_its_path(project: Path) -> None:
    mine = project / "conf/benchmarks/mine"
    mine.mkdir()
    text = (project / "conf/benchmarks/local/plain_text.yaml").read_text()
    (mine / "prose.yaml").write_text(text.replace("task: plain_text", "task: prose"))
    assert list(load_tasks(settings("conf/benchmarks/mine")).tasks) == ["prose"]


def test_a_folder_s_mistakes_are_one_line(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(UserError, match=r"benchmark\.tasks: conf/benchmarks/none: no such folder$"):
        load_tasks(settings("conf/benchmarks/none"))
    outside = tmp_path_factory.mktemp("outside")
    with pytest.raises(UserError, match=r"not in conf/benchmarks; task files are kept there"):
        load_tasks(settings(str(outside)))
    (project / "conf/benchmarks/local/odd.yaml").write_text("colour: red\n")
    with pytest.raises(UserError, match=r"odd\.yaml: not a task file of lm-evaluation-harness"):
        load_tasks(settings("local"))


def test_missing_data_are_one_line(project: Path) -> None:
    (project / "conf/benchmarks/local/plain_text.json").unlink()
    with pytest.raises(UserError, match=r"params\.yaml: benchmark\.tasks: plain_text: cannot be loaded: ") as error:
        load_tasks(settings("local"))
    assert len(str(error.value).splitlines()) == 1


def test_the_paper_s_set_is_the_paper_s() -> None:
    shots = {"arc_challenge": 25, "hellaswag": 10, "mmlu": 0, "gsm8k": 8, "bbh": 3, "truthfulqa_mc2": 0, "humaneval": 0}
    assert SETS["paper"] == shots


@pytest.mark.parametrize(
    ("benchmark", "line"),
    [
        ({"tasks": ["local"]}, "params.yaml: benchmark: tasks has names, and checkpoints has none; name them, such as"),
        (
            {"checkpoints": ["base"]},
            "params.yaml: benchmark: checkpoints has names, and tasks has none; name one, such",
        ),
        ({"tasks": ["local", "local"], "checkpoints": ["base"]}, "params.yaml: benchmark: tasks names local more than"),
        ({"tasks": ["local"], "checkpoints": ["9"]}, "params.yaml: benchmark.checkpoints: '9' is no checkpoint; there"),
    ],
)
def test_tasks_and_checkpoints_must_fit(benchmark: dict[str, object], line: str) -> None:
    params = read_params(PROJECT / "params.yaml")
    with pytest.raises(UserError) as error:
        check_settings(params | {"benchmark": params["benchmark"] | benchmark})
    assert str(error.value).startswith(line)
