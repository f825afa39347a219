"""The examples are complete: a run accepts each of them, and finds in it what dvc.yaml reads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from components.comparison.cells import make_cells
from components.comparison.settings import read_comparison
from components.core.params import check_settings, read_params
from components.core.settings.pipeline import Settings
from components.provenance.pipeline import find_stage, stage_modules
from components.training.deepspeed import CONFIGS, check_precision

PROJECT = Path(__file__).parents[2]
EXAMPLES = sorted((PROJECT / "examples").glob("*.yaml"))


def load(name: str) -> Settings:
    return check_settings(read_params(PROJECT / "examples" / name), name)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda file: file.name)
def test_an_example_is_valid_and_its_training_is_possible(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    settings = load(example.name)
    assert (CONFIGS / f"{settings.finetune.deepspeed}.json").is_file()
    check_precision(settings.finetune.deepspeed, settings.finetune.dtype)
    assert settings.finetune.planned_iterations == len(settings.iterations)
    assert settings.finetune.max_length == settings.score.max_length, "what is scored is trained"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda file: file.name)
def test_an_example_holds_every_block_that_a_stage_reads(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(PROJECT / "dvc.yaml", tmp_path / "dvc.yaml")
    shutil.copyfile(example, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    params = read_params()
    keys = {
        "manifest": "@incoming",
        "benchmark": "@base",
        **dict.fromkeys(("score", "select", "finetune", "evaluate"), "@1"),
    }
    for name in stage_modules():
        if name == "manifest" and not params["ingest"]["files"]:
            continue  # one stage a source of files, so none
        stage = find_stage(f"{name}{keys.get(name, '')}")
        for key in stage.params:
            value = params
            for part in key.split("."):
                assert part in value, f"{name} reads {key}"
                value = value[part]


def test_own_files_are_read_whole_and_alone() -> None:
    settings = load("own_files.yaml")
    assert list(settings.ingest.sources) == ["incoming"]
    assert settings.ingest.files["incoming"].cap is None
    assert settings.dedupe.max_records is None
    assert settings.dedupe.max_holdout is None


def test_what_comes_from_the_hub_is_pinned_to_a_commit() -> None:
    for example in EXAMPLES:
        settings = load(example.name)
        model = settings.base_model
        revisions = [model.revision] if model.kind == "hub" else []
        revisions += [dataset.revision for dataset in settings.ingest.datasets.values()]
        assert all(len(revision) == 40 and set(revision) <= set("0123456789abcdef") for revision in revisions)
    assert load("hub_model.yaml").base_model.kind == "hub"


def test_lora_trains_and_scores_on_two_gpus() -> None:
    settings = load("lora_two_gpus.yaml")
    assert settings.finetune.lora is not None
    assert (settings.finetune.processes, settings.score.processes) == (2, 2)


def test_the_paper_s_setting_is_the_paper_s() -> None:
    settings = load("paper.yaml")
    assert (settings.select.strategy, settings.select.ratio, settings.select.update_ratio) == ("iterit", 0.05, 3.0)
    assert settings.select.diversity_decay == 0.1
    assert list(settings.iterations) == ["1", "2", "3"]
    finetune = settings.finetune
    assert (finetune.learning_rate, finetune.batch_size, finetune.warmup_ratio) == (2e-5, 32, 0.03)
    assert (finetune.loss, finetune.clip_norm, finetune.weight_decay) == ("record", 1.0, 0.0)
    assert settings.ingest.datasets["alpaca"].cap is None


def test_the_list_of_examples_names_every_file() -> None:
    text = (PROJECT / "examples" / "README.md").read_text(encoding="utf-8")
    assert EXAMPLES
    assert all(f"({example.name})" in text for example in EXAMPLES)


@pytest.mark.parametrize(
    ("file", "params"),
    [
        ("compare.yaml", "params.yaml"),
        ("examples/compare/alpaca.yaml", "params.yaml"),
        ("examples/compare/paper.yaml", "examples/paper.yaml"),
    ],
)
def test_an_example_of_a_comparison_is_valid(file: str, params: str) -> None:
    comparison = read_comparison(PROJECT / file)
    cells = make_cells(comparison, read_params(PROJECT / params), file)
    assert len(cells) == len(comparison.arms) * len(comparison.seeds) * len(comparison.noise)
    for cell in cells:
        assert cell.settings.finetune.planned_iterations == len(cell.settings.iterations)
