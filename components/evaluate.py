"""A model on the holdout: loss and perplexity of the reference responses, their complexity, and a few generated ones.

    loss              mean over all response tokens of the holdout of -log p(y_t | x, y_<t)     nats per token
    perplexity        exp(loss)
    mean_complexity   mean of the records' complexity (components/score.py)

Loss and perplexity weigh every token alike, complexity every record alike. A record that is unscorable counts in
neither. Samples are generated greedily for the first holdout records by id, the same ones in every iteration.

    python -m components.evaluate --iteration base --holdout data/holdout.parquet --model models/base ...
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa

from components import preloaded, tables
from components.chat import encode_prompts
from components.digests import known_digest
from components.errors import UserError
from components.model import load_model
from components.progress import progress
from components.records import Record, read_records
from components.score import UNTIMED, score_records
from components.settings import ScoreSettings, load_settings
from components.stage import stage


def summarize(scores: pa.Table) -> dict[str, Any]:
    """The numbers of metrics/evaluate/N.json, from tables.SCORES of the holdout."""
    scorable = [row for row in scores.to_pylist() if row["complexity"] is not None]
    if not scorable:
        raise UserError("data/holdout.parquet: no record of the holdout can be scored; see dedupe.holdout_share")
    tokens = sum(row["response_tokens"] for row in scorable)
    loss = math.fsum(row["nll_conditional"] * row["response_tokens"] for row in scorable) / tokens
    misaligned = sum(row["complexity"] >= 1 for row in scorable)
    return {
        "records": scores.num_rows,
        "unscorable": scores.num_rows - len(scorable),
        "tokens": tokens,
        "loss": round(loss, 6),
        "perplexity": round(math.exp(loss), 6),
        "mean_complexity": round(math.fsum(row["complexity"] for row in scorable) / len(scorable), 6),
        "misaligned_share": round(misaligned / len(scorable), 6),
    }


def generate_samples(
    records: Sequence[Record], model: Any, tokenizer: Any, *, system: str, max_length: int, sample_tokens: int
) -> list[dict[str, str]]:
    """For each record its id, prompt, reference response and a greedy response of at most `sample_tokens` tokens."""
    import torch
    from transformers import GenerationConfig

    if not records:
        return []
    # the end of a prompt that is too long is what the response answers
    prompts = [ids[-max_length:] for ids in encode_prompts(records, tokenizer, system=system)]
    width = max(len(ids) for ids in prompts)
    padding = next(token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None)
    # on the left, so that generation goes on from the prompt's last token; the mask comes from lengths
    ids = torch.tensor([[padding] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    ends = {tokenizer.eos_token_id, *_as_list(model.generation_config.eos_token_id)} - {None}
    # a configuration of its own: the model's may ask for sampling
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=sample_tokens, pad_token_id=padding, eos_token_id=sorted(ends) or None
    )
    model.generation_config = greedy
    with torch.inference_mode():
        output = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
    texts = tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
    return [
        {"id": record.id, "prompt": record.prompt, "reference": record.response, "generated": text}
        for record, text in zip(records, texts, strict=True)
    ]


def _as_list(token: int | list[int] | None) -> list[int | None]:
    return list(token) if isinstance(token, list) else [token]


def measure(
    model: Any,
    tokenizer: Any,
    holdout: Sequence[Record],
    settings: ScoreSettings,
    what: str,
    arithmetic: AbstractContextManager[object] = UNTIMED,
) -> dict[str, Any]:
    """The numbers of a loaded model on the holdout."""
    with progress(total=len(holdout), unit="records", what=what) as advance:
        scores = score_records(
            holdout,
            model,
            tokenizer,
            max_length=settings.max_length,
            batch_tokens=settings.batch_tokens,
            system=settings.system,
            template=settings.template,
            advance=advance,
            arithmetic=arithmetic,
        )
    return summarize(scores)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m components.evaluate", description="Evaluate a model on the holdout."
    )
    parser.add_argument("--iteration", required=True, help="base, or the iteration that made the model")
    parser.add_argument("--holdout", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    options = parser.parse_args()
    is_base = options.iteration == "base"
    with stage("evaluate_base" if is_base else "evaluate", None if is_base else options.iteration) as arithmetic:
        settings = load_settings()
        holdout = read_records(options.holdout)
        digest = known_digest(options.model)
        model, tokenizer = load_model(options.model, settings.score.dtype)
        metrics = measure(model, tokenizer, holdout, settings.score, f"evaluate {options.model}", arithmetic)
        with arithmetic:
            samples = generate_samples(
                sorted(holdout, key=lambda record: record.id)[: settings.evaluate.samples],
                model,
                tokenizer,
                system=settings.score.system,
                max_length=settings.score.max_length,
                sample_tokens=settings.evaluate.sample_tokens,
            )
        tables.write_json(options.samples, {"checkpoint": digest, "samples": samples})
        tables.write_json(options.metrics, {"checkpoint": digest, **metrics})
        print(
            f"evaluate {options.model}: {metrics['records']} records, loss {metrics['loss']}, "
            f"perplexity {metrics['perplexity']}, mean complexity {metrics['mean_complexity']}"
        )


if __name__ == "__main__":
    preloaded.run("components.evaluate", main)
