"""Fine-tuning: iterations in stages are one training, a killed one resumes, and the same inputs give the same files."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from components.data.records import Message, Record, make_record, write_records
from components.model.chat import encode_conditional
from components.training.batches import effective_batches
from components.training.trainer import Schedule
from tests.support.project import (
    SOURCE,
    call,
    edit_params,
    environment,
    finetune_command,
    make_project,
    start,
    wait_for,
)

SYSTEM = "You are a helpful assistant."


def subset(iteration: int, size: int = 10) -> list[Record]:
    """Conversations of one and two turns; the default `size` is not a multiple of the batch size."""
    records = []
    for number in range(size):
        word = f"{'abcdefghij'[number]}{iteration}"
        messages = [Message("user", f"Say {word}."), Message("assistant", f"{word} " * (1 + 3 * number % 11) + "end")]
        if number % 3 == 0:
            messages += [Message("user", "Again."), Message("assistant", word)]
        records.append(make_record("test", messages))
    return records


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """A project with the base model and two trained iterations; tests must not change it."""
    project = make_project(tmp_path_factory.mktemp("finetune"), small_model)
    edit_params(project, {"finetune": {"warmup_ratio": 0.25, "clip_norm": 0.5, "learning_rate": 0.01}})
    outputs = ("--model", "models/base", "--proxy-model", "models/proxy", "--state", "state/base")
    call(project, "python", "-m", "components.base_model", *outputs)
    for iteration in (1, 2):
        write_records(project / f"data/iterations/{iteration}/subset.parquet", subset(iteration))
    for iteration, parent in ((1, "base"), (2, "1")):
        finetune(project, iteration, parent)
    return project


def finetune(project: Path, iteration: int, parent: str, *, expect: int = 0) -> str:
    return call(project, *finetune_command(iteration, parent), expect=expect)


def read_steps(project: Path, iteration: int) -> list[dict[str, str]]:
    with (project / f"data/iterations/{iteration}/steps.csv").open() as file:
        return list(csv.DictReader(file))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    loaded: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return loaded


def digests(*folders: Path) -> dict[str, str]:
    return {
        f"{folder.name}/{file.relative_to(folder)}": hashlib.sha256(file.read_bytes()).hexdigest()
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


UNINTERRUPTED = """
import sys
from pathlib import Path
from components.core.files import write_json
from components.core.launch import init_single_process
from components.core.params import load_settings
from components.data.records import read_records
from components.model.load import load_model
from components.training.deepspeed import prepare_deepspeed

settings = load_settings()
init_single_process()
prepare_deepspeed()
from components.training.iteration import encode_subset, train_iteration
assert "datasets" not in sys.modules, "Trainer imports datasets"
model, tokenizer = load_model(Path("models/base"), "float32")
examples = []
for iteration in (1, 2):
    records = read_records(Path(f"data/iterations/{iteration}/subset.parquet"))
    examples += encode_subset(records, tokenizer, settings.finetune, system=settings.score.system, iteration=iteration)
state, scratch = Path("state/uninterrupted"), Path(".iterit/uninterrupted")
write_json(state / "progress.json", {"step": 0, "steps_per_iteration": 3})
scratch.mkdir()
train_iteration(examples, model, settings.finetune, parent_state=state, scratch=scratch, what="all")
"""


def test_two_stages_are_one_uninterrupted_training_bit_for_bit(folder: Path) -> None:
    call(folder, "python", "-c", UNINTERRUPTED)
    columns = ("loss", "learning_rate", "gradient_norm")
    lines = (folder / ".iterit/uninterrupted/steps.jsonl").read_text().splitlines()
    uninterrupted = [[json.loads(line)[column] for column in columns] for line in lines]
    staged = [
        [float(row[column]) for column in columns] for iteration in (1, 2) for row in read_steps(folder, iteration)
    ]
    assert staged == uninterrupted
    expected = weights(folder / ".iterit/uninterrupted/checkpoint-6")
    trained = weights(folder / "models/2")
    assert trained.keys() == expected.keys()
    assert all(torch.equal(trained[name], expected[name]) for name in expected)


def test_the_training_is_that_of_a_plain_loop(folder: Path) -> None:
    """The formulas: mean over records of the mean over tokens, clipping, AdamW, warm-up and cosine."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "models/base", dtype=torch.float32).train()
    tokenizer = AutoTokenizer.from_pretrained(folder / "models/base")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    schedule = Schedule(steps=6, warmup_ratio=0.25).attach(optimizer)
    losses = []
    for iteration in (1, 2):
        records = subset(iteration)
        texts = encode_conditional(records, tokenizer, system=SYSTEM, max_length=128)
        arguments = {"batch_size": 4, "loss": "record", "seed": 42, "iteration": iteration}
        examples = effective_batches([record.id for record in records], texts, **arguments)
        for first in range(0, len(examples), 4):
            batch = [example for example in examples[first : first + 4] if example.weight]
            loss = torch.stack([record_loss(model, example.ids, example.start) for example in batch]).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    trained = [float(row["loss"]) for iteration in (1, 2) for row in read_steps(folder, iteration)]
    assert trained == pytest.approx(losses, abs=2e-5)


