"""Base models of kind `folder`: a Hugging Face model folder with safetensors weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.core.errors import UserError, first_line
from components.model.weights import check_folder, check_model, load_weights


def load_folder(folder: Path, *, name: str) -> tuple[Any, Any]:
    """The model, in the dtype its weights are stored in, and the tokenizer; error messages call the folder `name`.

    Raises UserError for weights that are pickled, quantized, missing, damaged or of another configuration, and for an
    unknown architecture.
    """
    check_folder(folder, name=name)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain Exception
        problem = f"its tokenizer cannot be loaded: {first_line(error)}"
        raise UserError(f"{name}: not a causal language model that transformers can load: {problem}") from error
    model = load_weights(folder, name=name, dtype="auto")
    check_model(model, name=name)
    return model, tokenizer
