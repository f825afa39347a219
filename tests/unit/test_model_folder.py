"""A model folder of somebody else: nothing outside it is followed, and what does not fit is one line, soon."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.core.errors import UserError
from components.model_sources.folder import load_folder

Edit = Callable[[Path], object]


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


@pytest.fixture
def model(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(small_model, "model"))


def config(**changes: Any) -> Edit:
    def edit(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**values, **changes}))

    return edit


def written(name: str, content: bytes) -> Edit:
    return lambda folder: (folder / name).write_bytes(content)


def index(*files: Any) -> Edit:
    """The weights are moved to another name, and an index names `files` for them."""

    def edit(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        tensors = load_file(folder / "part.safetensors")
        weight_map = {tensor: files[number % len(files)] for number, tensor in enumerate(sorted(tensors))}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return edit


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Edit:
    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return edit


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (index("evil.bin"), "'evil.bin' is not followed"),
        (index("part.safetensors", "../outside.safetensors"), "'../outside.safetensors' is not followed"),
        (index("part.safetensors", "sub/x.safetensors"), "'sub/x.safetensors' is not followed"),
        (index("part.safetensors", 7), "'7' is not followed"),
        (index("absent.safetensors"), "absent.safetensors, which model.safetensors.index.json names, is not there"),
        (written("model.safetensors.index.json", b"[]"), "model.safetensors.index.json: holds a list"),
        (config(transformers_weights="../outside.safetensors"), "transformers_weights: not followed"),
        (written("adapter_config.json", b"{}"), "adapter_config.json beside the weights"),
        (written("adapter_model.safetensors", b""), "adapter_model.safetensors beside the weights"),
        (written("config.json", b"[]"), "config.json: holds a list, expected an object"),
        (written("config.json", b"{"), "config.json: not JSON"),
        (written("config.json", b'{"a": "\xff"}'), r"config.json: not UTF-8 text \(byte 7\)"),
        (written("config.json", b'{"a":' * 100_000), "config.json: nested too deeply"),
        (written("config.json", b"{}"), "not a causal language model"),
        (written("tokenizer_config.json", b"[]"), "tokenizer_config.json: holds a list"),
        (written("tokenizer.json", b"{}"), "its tokenizer cannot be loaded"),
        (config(model_type="bert"), "do not fit|not a causal language model"),
        (config(model_type=["llama"]), "not a causal language model"),
        (config(hidden_size=0), "config.json: hidden_size: '0', expected a whole number of at least 1"),
        (config(hidden_size=-1), "config.json: hidden_size: '-1'"),
        (config(vocab_size="big"), "config.json: vocab_size: 'big'"),
        (config(hidden_size=1e9), "config.json: hidden_size: '1000000000.0'"),
        (config(hidden_size=10**12), "hidden_size: 1000000000000 does not fit the weights"),
        (config(num_hidden_layers=10**6), "num_hidden_layers: 1000000 does not fit the weights: 20 tensors are stored"),
        (config(num_hidden_layers=3), "the weights do not fit config.json: model.layers.2.*is missing"),
        (config(num_hidden_layers=1), "the weights do not fit config.json: model.layers.1.*has no place"),
        (config(intermediate_size=32), "do not fit config.json: model.layers.0.mlp.*has another shape"),
        (config(num_attention_heads=3), "do not fit|not a causal language model"),
        (config(hidden_act="unheard"), "not a causal language model"),
        (config(dtype="evil"), "not a causal language model"),
        (config(rms_norm_eps=-100.0), "a model whose logits are not finite"),
        (tensors(lambda weights: weights.pop(NORM)), f"do not fit config.json: {NORM} is missing"),
        (tensors(lambda weights: weights.update(more=torch.ones(1))), "do not fit config.json: more has no place"),
        (tensors(lambda weights: weights[NORM].fill_(math.nan)), f"{NORM} holds numbers that are not finite"),
        (tensors(lambda weights: weights[NORM].fill_(-math.inf)), f"{NORM} holds numbers that are not finite"),
        (tensors(dict.clear), "no tensor in its weights"),
    ],
)
def test_what_does_not_fit_is_one_line_in_ten_seconds(model: Path, edit: Edit, expected: str) -> None:
    Path("outside.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    (model / "evil.bin").write_bytes(pickle.dumps(Bomb()))
    edit(model)
    start = time.monotonic()
    with pytest.raises(UserError, match=expected) as raised:
        load_folder(model, name="given")
    assert time.monotonic() - start < 10
    assert len(str(raised.value).splitlines()) == 1
    assert str(raised.value).startswith("given: ")
    assert not Path("exploded").exists()


def test_weights_in_several_plain_files_are_loaded(model: Path) -> None:
    expected = load_folder(model, name="given")[0].state_dict()
    index("part.safetensors")(model)
    loaded = load_folder(model, name="given")[0].state_dict()
    assert all(torch.equal(loaded[name], values) for name, values in expected.items())


def test_a_configuration_cannot_choose_the_attention(model: Path) -> None:
    for key in ("_attn_implementation", "attn_implementation", "_attn_implementation_internal"):
        config(**{key: "somebody/kernels:attend", "_experts_implementation": "somebody/experts"})(model)
        assert load_folder(model, name="given")[0].config._attn_implementation == "sdpa", key


def test_a_model_that_looks_ahead_is_refused(model: Path) -> None:
    from transformers import BertConfig, BertLMHeadModel

    (model / "model.safetensors").unlink()
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    BertLMHeadModel(BertConfig(vocab_size=600, **small)).save_pretrained(model)
    with pytest.raises(UserError, match=r"given: not a causal language model: .*tokens after it"):
        load_folder(model, name="given")