def copy_project(folder: Path, copy: Path, *without: str) -> Path:
    """Copy the project as it was before the iterations in `without`."""
    shutil.copytree(folder, copy)
    for iteration in without:
        for output in (f"models/{iteration}", f"state/{iteration}"):
            shutil.rmtree(copy / output)
    return copy


def record_loss(model: Any, ids: list[int], start: int) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[start:]))


def test_a_model_that_cannot_be_packed_is_padded_and_makes_the_same_steps(folder: Path, tmp_path: Path) -> None:
    """The same weights as a Mistral, whose window is longer than any text, compute what the Llama computes."""
    mistral = copy_project(folder, tmp_path / "mistral", "1", "2")
    config = json.loads((mistral / "models/base/config.json").read_text())
    windowed = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 2000}
    (mistral / "models/base/config.json").write_text(json.dumps(config | windowed))
    assert "finetune@1: padded batches" in finetune(mistral, 1, "base")
    padded, packed = ([float(row["loss"]) for row in read_steps(project, 1)] for project in (mistral, folder))
    assert padded == pytest.approx(packed, abs=2e-5)
    assert "iterit" not in (folder / "models/1/config.json").read_text(), "packing leaves a trace"


def test_the_same_inputs_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    other = copy_project(folder, tmp_path / "other", "1", "2")
    finetune(other, 1, "base")
    assert digests(other / "models/1", other / "state/1") == digests(folder / "models/1", folder / "state/1")


def test_a_checkpoint_is_a_plain_folder_that_transformers_opens(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "models/2")
    assert AutoTokenizer.from_pretrained(folder / "models/2").chat_template
    assert weights(folder / "models/2").keys() == weights(folder / "models/base").keys()
    assert not torch.equal(
        model.get_input_embeddings().weight, weights(folder / "models/base")["model.embed_tokens.weight"]
    )
    names = {file.name for file in (folder / "models/2").iterdir()}
    assert {"README.md", "config.json", "tokenizer.json"} <= names
    assert "training_args.bin" not in names
    assert str(folder) not in (folder / "models/2/config.json").read_text()


def assert_same_steps(actual: Path, expected: Path) -> None:
    """Compare iteration 1. At ZeRO stage 0 the gradient norm is reported by StepLogger, at others by DeepSpeed."""
    for column, tolerance in (("loss", 2e-5), ("gradient_norm", 2e-4)):
        values = [[float(row[column]) for row in read_steps(project, 1)] for project in (actual, expected)]
        assert values[0] == pytest.approx(values[1], abs=tolerance)


@pytest.mark.parametrize("deepspeed", ["zero2", "zero3"])
def test_two_processes_make_the_steps_of_one(folder: Path, tmp_path: Path, deepspeed: str) -> None:
    other = copy_project(folder, tmp_path / "two", "1", "2")
    edit_params(other, {"finetune": {"processes": 2, "deepspeed": deepspeed}})
    finetune(other, 1, "base")
    assert_same_steps(other, folder)
    expected, trained = weights(folder / "models/1"), weights(other / "models/1")
    assert trained.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(trained[name], tensor, atol=2e-4)


