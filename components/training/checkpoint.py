"""From Trainer's checkpoint to the outputs of the stage: a plain Hugging Face folder, and the trainer state.

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
NAMED_TEMPLATES = "additional_chat_templates"  # folder that transformers keeps all but the default in
# not part of the trainer state: the model, files that contain paths, DeepSpeed's scripts, and the mark of completeness
NOT_STATE = (*MODEL_FILES, "adapter_config.json", "training_args.bin", "*.py", COMPLETE)


def build_model(checkpoint: Path, parent: Path, folder: Path, *, lora: bool) -> None:
    """Write the checkpoint's model to `folder`, with the tokenizer and chat template of `parent`.

    With `lora` the adapter is merged into the base model's weights. Raises UserError, with the tensor's name, for
    weights that are not those of the parent's architecture.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in sorted(parent.iterdir()):
        if file.is_file() and file.name != "README.md" and not _matches(file, MODEL_FILES):
            shutil.copyfile(file, folder / file.name)
        elif file.name == NAMED_TEMPLATES:
            shutil.copytree(file, folder / file.name, copy_function=shutil.copyfile)
    if lora:
        merge_adapter(checkpoint, folder)
    else:
        for file in sorted(checkpoint.iterdir()):
            if _matches(file, MODEL_FILES):
                link_or_copy(file, folder / file.name)
    check_tensors(folder, parent)


def build_trainer_state(checkpoint: Path, folder: Path) -> None:
    """Write the optimizer, schedule and random state to `folder`, the same after any number of interruptions."""
    shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns(*NOT_STATE)
    shutil.copytree(checkpoint, folder, ignore=ignored, copy_function=link_or_copy)
    # these depend on the interruptions, and the training does not depend on them
    state = read_json(checkpoint / "trainer_state.json")
    state |= {"log_history": [], "epoch": None, "save_steps": 0, "total_flos": 0, "num_train_epochs": 0}
    write_json(folder / "trainer_state.json", state)


def make_readable(folder: Path) -> None:
    """Give every file and folder the usual permissions; safetensors makes its files readable by their owner only."""
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _matches(file: Path, patterns: Sequence[str]) -> bool:
    return any(file.match(pattern) for pattern in patterns)


def check_tensors(model: Path, parent: Path) -> None:
    """Raises UserError for the first tensor that is missing, has another shape than in `parent`, or is not in `parent`.

    A sharded training that saves before its weights are gathered leaves empty ones.
    """
    expected, saved = tensor_shapes(parent), tensor_shapes(model)
    for name in sorted({*expected, *saved}):
        if saved.get(name) == expected.get(name):
            continue
        if name not in saved:
            problem = "is missing"
        elif name not in expected:
            problem = f"has no counterpart in {parent}"
        else:
            problem = f"has shape {saved[name]} instead of {expected[name]}"
        raise UserError(f"finetune: the saved weights are not complete: {name} {problem}; see finetune.deepspeed")


def tensor_shapes(folder: Path) -> Mapping[str, list[int]]:
    """Name -> shape of every tensor in the safetensors files of a model folder."""
    from safetensors import safe_open

    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    return shapes


def model_card(iteration: str, parent: str, subset: Path, records: int, steps: Sequence[Step]) -> str:
    """The README.md of the checkpoint, in the format of the Hugging Face hub."""
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
