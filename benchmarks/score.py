"""Scoring against a plain loop: batches of 8 in pool order, whole logits, two passes.

Both read the same token ids with the same model, threads and dtype, in turns, so that what else the machine does
meets both. Rates are over the median turn; the machine's GEMM rate is measured between the turns.

    python -m benchmarks.score --model models/base --alpaca FILE --records 96
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components import score
from components.records import Message, Record, make_record
from components.stage import quiet_environment
from components.throughput import forward_operations, measure_gemm

SETTINGS = {"system": "You are a helpful assistant.", "template": "chat"}
MAX_LENGTH, BATCH_TOKENS = 512, 2048
PLAIN_BATCH = 8
TURNS = 3


def read_alpaca(file: Path, count: int) -> list[Record]:
    """The first `count` records of an Alpaca file that have a response."""
    rows = json.loads(file.read_text(encoding="utf-8"))
    records = []
    for row in rows:
        prompt = f"{row['instruction']}\nInput: {row['input']}" if row.get("input") else row["instruction"]
        if row["output"].strip() and prompt.strip():
            records.append(make_record("alpaca", [Message("user", prompt), Message("assistant", row["output"])]))
    return records[:count]


def plain_loop(pairs: Sequence[tuple[score.Text, score.Text]], model: Any) -> np.ndarray:
    """Mean loss of both texts of each pair, from the formula; nats per token, shape (pairs, 2)."""
    import torch

    columns = []
    for side in (0, 1):
        means = []
        for first in range(0, len(pairs), PLAIN_BATCH):
            texts = [pair[side] for pair in pairs[first : first + PLAIN_BATCH]]
            longest = max(len(text.ids) for text in texts)
            ids = torch.zeros(len(texts), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, text in enumerate(texts):
                ids[row, : len(text.ids)] = torch.tensor(text.ids)
                mask[row, : len(text.ids)] = 1
            with torch.inference_mode():
                logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
                losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            means += [
                losses[row, text.start - 1 : len(text.ids) - 1].double().mean().item() for row, text in enumerate(texts)
            ]
        columns.append(means)
    return np.array(columns).T


def complexity(losses: np.ndarray) -> np.ndarray:
    """exp(conditional - unconditional) of each record."""
    ratios: np.ndarray = np.exp(losses[:, 0] - losses[:, 1])
    return ratios


def run(model_folder: Path, records: Sequence[Record], turns: int = TURNS) -> dict[str, float]:
    """Records per second of both, their ratio, ours as a share of the GEMM rate, and the largest difference."""
    model, tokenizer = score.load_model(model_folder, "float32")
    reader = score.make_reader(model, tokenizer, **SETTINGS)
    pairs = score.encode_pairs(records, tokenizer, max_length=MAX_LENGTH, **SETTINGS)
    tokens = sum(len(text.ids) for pair in pairs for text in pair)
    scored = sum(text.scored for pair in pairs for text in pair)
    operations = forward_operations(model, tokens, scored)
    ours, plain, gemm = [], [], [measure_gemm("cpu", "float32")]
    score.read_pairs(pairs[:8], reader, batch_tokens=BATCH_TOKENS)  # the first pages of memory are nobody's
    for _ in range(turns):
        begun = time.perf_counter()
        mine = score.read_pairs(pairs, reader, batch_tokens=BATCH_TOKENS)
        ours.append(time.perf_counter() - begun)
        gemm.append(measure_gemm("cpu", "float32"))
        begun = time.perf_counter()
        theirs = plain_loop(pairs, model)
        plain.append(time.perf_counter() - begun)
        gemm.append(measure_gemm("cpu", "float32"))
    seconds, rate = statistics.median(ours), statistics.median(gemm)
    return {
        "records_per_second": len(records) / seconds,
        "plain_records_per_second": len(records) / statistics.median(plain),
        "ratio": statistics.median(one / other for one, other in zip(plain, ours, strict=True)),
        "gemm_gflops": rate / 1e9,
        "share_of_gemm": operations / seconds / rate,
        "largest_difference": float(np.abs(complexity(mine) - complexity(theirs)).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.score", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--alpaca", type=Path, required=True)
    parser.add_argument("--records", type=int, default=96)
    parser.add_argument("--turns", type=int, default=TURNS)
    options = parser.parse_args()
    quiet_environment()
    for name, value in run(options.model, read_alpaca(options.alpaca, options.records), options.turns).items():
        print(f"{name:28} {value:.6g}")


if __name__ == "__main__":
    main()
