"""Base models of kind `folder`: a Hugging Face model folder with safetensors weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.core.errors import UserError, first_line


def load_folder(folder: Path, *, name: str) -> tuple[Any, Any]:
    """The model, in the dtype its weights are stored in, and the tokenizer; error messages call the folder `name`.

    Raises UserError for weights that are pickled, quantized, missing or damaged, and for an unknown architecture.
    """
    from safetensors import SafetensorError

    if not (folder / "config.json").is_file():
        raise UserError(f"{name}: not a Hugging Face model folder: no config.json in it")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        problem = f"{pickles[0]} is pickle, which can run code and is never loaded" if pickles else "no weights in it"
        raise UserError(f"{name}: {problem}; safetensors weights are needed")
    if "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        raise UserError(f"{name}: its weights are quantized and cannot be trained; name the unquantized model")

    from transformers import AutoModelForCausalLM, AutoTokenizer

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True, **local)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{name}: not a causal language model that transformers can load: {first_line(error)}"
        ) from error
    return model, tokenizer
