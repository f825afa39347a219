"""From Trainer's checkpoint to the stage's outputs: every tensor is checked, and a killed publish can be repeated."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from components import finetune
from components.core.errors import UserError
from components.core.files import publish_folder, write_json
from components.core.settings.finetune import FinetuneSettings
from components.data.records import write_records
from components.provenance.digests import digest_of
from components.training.checkpoint import build_model, check_tensors
from components.training.resume import Step, append_step, mark_complete
from tests.support.records import numbered

NAME = "model.layers.1.mlp.up_proj.weight"


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_checkpoint_with_the_parent_s_tensors_passes(small_model: Path, tmp_path: Path) -> None:
    shutil.copytree(small_model, tmp_path / "model")
    edit_weights(tmp_path / "model", lambda weights: weights.update({NAME: weights[NAME] + 1}))
    check_tensors(tmp_path / "model", small_model)


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        (NAME, lambda weights: weights.pop(NAME), "is missing"),
        (NAME, lambda weights: weights.update({NAME: torch.empty(0)}), r"has shape \[0\] instead of \[128, 64\]"),
        ("extra.bias", lambda weights: weights.update({"extra.bias": torch.zeros(3)}), "has no counterpart in .*"),
    ],
    ids=["missing", "empty", "extra"],
)
def test_a_tensor_that_differs_from_the_parent_s_is_named_in_one_line(
    small_model: Path,
    tmp_path: Path,
    name: str,
    change: Callable[[dict[str, torch.Tensor]], object],
    problem: str,
) -> None:
    shutil.copytree(small_model, tmp_path / "model")
    edit_weights(tmp_path / "model", change)
    with pytest.raises(UserError, match=f"^finetune: .*: {name} {problem}; see finetune.deepspeed$") as raised:
        check_tensors(tmp_path / "model", small_model)
    assert "\n" not in str(raised.value)


# --- publishing -------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The scratch folder of a training of two steps that is ready to be published, in a new current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_model, "models/base")
    write_json(Path("state/base/progress.json"), {"step": 0, "steps_per_iteration": None})
    write_records(Path("subset.parquet"), numbered(3))
    scratch = Path("scratch")
    checkpoint = scratch / "checkpoint-2"
    shutil.copytree(small_model, checkpoint)
    edit_weights(checkpoint, lambda weights: weights.update({NAME: weights[NAME] + 1}))
    torch.save({"moments": torch.ones(4)}, checkpoint / "optimizer.pt")
    write_json(checkpoint / "trainer_state.json", {"global_step": 2, "log_history": [{"loss": 1.0}], "save_steps": 7})
    for number in (1, 2):
        append_step(scratch, Step(number, 2.0 / number, 1e-3, 1.0, tokens_per_second=50.0, seconds=0.5))
    mark_complete(checkpoint, 2)
    report = {"records": 3, "tokens": 50, "operations": 10, "gemm": 100.0, "peak_memory_bytes": 1}
    write_json(scratch / finetune.TRAINED, {**report, "peak_gpu_memory_bytes": None})
    return scratch


def options_for(outputs: Path) -> argparse.Namespace:
    return argparse.Namespace(
        iteration="1",
        subset=Path("subset.parquet"),
        parent_model=Path("models/base"),
        parent_state=Path("state/base"),
        model=outputs / "model",
        state=outputs / "state",
        steps=outputs / "steps.csv",
        metrics=outputs / "metrics.json",
    )


@pytest.mark.parametrize("keep_states", ["newest", "all"])
def test_a_publish_that_was_killed_can_be_repeated_and_gives_the_same_outputs(
    trained: Path, monkeypatch: pytest.MonkeyPatch, keep_states: str
) -> None:
    settings = FinetuneSettings(keep_states=keep_states)
    shutil.copytree(trained, "undisturbed")
    finetune.publish(options_for(Path("expected")), settings, Path("undisturbed"))
    before = digest_of(trained / "checkpoint-2")

    def killed_before_the_model(folder: Path, target: Path) -> None:
        if target == Path("outputs/model"):
            raise KeyboardInterrupt
        publish_folder(folder, target)

    with monkeypatch.context() as patched:
        patched.setattr(finetune, "publish_folder", killed_before_the_model)
        with pytest.raises(KeyboardInterrupt):
            finetune.publish(options_for(Path("outputs")), settings, trained)
    assert not Path("outputs/model").exists()
    assert digest_of(trained / "checkpoint-2") == before
    finetune.publish(options_for(Path("outputs")), settings, trained)
    assert {path.name: digest_of(path) for path in Path("outputs").iterdir()} == {
        path.name: digest_of(path) for path in Path("expected").iterdir()
    }
    assert {path.name for path in Path("outputs").iterdir()} == {"model", "state", "steps.csv", "metrics.json"}


def test_the_trainer_state_holds_nothing_that_depends_on_interruptions(trained: Path) -> None:
    finetune.publish(options_for(Path("outputs")), FinetuneSettings(keep_states="all"), trained)
    state = Path("outputs/state")
    assert {path.name for path in state.iterdir()} >= {"progress.json", "optimizer.pt", "trainer_state.json"}
    assert not {path.name for path in state.iterdir()} & {"model.safetensors", "config.json", "complete.json"}
    kept = json.loads((state / "trainer_state.json").read_text(encoding="utf-8"))
    assert (kept["global_step"], kept["log_history"], kept["save_steps"]) == (2, [], 0)


def test_a_checkpoint_keeps_the_named_templates_of_its_parent(small_model: Path, tmp_path: Path) -> None:
    parent = Path(shutil.copytree(small_model, tmp_path / "parent"))
    (parent / "additional_chat_templates").mkdir()
    (parent / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages[0].content }}")
    build_model(small_model, parent, tmp_path / "model", lora=False)
    kept = tmp_path / "model" / "additional_chat_templates" / "tool_use.jinja"
    assert kept.read_text() == "{{ messages[0].content }}"
