"""Opens a model folder that nobody vouches for: its own safetensors alone, which must fit its configuration.

What can be checked without building a model is checked first: config.json, the names in an index, and the headers of
the weights. The model is then built from a configuration whose attention is ours, because its own may name kernels to
download; a tensor that is missing, unexpected or of another shape ends the load.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from components.core.errors import UserError, first_line

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
LARGEST_CONFIG = 2**24  # bytes
PLAIN_NAME = re.compile(r"[^/\\\x00]+\.safetensors")
LAYERS = frozenset({"num_hidden_layers", "num_layers", "n_layer", "n_layers"})
SIZES = LAYERS | {
    *("hidden_size", "n_embd", "d_model", "intermediate_size", "vocab_size", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads"),
    *("num_experts", "num_local_experts"),
}


def load_weights(folder: Path, *, name: str, dtype: Any) -> Any:
    """The causal language model of a folder, on the CPU; `dtype` is torch's, or `auto` for the stored one.

    Raises UserError that begins with `name` for files that are missing, damaged or not safetensors of this folder, for
    an architecture that transformers does not have, and for weights that do not fit the configuration.
    """
    check_folder(folder, name=name)
    from transformers import AutoConfig, AutoModelForCausalLM

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(str(folder), **local)
        model, report = AutoModelForCausalLM.from_pretrained(
            str(folder),
            config=config,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation=own_attention(config),
            ignore_mismatched_sizes=True,  # so that the report has them by name
            output_loading_info=True,
            **local,
        )
    except Exception as error:  # a configuration of somebody else fails anywhere in transformers
        raise UserError(
            f"{name}: not a causal language model that transformers can load: {first_line(error)}"
        ) from error
    check_report(report, name=name)
    return model


def own_attention(config: Any) -> str:
    """The attention to compute with, in place of what the configuration asks for: sdpa where the model has it."""
    from transformers import AutoModelForCausalLM

    config._attn_implementation = config._experts_implementation = None  # of the parts, too
    architecture = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if isinstance(architecture, tuple):
        architecture = architecture[0]
    return "sdpa" if getattr(architecture, "_supports_sdpa", False) else "eager"


def check_report(report: Mapping[str, Any], *, name: str) -> None:
    """Raises UserError for the first tensor of transformers' loading report that does not fit."""
    for kind, problem in (
        ("missing_keys", "is missing"),
        ("unexpected_keys", "has no place in the architecture that config.json names"),
        ("mismatched_keys", "has another shape than config.json asks for"),
    ):
        tensors = sorted(tensor if isinstance(tensor, str) else tensor[0] for tensor in report.get(kind) or ())
        if tensors:
            more = f" ({len(tensors)} tensors in all)" if len(tensors) > 1 else ""
            raise UserError(f"{name}: the weights do not fit config.json: {tensors[0]} {problem}{more}")
    if report.get("error_msgs"):
        raise UserError(f"{name}: the weights do not fit config.json: {report['error_msgs'][0]}")


def check_folder(folder: Path, *, name: str) -> None:
    """Check what can be checked without building a model. Raises UserError that begins with `name`."""
    config = read_json_object(folder / CONFIG, name=name)
    if "quantization_config" in config:
        raise UserError(f"{name}: its weights are quantized and cannot be trained; name the unquantized model")
    if "transformers_weights" in config:
        raise UserError(f"{name}: {CONFIG}: transformers_weights: not followed; weights are read from {WEIGHTS}")
    for file in ("tokenizer_config.json", "generation_config.json"):
        if (folder / file).exists():
            read_json_object(folder / file, name=name)
    adapter = next(
        (file for file in ("adapter_config.json", "adapter_model.safetensors") if (folder / file).exists()), ""
    )
    if adapter:
        raise UserError(f"{name}: {adapter} beside the weights: merge the adapter into them, or take it away")
    shapes = read_shapes(folder, name=name)
    check_sizes(config, shapes, name=name)