def test_a_state_of_other_settings_or_a_damaged_one_is_an_error_with_a_remedy(folder: Path, tmp_path: Path) -> None:
    other = copy_project(folder, tmp_path / "damaged")
    edit_params(other, {"finetune": {"processes": 2}})
    assert "state/1 was written with 1; set it back" in finetune(other, 2, "1", expect=2)
    edit_params(other, {"finetune": {"processes": 1}})
    file = next((other / ".iterit/states").rglob("*model_states.pt"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert "its files are not those that were written" in finetune(other, 2, "1", expect=2)
    file.write_bytes(content[:1000])
    output = finetune(other, 2, "1", expect=2)
    assert "error: state/1: cannot be resumed" in output
    assert "dvc repro -f finetune@1" in output
    assert (other / "models/1/model.safetensors").is_file()


# --- interrupted ------------------------------------------------------------------------------------------------------


def test_a_training_killed_five_times_at_random_ends_with_the_bytes_of_an_undisturbed_one(
    folder: Path, tmp_path: Path
) -> None:
    undisturbed = copy_project(folder, tmp_path / "undisturbed", "2")
    write_records(undisturbed / "data/iterations/2/subset.parquet", subset(2, 10) + subset(3, 10) + subset(4, 10))
    killed = tmp_path / "killed"
    shutil.copytree(undisturbed, killed)
    finetune(undisturbed, 2, "1")
    edit_params(killed, {"finetune": {"save_steps": 1}})
    lines = killed / ".iterit/tmp/finetune@2/steps.jsonl"
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    for step in sorted(random.Random(seed).sample(range(1, 7), 5)):  # of 8
        process = start(killed, finetune_command(2, "1"))
        wait_for(lambda step=step: lines.is_file() and len(lines.read_bytes().splitlines()) >= step, process)
        process.kill()
        process.wait()
        assert not (killed / "models/2").exists()
    assert "finetune@2: going on after checkpoint-" in finetune(killed, 2, "1")
    assert stored_state(killed, 2) == stored_state(undisturbed, 2)
    assert digests(killed / "models/2", killed / "state/2") == digests(
        undisturbed / "models/2", undisturbed / "state/2"
    )
    assert read_steps(killed, 2) == read_steps(undisturbed, 2)


def stored_state(folder: Path, iteration: int) -> dict[str, str]:
    """Digests of the files of the trainer state that progress.json names."""
    progress = json.loads((folder / f"state/{iteration}/progress.json").read_text())
    by_path = digests(folder / ".iterit/states" / progress["trainer_state"])
    return {path.partition("/")[2]: digest for path, digest in by_path.items()}


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_a_full_disk_is_one_line_and_the_parent_s_checkpoint_is_kept(folder: Path, tmp_path: Path) -> None:
    other = copy_project(folder, tmp_path / "full", "2")
    before = digests(other / "models/1", other / "state/1")
    output = call(other, "python", "-c", LIMITED, *finetune_command(2, "1"), expect=2)
    assert "error: finetune: a checkpoint could not be written" in output.splitlines()[-1]
    assert "make room and run again: the parent's checkpoint is as it was" in output.splitlines()[-1]
    assert "Traceback" not in output
    assert not (other / "models/2").exists()
    assert digests(other / "models/1", other / "state/1") == before
    finetune(other, 2, "1")
    assert digests(other / "models/2") == digests(folder / "models/2")


def test_when_a_process_dies_the_stage_ends_with_a_remedy_and_the_next_start_resumes(
    folder: Path, tmp_path: Path
) -> None:
    other = copy_project(folder, tmp_path / "dead", "1", "2")
    write_records(other / "data/iterations/1/subset.parquet", subset(1, 10) + subset(3, 10) + subset(4, 10))
    edit_params(other, {"finetune": {"processes": 2, "save_steps": 1}})
    process = start(other, finetune_command(1, "base"))
    lines = other / ".iterit/tmp/finetune@1/steps.jsonl"
    wait_for(lambda: lines.is_file() and len(lines.read_bytes().splitlines()) >= 2, process)
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "--worker" in child.cmdline()[3:]]
    next(worker for worker in workers if worker.environ().get("RANK") == "1").kill()
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2, output
    assert "error: one of 2 processes ended early" in output.splitlines()[-1]
    assert "run again to go on from what was saved" in output.splitlines()[-1]
    assert not (other / "models/1").exists()
    assert "finetune@1: going on after checkpoint-" in finetune(other, 1, "base")
    assert len(read_steps(other, 1)) == 8


def test_a_pruned_state_is_an_error_with_a_remedy_and_keep_states_all_keeps_every_state(
    folder: Path, tmp_path: Path
) -> None:
    other = copy_project(folder, tmp_path / "pruned", "2")
    shutil.rmtree(other / ".iterit/states")
    output = finetune(other, 2, "1", expect=2)
    assert output.splitlines()[-1].startswith("error: state/1: its trainer state is not on this machine")
    assert "dvc repro -f finetune@1" in output
    edit_params(other, {"finetune": {"keep_states": "all"}})
    for iteration, parent in ((1, "base"), (2, "1")):
        finetune(other, iteration, parent)
        assert any((other / f"state/{iteration}").rglob("*model_states.pt"))
    assert not (other / ".iterit/states").exists()
    assert digests(other / "models/2") == digests(folder / "models/2")


# --- ways to train ----------------------------------------------------------------------------------------------------


def test_gradient_checkpointing_gives_the_same_steps(folder: Path, tmp_path: Path) -> None:
    other = copy_project(folder, tmp_path / "checkpointing", "1", "2")
    edit_params(other, {"finetune": {"gradient_checkpointing": True}})
    finetune(other, 1, "base")
    assert read_steps(other, 1) == read_steps(folder, 1)


def test_an_adapter_is_trained_across_iterations_and_merged_into_checkpoints(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    other = copy_project(folder, tmp_path / "lora", "1", "2")
    edit_params(other, {"finetune": {"lora": {"rank": 4, "alpha": 8}}})
    finetune(other, 1, "base")
    finetune(other, 2, "1")
    losses = [float(row["loss"]) for iteration in (1, 2) for row in read_steps(other, iteration)]
    assert losses[-1] < losses[0]
    base, first, second = (weights(other / f"models/{key}") for key in ("base", "1", "2"))
    assert base.keys() == first.keys() == second.keys()
    for name, tensor in base.items():
        assert torch.equal(tensor, second[name]) != name.endswith("_proj.weight"), name
    assert not torch.equal(first["model.layers.0.mlp.up_proj.weight"], second["model.layers.0.mlp.up_proj.weight"])
    merged = AutoModelForCausalLM.from_pretrained(other / "models/2")
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(other / "models/base"), str(other / "models/2/adapter")
    )
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(merged(input_ids=ids).logits, adapted(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    assert str(other) not in (other / "models/2/adapter/adapter_config.json").read_text()


def test_bfloat16_is_close_to_float32_and_refused_where_deepspeed_trains_it_wrongly(
    folder: Path, tmp_path: Path
) -> None:
    other = copy_project(folder, tmp_path / "bfloat16", "1", "2")
    edit_params(other, {"finetune": {"dtype": "bfloat16"}})
    output = finetune(other, 1, "base", expect=2)
    assert "finetune.dtype: bfloat16 does not go with finetune.deepspeed: zero0" in output.splitlines()[-1]
    edit_params(other, {"finetune": {"dtype": "bfloat16", "deepspeed": "zero1"}})
    finetune(other, 1, "base")
    in_float32, in_bfloat16 = ([float(row["loss"]) for row in read_steps(project, 1)] for project in (folder, other))
    assert in_bfloat16 == pytest.approx(in_float32, abs=0.05)


def test_a_hostfile_of_this_machine_trains_like_two_processes(folder: Path, tmp_path: Path) -> None:
    other = copy_project(folder, tmp_path / "hosts", "1", "2")
    (other / "hosts.txt").write_text("# this machine\nlocalhost slots=2\n")
    edit_params(other, {"finetune": {"processes": 2, "hostfile": "hosts.txt"}})
    finetune(other, 1, "base")
    assert_same_steps(other, folder)


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        (None, "error: params.yaml: finetune.hostfile: hosts.txt: no such file"),
        (
            "a slots=2\nb slots\n",
            "error: hosts.txt line 2: expected a new host and its slots: node1 slots=8",
        ),
        ("a slots=3\n", "error: params.yaml: finetune.processes: 2, but hosts.txt has 3 slots; make them equal"),
    ],
)
def test_a_wrong_hostfile_is_one_line(folder: Path, tmp_path: Path, hosts: str | None, message: str) -> None:
    other = copy_project(folder, tmp_path / "hosts", "1", "2")
    if hosts is not None:
        (other / "hosts.txt").write_text(hosts)
    edit_params(other, {"finetune": {"processes": 2, "hostfile": "hosts.txt"}})
    assert finetune(other, 1, "base", expect=2).splitlines() == [message]


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_records(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    other = copy_project(folder, tmp_path / "broken", "1", "2")
    broken = weights(other / "models/base")
    broken["model.norm.weight"].fill_(float("inf"))
    save_file(broken, other / "models/base/model.safetensors", metadata={"format": "pt"})
    line = finetune(other, 1, "base", expect=2).splitlines()[-1]
    assert line.startswith("error: finetune: the loss is nan on records ")
    assert any(record.id in line for record in subset(1))


def test_lm_eval_opens_a_checkpoint(folder: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(folder / "models/2"), device="cpu", batch_size=1)
    request = Instance("loglikelihood", {}, ("Say", " one"), 0)
    ((loglikelihood, _),) = model.loglikelihood([request], disable_tqdm=True)
    assert loglikelihood < 0


def test_a_build_of_the_extension_that_was_killed_stops_no_training(tmp_path: Path) -> None:
    extensions = tmp_path / "extensions"
    shutil.copytree(Path(sys.prefix) / "torch_extensions", extensions)
    (extensions / "deepspeed_shm_comm/lock").touch()  # what torch waits for, whoever made it
    subprocess.run(
        [sys.executable, "-c", "from components.training.deepspeed import build_extension; build_extension()"],
        env={**environment(), "PYTHONPATH": str(SOURCE), "TORCH_EXTENSIONS_DIR": str(extensions)},
        check=True,
        timeout=300,
        capture_output=True,
    )
