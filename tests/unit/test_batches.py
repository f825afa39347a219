"""Batches and schedule: every effective batch's loss is a mean, labels are the response, rows have similar lengths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from components.core.errors import UserError
from components.core.settings.finetune import FinetuneSettings
from components.core.settings.ingest import Columns
from components.data.records import make_record
from components.data_sources.shapes import finish, from_columns, recognize
from components.model.chat import Encoded, encode_conditional
from components.model.load import load_model, load_tokenizer
from components.training.batches import (
    IGNORED,
    Example,
    balance_micro_batches,
    collate,
    collate_packed,
    effective_batches,
    supports_packing,
)
from components.training.iteration import encode_subset
from components.training.trainer import Schedule
from tests.support.records import ask

SYSTEM = "You are a helpful assistant."


def texts(lengths: Sequence[tuple[int, int]]) -> list[Encoded]:
    """Texts from their lengths and the starts of their responses."""
    return [Encoded(list(range(1, length + 1)), start) for length, start in lengths]


@pytest.mark.parametrize("loss", ["record", "token"])
def test_the_weights_in_every_effective_batch_add_up_to_1(loss: str) -> None:
    encoded = texts([(9, 3), (5, 2), (30, 10), (7, 6), (12, 4)])
    examples = effective_batches([str(n) for n in range(5)], encoded, batch_size=2, loss=loss, seed=1, iteration=1)
    assert len(examples) == 6
    assert sorted(example.id for example in examples) == ["", "0", "1", "2", "3", "4"]
    for first in range(0, 6, 2):
        assert sum(e.weight * (len(e.ids) - e.start) for e in examples[first : first + 2]) == pytest.approx(1.0)


def test_packed_micro_batches_have_similar_lengths() -> None:
    lengths = [90, 80, 70, 60, 50, 40, 30, 20, 9, 8, 7, 6, 5, 4, 3, 2]
    examples = [Example(str(length), list(range(length)), 1, 0.0) for length in lengths]
    balanced = balance_micro_batches(examples, 8, 2)
    assert sorted(example.id for example in balanced[:8]) == sorted(example.id for example in examples[:8])
    rows = [sum(len(example.ids) for example in balanced[first : first + 2]) for first in range(0, 16, 2)]
    assert rows == [110, 110, 110, 110, 11, 11, 11, 11]
    assert balance_micro_batches(examples, 8, 8) == examples


def test_the_order_depends_on_seed_and_iteration_only() -> None:
    ids, encoded = [str(n) for n in range(20)], texts([(10, 5)] * 20)

    def order(seed: int, iteration: int) -> list[str]:
        examples = effective_batches(ids, encoded, batch_size=1, loss="record", seed=seed, iteration=iteration)
        return [example.id for example in examples]

    assert order(1, 1) == order(1, 1)
    assert order(1, 1) != order(1, 2) != order(2, 1)


def test_only_the_response_has_labels() -> None:
    batch = collate(
        effective_batches(["a", "b"], texts([(6, 4), (3, 1)]), batch_size=2, loss="record", seed=0, iteration=1)
    )
    assert batch["labels"].tolist() == [[IGNORED] * 4 + [5, 6], [IGNORED, 2, 3, IGNORED, IGNORED, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert batch["weights"] == [[0] * 4 + [0.25] * 2, [0, 0.25, 0.25, 0, 0, 0]]


def test_packed_records_are_one_row_with_positions_that_begin_anew() -> None:
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
def test_only_the_last_response_and_its_end_of_turn_are_learned_whatever_the_record_s_shape(
    small_model: Path, shape: str
) -> None:
    row = SHAPES[shape]
    if shape == "columns":
        messages = from_columns(row, Columns(prompt="question", response="answer"))
    else:
        convert = recognize(row)
        assert convert
        messages = convert(row)
    record = make_record("test", finish(messages)[0])
    tokenizer = load_tokenizer(small_model)
    encoded = encode_conditional([record], tokenizer, system=SYSTEM, max_length=512)
    batch = collate(effective_batches(["a"], encoded, batch_size=1, loss="record", seed=0, iteration=1))
    labels = batch["labels"][0]
    scored = tokenizer.decode(labels[labels != IGNORED])
    assert scored.split("<|im_end|>")[0].strip() == "Two, then."
    assert scored.endswith("<|im_end|>\n")
    prompt = tokenizer.decode(batch["input_ids"][0][labels == IGNORED])
    assert prompt.endswith(("<|im_start|>assistant\n", "<|im_start|>assistant\n "))
    assert "Two, then" not in prompt


def test_an_iteration_beyond_the_planned_ones_begins_a_new_cycle() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = Schedule(steps=4, warmup_ratio=0.25).attach(optimizer)
    rates = []
    for _ in range(8):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:4] == rates[4:]
    assert rates[0] == 0
    assert max(rates) == rates[1] == 1.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_llama_supports_packing(small_model: Path, dtype: str) -> None:
    model, _ = load_model(small_model, dtype)
    assert supports_packing(model)


def test_a_record_that_the_template_refuses_ends_the_training_with_its_id(small_model: Path) -> None:
    tokenizer = load_tokenizer(small_model)
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    record = ask("Q", "A")
    with pytest.raises(UserError, match=f"record {record.id} .source test.: .*never; score and select it again"):
        encode_subset([record], tokenizer, FinetuneSettings(), system=SYSTEM, iteration=1)
    (example, *_) = encode_subset([record], tokenizer, FinetuneSettings(), system="", iteration=1, template="none")
    assert tokenizer.decode(example.ids) == "<|im_start|>Q\n\nA"
