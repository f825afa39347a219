"""Evaluation: the metrics are those of the plain definition, the samples greedy responses of the model."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from scipy import stats

from components.core.errors import UserError
from components.core.settings.evaluate import EvaluateSettings
from components.core.settings.score import ScoreSettings
from components.data import tables
from components.data.records import Record
from components.evaluation.holdout import evaluate_records, evaluation_table, summarize
from components.evaluation.rouge import answer_records, first_records, rouge_l, summarize_answers
from components.evaluation.samples import generate_samples
from components.model.chat import encode_conditional, encode_prompts
from components.model.load import load_model
from components.scoring.ifd import score_records
from tests.support.records import ask

SYSTEM = "You are a helpful assistant."
HOLDOUT = [
    ask("Wrap a text.", "Reformat the single paragraph in text so it fits in lines of no more than width columns."),
    ask("Say one.", "one"),
    ask("What does it do with the white space at the beginning of each line?", "It removes it."),
    ask("Say nothing.", ""),
]


@pytest.fixture(scope="module")
def loaded(small_model: Path) -> tuple[Any, Any]:
    return load_model(small_model, "float32")


def token_losses(record: Record, model: Any, tokenizer: Any) -> list[float]:
    """-log p of each response token by the definition: one text at a time, without padding."""
    encoded = encode_conditional([record], tokenizer, system=SYSTEM)[0]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([encoded.ids])).logits[0].double()
    log_p = torch.log_softmax(logits, -1)
    return [-float(log_p[position - 1, encoded.ids[position]]) for position in range(encoded.start, len(encoded.ids))]


def test_the_loss_is_the_mean_over_all_response_tokens_and_perplexity_its_exponential(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    scores = score_records(HOLDOUT, model, tokenizer, max_length=512, batch_tokens=4096, system=SYSTEM)
    metrics = summarize(evaluation_table(HOLDOUT, scores))
    losses = [loss for record in HOLDOUT[:3] for loss in token_losses(record, model, tokenizer)]
    assert metrics.records == 4
    assert metrics.unscorable == 1
    assert metrics.tokens == len(losses)
    assert metrics.loss == pytest.approx(sum(losses) / len(losses), abs=2e-6)
    assert metrics.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    complexity = scores["complexity"].drop_null().to_pylist()
    assert metrics.mean_complexity == pytest.approx(sum(complexity) / 3, abs=1e-6)
    assert metrics.misaligned_share == pytest.approx(sum(value >= 1 for value in complexity) / 3, abs=1e-6)


def test_every_record_of_the_holdout_has_a_row_with_its_source_and_losses(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    table = evaluate_records(model, tokenizer, HOLDOUT, ScoreSettings(system=SYSTEM), "evaluate")
    assert table.schema == tables.EVALUATIONS
    rows = table.to_pylist()
    assert [(row["id"], row["source"]) for row in rows] == [(record.id, record.source) for record in HOLDOUT]
    for record, row in zip(HOLDOUT[:3], rows, strict=False):
        losses = token_losses(record, model, tokenizer)
        assert row["tokens"] == len(losses)
        assert row["nll_conditional"] == pytest.approx(sum(losses) / len(losses), abs=2e-6)
        assert row["complexity"] == pytest.approx(math.exp(row["nll_conditional"] - row["nll_unconditional"]))
    assert [rows[3][name] for name in ("nll_conditional", "nll_unconditional", "complexity")] == [None] * 3


def holdout_rows(*rows: tuple[str, int, float | None]) -> pa.Table:
    """tables.EVALUATIONS of (source, tokens, loss); a loss of None is an unscorable record."""
    columns = ("nll_conditional", "nll_unconditional", "complexity")
    content = [
        {"id": str(index), "source": source, "tokens": tokens, **dict.fromkeys(columns, loss)}
        for index, (source, tokens, loss) in enumerate(rows)
    ]
    return pa.Table.from_pylist(content, schema=tables.EVALUATIONS)


def test_the_means_have_intervals_overall_and_per_source() -> None:
    rows = [("a", 10, 1.0), ("a", 10, 2.0), ("a", 10, 3.0), ("b", 30, 2.0), ("c", 4, None)]
    metrics = summarize(holdout_rows(*rows))
    assert metrics.loss == 2.0
    assert metrics.loss_low is not None
    assert metrics.loss_high is not None
    assert (metrics.loss_low + metrics.loss_high) / 2 == pytest.approx(2.0)
    expected = stats.ttest_1samp([1.0, 2.0, 3.0], 0).confidence_interval(0.95)
    of_a = metrics.sources["a"]
    assert (of_a.records, of_a.loss) == (3, 2.0)
    assert (of_a.loss_low, of_a.loss_high) == (
        pytest.approx(expected.low, abs=1e-6),
        pytest.approx(expected.high, abs=1e-6),
    )
    assert asdict(metrics.sources["b"]) == {"records": 1, "loss": 2.0, "loss_low": None, "loss_high": None}
    assert list(metrics.sources) == ["a", "b"]
    complexity = stats.ttest_1samp([1.0, 2.0, 3.0, 2.0], 0).confidence_interval(0.95)
    assert metrics.mean_complexity_low == pytest.approx(complexity.low, abs=1e-6)
    assert metrics.mean_complexity_high == pytest.approx(complexity.high, abs=1e-6)


def test_a_holdout_without_a_scorable_record_is_an_error(loaded: tuple[Any, Any]) -> None:
    scores = score_records(HOLDOUT[3:], *loaded, max_length=512, batch_tokens=4096, system=SYSTEM)
    with pytest.raises(UserError, match="no record of the holdout can be scored"):
        summarize(evaluation_table(HOLDOUT[3:], scores))


def test_samples_are_greedy_and_independent_of_the_others_in_the_batch(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    model.generation_config.do_sample = True  # the model's own generation configuration must have no effect
    model.generation_config.temperature = 5.0
    samples = generate_samples(HOLDOUT[:3], model, tokenizer, system=SYSTEM, max_length=512, sample_tokens=12)
    assert [sample.id for sample in samples] == [record.id for record in HOLDOUT[:3]]
    assert [sample.reference for sample in samples] == [record.response for record in HOLDOUT[:3]]
    for record, sample in zip(HOLDOUT, samples, strict=False):
        ids = encode_prompts([record], tokenizer, system=SYSTEM)[0]
        start = len(ids)
        for _ in range(12):
            with torch.inference_mode():
                best = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            ids = [*ids, best]
            if best == tokenizer.eos_token_id:
                break
        assert sample.generated == tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_without_records_no_sample_is_generated(loaded: tuple[Any, Any]) -> None:
    assert generate_samples([], *loaded, system=SYSTEM, max_length=512, sample_tokens=12) == []


def test_rouge_l_is_that_of_its_definition() -> None:
    # "the cat sat on the mat" and "the mat sat": the longest common subsequence is "the ... mat" or "the sat"
    precision, recall = 2 / 3, 2 / 6
    expected = 2 * precision * recall / (precision + recall)
    values = rouge_l(["The cat sat on the mat.", "One", "Jumping", "Да."], ["the mat sat", "two", "jumps", "Да."])
    assert values[:3] == [pytest.approx(expected), 0.0, 1.0]  # stemmed: jump
    assert values[3] is None, "a script without the letters a to z has no words for it"
    assert rouge_l(["One"], [None]) == [None]


def test_answers_are_greedy_in_any_batch_and_have_rouge_l_with_its_interval(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    score, settings = ScoreSettings(system=SYSTEM), EvaluateSettings(rouge=3, rouge_tokens=8)
    first = first_records(HOLDOUT[:3], settings.rouge)
    assert [record.id for record in first] == sorted(record.id for record in HOLDOUT[:3])
    answers = answer_records(first, *loaded, score, settings)
    assert answers.schema == tables.ANSWERS
    samples = [generate_samples([one], *loaded, system=SYSTEM, max_length=512, sample_tokens=8)[0] for one in first]
    assert answers["answer"].to_pylist() == [sample.generated for sample in samples]
    expected = rouge_l([record.response for record in first], [sample.generated for sample in samples])
    assert answers["rouge_l"].to_pylist() == expected
    monkeypatch.setattr("components.evaluation.rouge.AT_ONCE", 1)
    assert answer_records(first, *loaded, score, settings) == answers
    values = [0.2, 0.4, 0.9]
    columns = {"id": list("abcd"), "source": ["s"] * 4, "answer": ["x"] * 4, "rouge_l": [*values, None]}
    metrics = summarize_answers(pa.table(columns, schema=tables.ANSWERS))
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (metrics.records, metrics.unscorable, metrics.rouge_l) == (4, 1, 0.5)
    assert metrics.rouge_l_low == pytest.approx(interval.low, abs=1e-6)
    assert metrics.rouge_l_high == pytest.approx(interval.high, abs=1e-6)
    columns["rouge_l"] = [None] * 4
    with pytest.raises(UserError, match=r"^params.yaml: evaluate.rouge: 4 responses of the holdout have no word"):
        summarize_answers(pa.table(columns, schema=tables.ANSWERS))
