"""LoRA adapters (arXiv 2106.09685) through peft: trained in place of the model's weights, and merged into a copy.

A checkpoint stays a plain Hugging Face folder that anything opens; the adapter that made it lies in `adapter/` inside.
Training goes on with that adapter over the base model's own weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.core.errors import UserError
from components.core.files import link_or_copy
from components.core.settings.finetune import LoraSettings

ADAPTER = "adapter"  # folder inside a checkpoint


FILES = ("adapter_model.safetensors", "adapter_config.json")


def load_with_adapter(parent: Path, settings: LoraSettings, dtype: str) -> tuple[Any, Any]:
    """The model with an adapter to train (a new one over the base model, or the parent's), and the tokenizer."""
    import peft

    from components.model.load import load_model

    if not (parent / ADAPTER).is_dir():
        model, tokenizer = load_model(parent, dtype)
        config = peft.LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=settings.targets if settings.targets == "all-linear" else settings.targets.split(","),
            task_type="CAUSAL_LM",
            base_model_name_or_path=parent.as_posix(),
        )
        try:
            return peft.get_peft_model(model, config), tokenizer
        except ValueError as error:
            raise UserError(f"params.yaml: finetune.lora.targets: {settings.targets}: {str(error)[:200]}") from error
    base = _base_of(parent / ADAPTER)
    model, tokenizer = load_model(base, dtype)
    return peft.PeftModel.from_pretrained(model, str(parent / ADAPTER), is_trainable=True), tokenizer


def merge_adapter(checkpoint: Path, folder: Path) -> None:
    """Copy the adapter of Trainer's checkpoint to `folder`/adapter, and write the merged weights to `folder`."""
    import peft

    from components.model.load import load_model

    adapter = folder / ADAPTER
    adapter.mkdir(parents=True)
    for name in FILES:
        link_or_copy(checkpoint / name, adapter / name)
    model, _ = load_model(_base_of(adapter), "float32")
    merged = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.save_pretrained(folder)


def _base_of(adapter: Path) -> Path:
    import peft

    return Path(str(peft.PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path))
