"""From Trainer's checkpoint to what the stage writes: a plain Hugging Face folder and the next iteration's state.

Files are linked or copied, never moved: a stage that is killed while it publishes finds Trainer's checkpoint as it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from components.core.errors import UserError
from components.core.files import link_or_copy, read_json, write_json
from components.provenance.digests import file_digest
from components.training.lora import merge_adapter
from components.training.resume import COMPLETE, Step

MODEL_FILES = ("*.safetensors*", "config.json", "generation_config.json")
# no trainer state: the model's files, what names paths, DeepSpeed's scripts, and our mark
NOT_STATE = (*MODEL_FILES, "adapter_config.json", "training_args.bin", "*.py", COMPLETE)


def build_model(checkpoint: Path, parent: Path, folder: Path, *, lora: bool) -> None:
    """Make `folder` the checkpoint's model, with the tokenizer and chat template of `parent`.

    With `lora` the adapter is merged into the base model's weights. Raises UserError for weights that are not complete.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in sorted(parent.iterdir()):
        if file.is_file() and file.name != "README.md" and not _matches(file, MODEL_FILES):
            shutil.copyfile(file, folder / file.name)
    if lora:
        merge_adapter(checkpoint, folder)
    else:
        for file in sorted(checkpoint.iterdir()):
            if _matches(file, MODEL_FILES):
                link_or_copy(file, folder / file.name)
    _check_tensors(folder, parent)


def build_trainer_state(checkpoint: Path, folder: Path) -> None:
    """Make `folder` the optimizer, schedule and random state, the same however often the training was interrupted."""
    shutil.rmtree(folder, ignore_errors=True)
    unwanted = shutil.ignore_patterns(*NOT_STATE)
    shutil.copytree(checkpoint, folder, ignore=unwanted, copy_function=link_or_copy)
    # these tell how often the stage was interrupted; a training does not depend on them
    kept = read_json(checkpoint / "trainer_state.json")
    kept |= {"log_history": [], "epoch": None, "save_steps": 0, "total_flos": 0, "num_train_epochs": 0}
    write_json(folder / "trainer_state.json", kept)


def make_readable(folder: Path) -> None:
    """Give every file and folder the usual permissions; safetensors makes its files private."""
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _matches(file: Path, patterns: Sequence[str]) -> bool:
    return any(file.match(pattern) for pattern in patterns)


def _check_tensors(model: Path, parent: Path) -> None:
    """Every tensor of the parent is there in its shape: a sharded training that saves too early leaves empty ones."""
    expected, saved = tensor_shapes(parent), tensor_shapes(model)
    for name in sorted({*expected, *saved}):
        if saved.get(name) != expected.get(name):
            raise UserError(
                f"finetune: the saved weights are not complete: {name} has shape {saved.get(name, 'none')}, "
                f"{expected.get(name, 'none')} was expected; see finetune.deepspeed"
            )


def tensor_shapes(folder: Path) -> Mapping[str, list[int]]:
    """Name -> shape of every tensor in the safetensors files of a model folder."""
    from safetensors import safe_open

    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    return shapes


def model_card(iteration: str, parent: str, subset: Path, records: int, steps: Sequence[Step]) -> str:
    """The README.md of the checkpoint, in the form that the Hugging Face hub reads."""
    return f"""---
library_name: transformers
tags: [iterit]
---

# Checkpoint of iteration {iteration}

Trained by iterit on {records} records in {len(steps)} optimizer steps, going on from
`{parent}`. Loss of the first step {steps[0].loss:.4f}, of the last {steps[-1].loss:.4f}.

| what | SHA-256 |
| --- | --- |
| subset (Parquet) | `{file_digest(subset)}` |

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("models/{iteration}")
tokenizer = AutoTokenizer.from_pretrained("models/{iteration}")
```
"""
