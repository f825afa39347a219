"""Evaluation: the numbers are those of the plain definition, the samples those of the model alone."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from components.core.errors import UserError
from components.core.params import load_settings
from components.data.records import Message, Record, make_record, write_records
from components.evaluation.holdout import summarize
from components.evaluation.samples import generate_samples
from components.model.chat import encode_conditional, encode_prompts
from components.model.load import load_model
from components.provenance.digests import folder_digest
from components.scoring.ifd import score_records

PROJECT = Path(__file__).parents[2]
SYSTEM = "You are a helpful assistant."
HOLDOUT = [
    make_record("texts", [Message("user", prompt), Message("assistant", response)])
    for prompt, response in (
        ("Wrap a text.", "Reformat the single paragraph in text so it fits in lines of no more than width columns."),
        ("Say one.", "one"),
        ("What does it do with the white space at the beginning of each line?", "It removes it."),
        ("Say nothing.", ""),
    )
]


@pytest.fixture(scope="module")
def loaded(small_model: Path) -> tuple[Any, Any]:
    return load_model(small_model, "float32")


def token_losses(record: Record, model: Any, tokenizer: Any) -> list[float]:
    """-log p of each response token, by the definition: one text at a time, nothing padded."""
    encoded = encode_conditional([record], tokenizer, system=SYSTEM)[0]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([encoded.ids])).logits[0].double()
    chances = torch.log_softmax(logits, -1)
    return [-float(chances[at - 1, encoded.ids[at]]) for at in range(encoded.start, len(encoded.ids))]


def test_loss_weighs_every_response_token_alike_and_perplexity_is_its_exponential(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    scores = score_records(HOLDOUT, model, tokenizer, max_length=512, batch_tokens=4096, system=SYSTEM)
    found = summarize(scores)
    losses = [loss for record in HOLDOUT[:3] for loss in token_losses(record, model, tokenizer)]
    assert found["records"] == 4
    assert found["unscorable"] == 1
    assert found["tokens"] == len(losses)
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), abs=2e-6)
    assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    complexity = scores["complexity"].drop_null().to_pylist()
    assert found["mean_complexity"] == pytest.approx(sum(complexity) / 3, abs=1e-6)
    assert found["misaligned_share"] == pytest.approx(sum(value >= 1 for value in complexity) / 3, abs=1e-6)


def test_a_holdout_that_cannot_be_scored_is_a_clear_mistake(loaded: tuple[Any, Any]) -> None:
    scores = score_records(HOLDOUT[3:], *loaded, max_length=512, batch_tokens=4096, system=SYSTEM)
    with pytest.raises(UserError, match="no record of the holdout can be scored"):
        summarize(scores)


def test_samples_are_greedy_and_do_not_depend_on_what_is_generated_beside_them(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    model.generation_config.do_sample = True  # what a model brings along must not decide
    model.generation_config.temperature = 5.0
    samples = generate_samples(HOLDOUT[:3], model, tokenizer, system=SYSTEM, max_length=512, sample_tokens=12)
    assert [sample["id"] for sample in samples] == [record.id for record in HOLDOUT[:3]]
    assert [sample["reference"] for sample in samples] == [record.response for record in HOLDOUT[:3]]
    for record, sample in zip(HOLDOUT, samples, strict=False):
        ids = encode_prompts([record], tokenizer, system=SYSTEM)[0]
        start = len(ids)
        for _ in range(12):
            with torch.inference_mode():
                best = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            ids = [*ids, best]
            if best == tokenizer.eos_token_id:
                break
        assert sample["generated"] == tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_no_samples_are_generated_where_none_are_asked_for(loaded: tuple[Any, Any]) -> None:
    assert generate_samples([], *loaded, system=SYSTEM, max_length=512, sample_tokens=12) == []


def test_the_stage_writes_what_the_functions_give_and_names_the_checkpoint(
    loaded: tuple[Any, Any], small_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
    write_records(tmp_path / "holdout.parquet", HOLDOUT)
    command = [sys.executable, "-m", "components.evaluate", "--iteration", "1", "--holdout", "holdout.parquet"]
    command += ["--model", str(small_model), "--samples", "samples.json", "--metrics", "metrics.json"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    metrics, samples = (json.loads((tmp_path / name).read_text()) for name in ("metrics.json", "samples.json"))
    scores = score_records(HOLDOUT, *loaded, max_length=512, batch_tokens=8192, system=SYSTEM)
    settings = load_settings(PROJECT / "params.yaml").evaluate
    first = sorted(HOLDOUT, key=lambda record: record.id)[: settings.samples]
    assert metrics == {"checkpoint": folder_digest(small_model), **summarize(scores)}
    assert samples["checkpoint"] == metrics["checkpoint"]
    assert samples["samples"] == generate_samples(
        first, *loaded, system=SYSTEM, max_length=512, sample_tokens=settings.sample_tokens
    )
