"""LoRA adapters (arXiv 2106.09685), by peft: trained instead of the model's weights, and merged into a checkpoint.

A checkpoint stays a plain Hugging Face folder, with the merged weights; its folder `adapter/` holds the adapter. The
next iteration trains that adapter further, over the weights of the base model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.core.errors import UserError
from components.core.files import link_or_copy
from components.core.paths import PARAMS
from components.core.settings.finetune import LoraSettings

ADAPTER = "adapter"  # folder in a checkpoint
FILES = ("adapter_model.safetensors", "adapter_config.json")


def load_with_adapter(parent: Path, settings: LoraSettings, dtype: str) -> tuple[Any, Any]:
    """The model with an adapter to train (the parent's, or a new one over a base model), and the tokenizer.

    Raises UserError for modules in finetune.lora.targets that the model does not have.
    """
    import peft

    from components.model.load import load_model

    adapter = parent / ADAPTER
    if adapter.is_dir():
        model, tokenizer = load_model(_base_of(adapter), dtype)
        return peft.PeftModel.from_pretrained(model, str(adapter), is_trainable=True), tokenizer
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
        raise UserError(f"{PARAMS}: finetune.lora.targets: {settings.targets}: {str(error)[:200]}") from error


def merge_adapter(checkpoint: Path, folder: Path) -> None:
    """Write the adapter of Trainer's checkpoint to `folder`/adapter, and the merged weights to `folder`."""
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
    """The base model's folder, relative to the project."""
    import peft

    return Path(str(peft.PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path))
