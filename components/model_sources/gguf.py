"""A GGUF file, dequantized to float32 by transformers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from components.core.errors import UserError, first_line


def load_gguf(file: Path, scratch: Path, *, name: str) -> tuple[Any, Any]:
    """The model in float32 and the tokenizer of a GGUF file; `name` is what messages call it."""
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedTokenizerFast

    with file.open("rb") as start:
        if start.read(4) != b"GGUF":
            raise UserError(f"{name}: not a GGUF file")
    # transformers asks for the same table of names for each module of the model: 397 times, 3 s
    name_table = gguf.get_tensor_name_map
    gguf.get_tensor_name_map = functools.cache(name_table)
    try:
        # AutoTokenizer would parse the whole file once more to learn a class that GGUF tokenizers do not have
        tokenizer = PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name)
        weights = copy_without_vocabulary(file, scratch / "weights.gguf")
        loaded = AutoModelForCausalLM.from_pretrained(
            weights.parent,
            gguf_file=weights.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,
        )
        weights.unlink()
    # NotImplementedError: gguf's word for a quantization that it cannot undo
    except (OSError, ValueError, KeyError, IndexError, NotImplementedError) as error:
        raise UserError(f"{name}: not a GGUF model that transformers can read: {first_line(error)}") from error
    finally:
        gguf.get_tensor_name_map = name_table
    # a model that came from GGUF refuses to be saved; one without weights of its own that takes them over does not
    config = loaded.config
    for attribute in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, attribute):
            delattr(config, attribute)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    return model, tokenizer


def copy_without_vocabulary(file: Path, copy: Path) -> Path:
    """The GGUF file without its lists of tokens and merges.

    transformers parses every list entry with numpy, once for the configuration and once for the weights: 3 s each for
    a vocabulary of 49,152, against 0.1 s for this copy.
    """
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    reader = GGUFReader(file)
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(copy, architecture)
    for key, field in reader.fields.items():
        kind, *item_kinds = field.types
        is_list = kind == GGUFValueType.ARRAY
        if key.startswith("GGUF.") or key == "general.architecture" or (is_list and key.startswith("tokenizer.")):
            continue  # the writer puts the first two there itself
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