def read_json_object(file: Path, *, name: str) -> dict[str, Any]:
    """The JSON object in a model folder's file. Raises UserError for anything else."""
    if not file.is_file():
        raise UserError(f"{name}: not a Hugging Face model folder: no {file.name} in it")
    if file.stat().st_size > LARGEST_CONFIG:
        raise UserError(f"{name}: {file.name}: more than {LARGEST_CONFIG:,} bytes")
    try:
        value = json.loads(file.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: {file.name}: not UTF-8 text (byte {error.start})") from error
    except RecursionError:
        raise UserError(f"{name}: {file.name}: nested too deeply") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{name}: {file.name}: not JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise UserError(f"{name}: {file.name}: holds a {type(value).__name__}, expected an object")
    return value


def weight_files(folder: Path, *, name: str) -> list[Path]:
    """The safetensors files of a model folder; those that an index names lie in the folder itself."""
    names = {WEIGHTS}
    if (folder / INDEX).exists():
        weight_map = read_json_object(folder / INDEX, name=name).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{name}: {INDEX}: no weight_map in it, which says where each tensor is")
        listed = list(weight_map.values())
        wrong = [file for file in listed if not isinstance(file, str) or not PLAIN_NAME.fullmatch(file)]
        if wrong:
            problem = "is not followed: weights are *.safetensors of the same folder"
            raise UserError(f"{name}: {INDEX}: {str(wrong[0])[:200]!r} {problem}")
        names = {*listed, *({WEIGHTS} if (folder / WEIGHTS).exists() else ())}
    missing = sorted(file for file in names if not (folder / file).is_file())
    if not missing:
        return [folder / file for file in sorted(names)]
    if names != {WEIGHTS}:
        raise UserError(f"{name}: {missing[0]}, which {INDEX} names, is not there")
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    problem = f"{pickles[0]} is pickle, which can run code and is never loaded" if pickles else "no weights in it"
    raise UserError(f"{name}: {problem}; safetensors weights are needed ({WEIGHTS}, or {INDEX})")


def read_shapes(folder: Path, *, name: str) -> dict[str, list[int]]:
    """Tensor name -> shape, from the headers. Raises UserError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, list[int]] = {}
    for file in weight_files(folder, name=name):
        try:
            with safe_open(file, "np") as weights:
                shapes |= {tensor: weights.get_slice(tensor).get_shape() for tensor in weights.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            problem = f"{file.name}: {first_line(error)}"
            raise UserError(f"{name}: not a causal language model that transformers can load: {problem}") from error
    if not shapes:
        raise UserError(f"{name}: no tensor in its weights")
    return shapes


def check_sizes(config: dict[str, Any], shapes: Mapping[str, list[int]], *, name: str) -> None:
    """Raises UserError for a size in the configuration that the weights cannot have.

    A model of a million layers would take hours to build before its missing tensors are noticed.
    """
    widest = max([1, *(size for shape in shapes.values() for size in shape)])
    for key, value in _sizes(config):
        last = key.rpartition(".")[2]
        limit, of_what = (
            (len(shapes), "tensors are") if last in LAYERS else (widest, "numbers wide is the widest tensor")
        )
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{name}: {CONFIG}: {key}: {str(value)[:80]!r}, expected a whole number of at least 1")
        if value > limit:
            raise UserError(
                f"{name}: {CONFIG}: {key}: {str(value)[:80]} does not fit the weights: {limit} {of_what} stored"
            )


def _sizes(config: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every size in a configuration and its parts."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _sizes(value, f"{before}{key}.")
        elif key in SIZES and value is not None and not isinstance(value, list):
            yield f"{before}{key}", value


def check_model(model: Any, *, name: str) -> None:
    """Raises UserError for weights that are not finite, and for a model that is not causal."""
    import torch

    for tensor, values in model.state_dict().items():
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            raise UserError(f"{name}: {tensor} holds numbers that are not finite; the weights are damaged")
    last = model.get_input_embeddings().num_embeddings - 1
    rows = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, last, last - 1, last - 2]], device=model.device).clamp(max=last)
    try:
        with torch.inference_mode():
            logits = model.eval()(input_ids=rows, use_cache=False).logits[:, :3]
    except Exception as error:  # a configuration of somebody else fails anywhere in transformers
        raise UserError(f"{name}: a model that cannot be computed: {first_line(error)}") from error
    if not bool(torch.isfinite(logits).all()):
        raise UserError(f"{name}: a model whose logits are not finite; a number in {CONFIG} may be out of range")
    tolerance = (1e-4 if logits.dtype == torch.float32 else 2e-2) * float(logits.abs().max())
    if not torch.allclose(logits[0].float(), logits[1].float(), rtol=0, atol=tolerance):
        raise UserError(f"{name}: not a causal language model: a token's logits depend on the tokens after it")
