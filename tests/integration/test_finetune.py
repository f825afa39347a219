"""Fine-tuning: iterations as stages are one training, its loss is the mean that it says it is, and its files repeat."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from components.core.settings.ingest import Columns
from components.data.records import Message, Record, make_record, write_records
from components.data_sources.shapes import finish, from_columns, recognize
from components.model.chat import Encoded, encode_conditional
from components.training.batches import (
    IGNORED,
    Example,
    balance_micro_batches,
    collate,
    collate_packed,
    effective_batches,
    supports_packing,
)
from components.training.trainer import Schedule
from tests.support.project import call, edit_params, finetune_command, make_project, start, wait_for

SYSTEM = "You are a helpful assistant."


def subset(iteration: int, size: int = 10) -> list[Record]:
    """Conversations of one and of two turns; `size` is no multiple of the batch."""
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
    """A project with the base model, and subsets of two iterations."""
    project = make_project(tmp_path_factory.mktemp("finetune"), small_model)
    edit_params(project, {"finetune": {"warmup_ratio": 0.25, "clip_norm": 0.5, "learning_rate": 0.01}})
    places = ("--model", "models/base", "--proxy-model", "models/proxy", "--state", "state/base")
    call(project, "python", "-m", "components.base_model", *places)
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
import json
from pathlib import Path
from components import finetune, launch, model as loading, tables
from components.records import read_records
from components.settings import load_settings

settings = load_settings()
launch.init_single_process()
launch.prepare_deepspeed()
model, tokenizer = loading.load_model(Path("models/base"), "float32")
examples = []
for iteration in (1, 2):
    records = read_records(Path(f"data/iterations/{iteration}/subset.parquet"))
    examples += finetune.encode_subset(
        records, tokenizer, settings.finetune, system=settings.score.system, iteration=iteration
    )
state, scratch = Path("state/uninterrupted"), Path(".iterit/uninterrupted")
write_json(state / "progress.json", {"step": 0, "steps_per_iteration": 3})
scratch.mkdir()
finetune.train_iteration(examples, model, settings.finetune, parent_state=state, scratch=scratch, what="all")
"""


def test_two_stages_are_one_uninterrupted_training_bit_for_bit(folder: Path) -> None:
    call(folder, "python", "-c", UNINTERRUPTED)
    columns = ("loss", "learning_rate", "gradient_norm")
    lines = (folder / ".iterit/uninterrupted/steps.jsonl").read_text().splitlines()
    through = [[json.loads(line)[column] for column in columns] for line in lines]
    staged = [
        [float(row[column]) for column in columns] for iteration in (1, 2) for row in read_steps(folder, iteration)
    ]
    assert staged == through
    expected = weights(folder / ".iterit/uninterrupted/checkpoint-6")
    trained = weights(folder / "models/2")
    assert trained.keys() == expected.keys()
    assert all(torch.equal(trained[name], expected[name]) for name in expected)


def test_the_training_is_that_of_a_plain_loop(folder: Path) -> None:
    """The formulas written out: mean over records of the mean over tokens, clipping, AdamW, warm-up and cosine."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "models/base", dtype=torch.float32).train()
    tokenizer = AutoTokenizer.from_pretrained(folder / "models/base")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    schedule = Schedule(steps=6, warmup_ratio=0.25).multiplier(optimizer)
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


def copy_of(folder: Path, place: Path, *without: str) -> Path:
    """A copy of the project as it was before the iterations in `without`."""
    shutil.copytree(folder, place)
    for iteration in without:
        for made in (f"models/{iteration}", f"state/{iteration}"):
            shutil.rmtree(place / made)
    return place


def record_loss(model: Any, ids: list[int], start: int) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[start:]))


def test_a_model_that_cannot_be_packed_is_padded_and_makes_the_same_steps(folder: Path, tmp_path: Path) -> None:
    """The same weights as a Mistral, whose window is longer than any text: it computes what the Llama does."""
    other = copy_of(folder, tmp_path / "mistral", "1", "2")
    config = json.loads((other / "models/base/config.json").read_text())
    windowed = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 2000}
    (other / "models/base/config.json").write_text(json.dumps(config | windowed))
    assert "finetune@1: padded batches" in finetune(other, 1, "base")
    padded, packed = ([float(row["loss"]) for row in read_steps(place, 1)] for place in (other, folder))
    assert padded == pytest.approx(packed, abs=2e-5)
    assert "iterit" not in (folder / "models/1/config.json").read_text(), "packing leaves a trace"


def test_a_llama_is_packed_in_either_type(small_model: Path) -> None:
    from components.model.load import load_model

    for dtype in ("float32", "bfloat16"):
        model, _ = load_model(small_model, dtype)
        assert supports_packing(model)


def test_the_same_inputs_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    other = copy_of(folder, tmp_path / "other", "1", "2")
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


def check_same_steps(one: Path, other: Path) -> None:
    """Of iteration 1. Under ZeRO-0 the gradient norm comes from our own clipping, else from DeepSpeed's."""
    for column, tolerance in (("loss", 2e-5), ("gradient_norm", 2e-4)):
        expected, found = ([float(row[column]) for row in read_steps(place, 1)] for place in (one, other))
        assert found == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("deepspeed", ["zero2", "zero3"])
