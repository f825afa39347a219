"""params.yaml: every mistake is one line that names the key and what would be right."""

from __future__ import annotations

import copy
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.core.errors import UserError
from components.core.params import check_settings, load_settings, read_params

PROJECT = Path(__file__).parents[2]


def aim(params: dict[str, Any]) -> None:
    """Add a source with examples of what the model is for."""
    params["ingest"]["files"]["aim"] = {"path": "x", "target": True}


@pytest.fixture
def params() -> dict[str, Any]:
    return copy.deepcopy(read_params(PROJECT / "params.yaml"))


def test_the_default_parameters_are_valid() -> None:
    settings = load_settings(PROJECT / "params.yaml")
    assert list(settings.iterations) == ["1", "2", "3"]
    assert settings.finetune.planned_iterations == len(settings.iterations)


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (
            lambda p: p["select"].update(ratio=1.5),
            "params.yaml: select.ratio: 1.5 is neither a share (0 to 1] nor a whole number of records",
        ),
        (lambda p: p["select"].update(ratio="x"), "params.yaml: select.ratio: 'x': input should be a valid number"),
        (
            lambda p: p["select"].update(ration=0.1),
            "params.yaml: select.ration: unknown key; known here: strategy, ratio, update_ratio, "
            "max_complexity_quantile, diversity_decay, tokens, quotas, seed, perplexity_range, max_similarity",
        ),
        (
            lambda p: p["base_model"].update(kind="pickle"),
            "params.yaml: base_model.kind: 'pickle' is none of 'wheel', 'gguf', 'folder', 'hub'",
        ),
        (lambda p: p["base_model"].pop("sha256"), "params.yaml: base_model.sha256: missing"),
        (
            lambda p: p["iterations"].update({4: {"parent": "3"}}),
            "params.yaml: iterations: key 4 must be quoted: '4'",
        ),
        (
            lambda p: p["iterations"].update({"4": {"parent": "2"}}),
            "params.yaml: iterations: 4.parent is '2'; the chain needs '3' there",
        ),
        (
            lambda p: p["iterations"].pop("2"),
            "params.yaml: iterations: iteration '3' stands where '2' is expected; keys count up from '1'",
        ),
        (
            lambda p: p["ingest"]["files"].update(stdlib={"path": "x"}),
            "params.yaml: ingest: source name 'stdlib' is used twice; source names must be unique",
        ),
        (
            lambda p: p["ingest"]["files"].update({"a b": {"path": "x"}}),
            "params.yaml: ingest.files.a b: a name is made of letters, digits, - and _, "
            "and begins with a letter or digit",
        ),
        (
            lambda p: p["finetune"].update(batch_size=7),
            "params.yaml: finetune: batch_size 7 is not a multiple of processes x micro_batch_size (1 x 4)",
        ),
        (lambda p: p.pop("score"), "params.yaml: score: missing"),
        (
            lambda p: p["ingest"].update(docstrings={}, files={"aim": {"path": "x", "target": True}}),
            "params.yaml: ingest: every source has target: true, and none is left to train on; name another source",
        ),
        (
            lambda p: p["select"].update(strategy="rds+"),
            "params.yaml: select.strategy: rds+ chooses what is like the examples of a target, and no source under "
            "ingest has target: true (docs/data.md)",
        ),
        (
            lambda p: [aim(p), p["select"].update(strategy="rds+")],
            "params.yaml: score.measure: complexity: select.strategy rds+ needs score.measure: embedding",
        ),
        (
            lambda p: [
                aim(p),
                p["select"].update(strategy="rds+"),
                p["score"].update(measure="embedding", model="none"),
            ],
            "params.yaml: score.model: none: score.measure: embedding needs a model, such as score.model: base",
        ),
        (
            lambda p: [aim(p), p["score"].update(measure="embedding")],
            "params.yaml: score.measure: embedding: select.strategy iterit, or select.max_complexity_quantile, needs a "
            "complexity: score.measure: complexity",
        ),
        (
            lambda p: [p["select"].update(strategy="random"), p["score"].update(measure="embedding")],
            "params.yaml: score.measure: embedding: no source under ingest has target: true (docs/data.md)",
        ),
    ],
)
def test_a_mistake_is_one_line_with_its_key(params: dict[str, Any], edit: Callable[[Any], Any], line: str) -> None:
    edit(params)
    with pytest.raises(UserError) as error:
        check_settings(params)
    assert str(error.value) == line


def test_every_mistake_gets_its_line(params: dict[str, Any]) -> None:
    params["select"]["ratio"] = -1
    params["finetune"]["seed"] = "x"
    with pytest.raises(UserError) as error:
        check_settings(params)
    assert [line.split(": ")[1] for line in str(error.value).splitlines()] == ["select.ratio", "finetune.seed"]


def test_a_yaml_mistake_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("select:\n  ratio: [0.1\nscore: {}\n")
    with pytest.raises(UserError, match=r"params\.yaml: line 3: not valid YAML"):
        load_settings(file)


@pytest.mark.parametrize(
    ("ratio", "size", "k"), [(0.1, 320, 32), (0.05, 1000, 50), (1, 7, 7), (1.0, 7, 7), (40, 1000, 40), (0.1, 9, 0)]
)
def test_the_budget_is_exact(params: dict[str, Any], ratio: float, size: int, k: int) -> None:
    params["select"]["ratio"] = ratio
    assert check_settings(params).select.records_per_iteration(size) == k


def test_the_page_of_parameters_is_made_of_the_settings_and_the_pipeline() -> None:
    page = runpy.run_path(str(PROJECT / "docs" / "parameters.py"))["parameter_page"]()
    assert page == (PROJECT / "docs" / "parameters.md").read_text(encoding="utf-8"), (
        "python docs/parameters.py mends it"
    )
