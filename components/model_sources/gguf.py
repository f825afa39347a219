"""Base models of kind `gguf`, and of wheels: a GGUF file, dequantized to float32 by transformers."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.core.errors import UserError, first_line
from components.model.weights import check_model, check_report, own_attention


def load_gguf(file: Path, scratch: Path, *, name: str) -> tuple[Any, Any]:
    """The model in float32, and the tokenizer; error messages call the file `name`. Raises UserError.

    `scratch` is a folder for a temporary copy of the weights.
    """
    from transformers import PreTrainedTokenizerFast

    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise UserError(f"{name}: not a GGUF file")
    try:
        # AutoTokenizer would parse the file once more to learn the tokenizer's class, which is the same for all GGUF
        tokenizer = PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name)
        loaded, report = _dequantize(copy_without_vocabulary(file, scratch / "weights.gguf"))
    except Exception as error:  # a file of somebody else fails anywhere in gguf, tokenizers and transformers
        raise UserError(f"{name}: not a GGUF model that transformers can read: {first_line(error)}") from error
    check_report(report, name=name)
    check_model(loaded, name=name)
    return _without_origin(loaded), tokenizer


def _dequantize(weights: Path) -> tuple[Any, Any]:
    """The model in float32, and transformers' loading report; `weights` is removed."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    with _cached_name_table():
        model, report = AutoModelForCausalLM.from_pretrained(
            weights.parent,
            gguf_file=weights.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            trust_remote_code=False,
        )
    weights.unlink()
    return model, report


@contextmanager
def _cached_name_table() -> Iterator[None]:
    """Cache gguf's table of tensor names in the block; transformers builds the same table for each of its modules."""
    import gguf

    name_table = gguf.get_tensor_name_map
    gguf.get_tensor_name_map = functools.cache(name_table)
    try:
        yield
    finally:
        gguf.get_tensor_name_map = name_table


def _without_origin(loaded: Any) -> Any:
    """A new model with the same weights: transformers refuses to save one that was loaded from GGUF."""
    import torch
    from transformers import AutoModelForCausalLM

    config = loaded.config
    for attribute in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, attribute):
            delattr(config, attribute)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=own_attention(config), trust_remote_code=False
        )
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    return model


def copy_without_vocabulary(file: Path, copy: Path) -> Path:
    """Write `copy`: the GGUF file without its lists of tokens and merges.

    transformers parses each entry of these lists with numpy, once for the configuration and once for the weights.
    """
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    reader = GGUFReader(file)
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(copy, architecture)
    for key, field in reader.fields.items():
        kind, *item_kinds = field.types
        is_list = kind == GGUFValueType.ARRAY
        if key.startswith("GGUF.") or key == "general.architecture" or (is_list and key.startswith("tokenizer.")):
            continue  # the writer adds the first two itself
        writer.add_key_value(key, field.contents(), kind, item_kinds[-1] if is_list else None)
    if f"{architecture}.vocab_size" not in reader.fields:
        writer.add_vocab_size(len(reader.fields["tokenizer.ggml.tokens"].data))
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return copy