def test_two_processes_make_the_steps_of_one(folder: Path, tmp_path: Path, deepspeed: str) -> None:
    other = copy_of(folder, tmp_path / "two", "1", "2")
    edit_params(other, {"finetune": {"processes": 2, "deepspeed": deepspeed}})
    finetune(other, 1, "base")
    check_same_steps(folder, other)
    expected, trained = weights(folder / "models/1"), weights(other / "models/1")
    assert trained.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(trained[name], tensor, atol=2e-4)


def test_a_state_of_other_processes_or_a_broken_one_is_refused_with_a_way_on(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "broken"
    shutil.copytree(folder, other)
    edit_params(other, {"finetune": {"processes": 2}})
    assert "state/1 was written with 1; set it back" in finetune(other, 2, "1", expect=2)
    edit_params(other, {"finetune": {"processes": 1}})
    file = next((other / ".iterit/states").rglob("*model_states.pt"))
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    assert "its files are not those that were written" in finetune(other, 2, "1", expect=2)
    file.write_bytes(whole[:1000])
    output = finetune(other, 2, "1", expect=2)
    assert "error: state/1: cannot be resumed" in output
    assert "dvc repro -f finetune@1" in output
    assert (other / "models/1/model.safetensors").is_file()


# --- interrupted ------------------------------------------------------------------------------------------------------


def test_killed_five_times_at_random_steps_it_ends_with_the_bytes_of_an_undisturbed_run(
    folder: Path, tmp_path: Path
) -> None:
    undisturbed = copy_of(folder, tmp_path / "undisturbed", "2")
    write_records(undisturbed / "data/iterations/2/subset.parquet", subset(2, 10) + subset(3, 10) + subset(4, 10))
    killed = tmp_path / "killed"
    shutil.copytree(undisturbed, killed)
    finetune(undisturbed, 2, "1")
    edit_params(killed, {"finetune": {"save_steps": 1}})
    lines = killed / ".iterit/tmp/finetune@2/steps.jsonl"
    for step in sorted(random.sample(range(1, 7), 5)):  # of 8
        process = start(killed, finetune_command(2, "1"))
        wait_for(lambda step=step: lines.is_file() and len(lines.read_bytes().splitlines()) >= step, process)
        process.kill()
        process.wait()
        assert not (killed / "models/2").exists()
    assert "finetune@2: going on after checkpoint-" in finetune(killed, 2, "1")
    assert read_state(killed, 2) == read_state(undisturbed, 2)
    assert digests(killed / "models/2", killed / "state/2") == digests(
        undisturbed / "models/2", undisturbed / "state/2"
    )
    assert read_steps(killed, 2) == read_steps(undisturbed, 2)


def read_state(folder: Path, iteration: int) -> dict[str, str]:
    """Digests of the trainer state in the store, whose name must be that in progress.json."""
    progress = json.loads((folder / f"state/{iteration}/progress.json").read_text())
    found = digests(folder / ".iterit/states" / progress["trainer_state"])
    return {name.partition("/")[2]: digest for name, digest in found.items()}


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_a_full_disk_is_one_line_and_the_parent_s_checkpoint_stays(folder: Path, tmp_path: Path) -> None:
    other = copy_of(folder, tmp_path / "full", "2")
    before = digests(other / "models/1", other / "state/1")
    output = call(other, "python", "-c", LIMITED, *finetune_command(2, "1"), expect=2)
    assert "error: finetune: a checkpoint could not be written" in output.splitlines()[-1]
    assert "make room and run again: the parent's checkpoint is as it was" in output.splitlines()[-1]
    assert "Traceback" not in output
    assert not (other / "models/2").exists()
    assert digests(other / "models/1", other / "state/1") == before
    finetune(other, 2, "1")
    assert digests(other / "models/2") == digests(folder / "models/2")


def test_a_process_that_dies_ends_the_stage_with_a_way_on_and_the_next_start_goes_on(
    folder: Path, tmp_path: Path
) -> None:
    other = copy_of(folder, tmp_path / "dead", "1", "2")
    write_records(other / "data/iterations/1/subset.parquet", subset(1, 10) + subset(3, 10) + subset(4, 10))
    edit_params(other, {"finetune": {"processes": 2, "save_steps": 1}})
    process = start(other, finetune_command(1, "base"))
    lines = other / ".iterit/tmp/finetune@1/steps.jsonl"
    wait_for(lambda: lines.is_file() and len(lines.read_bytes().splitlines()) >= 2, process)
    workers = [one for one in psutil.Process(process.pid).children(recursive=True) if "--worker" in one.cmdline()[3:]]
    next(one for one in workers if one.environ().get("RANK") == "1").kill()
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2, output
    assert "error: one of 2 processes ended early" in output.splitlines()[-1]
    assert "run again to go on from what was saved" in output.splitlines()[-1]
    assert not (other / "models/1").exists()
    assert "finetune@1: going on after checkpoint-" in finetune(other, 1, "base")
    assert len(read_steps(other, 1)) == 8


def test_a_pruned_state_is_an_error_with_a_way_on_and_all_states_are_kept_when_asked_for(
    folder: Path, tmp_path: Path
) -> None:
    other = copy_of(folder, tmp_path / "pruned", "2")
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
    other = copy_of(folder, tmp_path / "checkpointing", "1", "2")
    edit_params(other, {"finetune": {"gradient_checkpointing": True}})
    finetune(other, 1, "base")
    assert read_steps(other, 1) == read_steps(folder, 1)


def test_adapters_train_go_on_and_are_merged_into_a_plain_checkpoint(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    other = copy_of(folder, tmp_path / "lora", "1", "2")
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


def test_bfloat16_is_close_to_float32_and_refused_where_deepspeed_would_train_it_wrongly(
    folder: Path, tmp_path: Path
) -> None:
    other = copy_of(folder, tmp_path / "bfloat16", "1", "2")
    edit_params(other, {"finetune": {"dtype": "bfloat16"}})
    output = finetune(other, 1, "base", expect=2)
    assert "finetune.dtype: bfloat16 does not go with finetune.deepspeed: zero0" in output.splitlines()[-1]
    edit_params(other, {"finetune": {"dtype": "bfloat16", "deepspeed": "zero1"}})
    finetune(other, 1, "base")
    expected, found = ([float(row["loss"]) for row in read_steps(place, 1)] for place in (folder, other))
    assert found == pytest.approx(expected, abs=0.05)


def test_a_hostfile_of_this_machine_trains_like_two_processes(folder: Path, tmp_path: Path) -> None:
    other = copy_of(folder, tmp_path / "hosts", "1", "2")
    (other / "hosts.txt").write_text("# this machine\nlocalhost slots=2\n")
    edit_params(other, {"finetune": {"processes": 2, "hostfile": "hosts.txt"}})
    finetune(other, 1, "base")
    check_same_steps(folder, other)


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        (None, "error: params.yaml: finetune.hostfile: hosts.txt: no such file"),
        (
            "a slots=2\nb slots\n",
            "error: hosts.txt line 2: expected a host that is not named yet, and slots: node1 slots=8",
        ),
        ("a slots=3\n", "error: params.yaml: finetune.processes: 2, but hosts.txt has 3 slots; make them equal"),
    ],
)
def test_a_wrong_hostfile_is_one_line(folder: Path, tmp_path: Path, hosts: str | None, message: str) -> None:
    other = copy_of(folder, tmp_path / "hosts", "1", "2")
    if hosts is not None:
        (other / "hosts.txt").write_text(hosts)
    edit_params(other, {"finetune": {"processes": 2, "hostfile": "hosts.txt"}})
    assert finetune(other, 1, "base", expect=2).splitlines() == [message]


def test_a_loss_that_is_not_finite_names_the_records(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    other = copy_of(folder, tmp_path / "broken", "1", "2")
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


def texts(lengths: Sequence[tuple[int, int]]) -> list[Encoded]:
    return [Encoded(list(range(1, length + 1)), start) for length, start in lengths]


@pytest.mark.parametrize("loss", ["record", "token"])
def test_the_weights_of_every_effective_batch_sum_to_a_mean(loss: str) -> None:
    encoded = texts([(9, 3), (5, 2), (30, 10), (7, 6), (12, 4)])
    examples = effective_batches([str(n) for n in range(5)], encoded, batch_size=2, loss=loss, seed=1, iteration=1)
    assert len(examples) == 6
    assert sorted(example.id for example in examples) == ["", "0", "1", "2", "3", "4"]
    for first in range(0, 6, 2):
        assert sum(e.weight * (len(e.ids) - e.start) for e in examples[first : first + 2]) == pytest.approx(1.0)


def test_micro_batches_are_dealt_rows_of_like_length() -> None:
    lengths = [90, 80, 70, 60, 50, 40, 30, 20, 9, 8, 7, 6, 5, 4, 3, 2]
    examples = [Example(str(length), list(range(length)), 1, 0.0) for length in lengths]
    dealt = balance_micro_batches(examples, 8, 2)
    assert sorted(example.id for example in dealt[:8]) == sorted(example.id for example in examples[:8])
    rows = [sum(len(example.ids) for example in dealt[first : first + 2]) for first in range(0, 16, 2)]
    assert rows == [110, 110, 110, 110, 11, 11, 11, 11]
    assert balance_micro_batches(examples, 8, 8) == examples


def test_the_order_depends_on_seed_and_iteration_alone() -> None:
    ids, encoded = [str(n) for n in range(20)], texts([(10, 5)] * 20)

    def order(seed: int, iteration: int) -> list[str]:
        examples = effective_batches(ids, encoded, batch_size=1, loss="record", seed=seed, iteration=iteration)
        return [example.id for example in examples]

    assert order(1, 1) == order(1, 1)
    assert order(1, 1) != order(1, 2) != order(2, 1)


def test_labels_are_the_response_and_nothing_else() -> None:
    batch = collate(
        effective_batches(["a", "b"], texts([(6, 4), (3, 1)]), batch_size=2, loss="record", seed=0, iteration=1)
    )
    assert batch["labels"].tolist() == [[IGNORED] * 4 + [5, 6], [IGNORED, 2, 3, IGNORED, IGNORED, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert batch["weights"] == [[0] * 4 + [0.25] * 2, [0, 0.25, 0.25, 0, 0, 0]]


def test_packed_records_lie_one_after_the_other() -> None:
    batch = collate_packed(
        effective_batches(["a", "b"], texts([(6, 4), (3, 1)]), batch_size=2, loss="token", seed=0, iteration=1)
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 1, 2, 3]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2]]
    assert batch["labels"].tolist() == [[IGNORED] * 4 + [5, 6] + [IGNORED] + [2, 3]]
    assert batch["weights"] == [[0] * 4 + [0.25] * 2 + [0] + [0.25] * 2]
    assert batch["iterit_lengths"] == [6, 3]


TURNS = [("user", "Say one."), ("assistant", "One."), ("user", "And two?"), ("assistant", " Two, then.\n")]
SHAPES = {
    "alpaca": {"instruction": "Say two.", "input": "Twice.", "output": " Two, then.\n"},
    "dolly": {"instruction": "Say two.", "context": "Twice.", "response": " Two, then.\n", "category": "qa"},
    "sharegpt": {"conversations": [{"from": {"user": "human"}.get(who, "gpt"), "value": text} for who, text in TURNS]},
    "openai": {"messages": [{"role": who, "content": text} for who, text in [("system", "Be brief."), *TURNS]]},
    "columns": {"question": "Say two.", "answer": " Two, then.\n"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_loss_is_on_the_last_response_and_its_end_of_turn_whatever_shape_the_record_had(
    small_model: Path, shape: str
) -> None:
    from transformers import AutoTokenizer

    row = SHAPES[shape]
    if shape == "columns":
        messages = from_columns(row, Columns(prompt="question", response="answer"))
    else:
        convert = recognize(row)
        assert convert
        messages = convert(row)
    record = make_record("test", finish(messages)[0])
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    encoded = encode_conditional([record], tokenizer, system=SYSTEM, max_length=512)
    batch = collate(effective_batches(["a"], encoded, batch_size=1, loss="record", seed=0, iteration=1))
    labels = batch["labels"][0]
    learned = tokenizer.decode(labels[labels != IGNORED])
    assert learned.split("<|im_end|>")[0].strip() == "Two, then."
    assert learned.endswith("<|im_end|>\n")
    given = tokenizer.decode(batch["input_ids"][0][labels == IGNORED])
    assert given.endswith(("<|im_start|>assistant\n", "<|im_start|>assistant\n "))
    assert "Two, then" not in given


def test_an_iteration_beyond_the_plan_begins_a_new_cycle() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = Schedule(steps=4, warmup_ratio=0.25).multiplier(optimizer)
    rates = []
    for _ in range(8):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:4] == rates[4:]
    assert rates[0] == 0
    assert max(rates) == rates[1] == 1.0
