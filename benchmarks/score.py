"""Scoring against a plain loop: batches of 8 in pool order, whole logits, two passes.

Both score the same token ids with the same model, threads and dtype, each in a separate process and in alternate turns,
so that other work on the machine affects both. Figures are medians; the GEMM rate is measured between the turns.

    python -m benchmarks.score --model models/base --alpaca FILE --records 96
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpus import read_alpaca, spread
from benchmarks.report import Row
from components.core.process import quiet_environment
from components.data.records import Record
from components.model.load import load_model, prepack_linear_layers
from components.model.throughput import forward_operations, measure_gemm
from components.scoring.ifd import encode_pairs
from components.scoring.losses import Text, make_scorer, measure_pairs

SETTINGS = {"system": "You are a helpful assistant.", "template": "chat"}
MAX_LENGTH, BATCH_TOKENS = 512, 2048
PLAIN_BATCH = 8
TURNS = 3


def plain_loop(pairs: Sequence[tuple[Text, Text]], model: Any) -> np.ndarray:
    """Mean loss of both texts of each pair by the formula: nats per token, shape (pairs, 2)."""
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


def _measure(method: str, folder: Path, dtype: str, pairs: Sequence[tuple[Text, Text]], pipe: Any) -> None:
    """A method's process; separate ones, so that neither uses memory that the other has already touched."""
    if method == "ours":
        model, tokenizer = load_model(folder, dtype)
        prepack_linear_layers(model)
        scorer = make_scorer(model, tokenizer, **SETTINGS)
        score = partial(measure_pairs, pairs, scorer, batch_tokens=BATCH_TOKENS)
    else:
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        score = partial(plain_loop, pairs, model)
    while pipe.recv():
        started = time.perf_counter()
        losses = score()
        pipe.send((time.perf_counter() - started, losses))


@dataclass(frozen=True, slots=True)
class Turns:
    """Seconds of each turn, by method, and what was measured beside them."""

    ours: list[float]
    plain: list[float]
    gemm: list[float]
    """Operations per second of matrix products."""
    difference: float
    """The largest of a complexity."""


def take_turns(folder: Path, pairs: Sequence[tuple[Text, Text]], dtype: str, turns: int) -> Turns:
    """Run both methods alternately; a first turn warms up and is not counted."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for method in ("ours", "plain"):
        pipes[method], end = context.Pipe()
        context.Process(target=_measure, args=(method, folder, dtype, pairs, end), daemon=True).start()
    seconds: dict[str, list[float]] = {method: [] for method in pipes}
    losses, gemm = {}, []
    for turn in range(turns + 1):
        for method, pipe in pipes.items():
            gemm.append(measure_gemm("cpu", dtype))
            pipe.send(True)
            elapsed, losses[method] = pipe.recv()
            if turn:
                seconds[method].append(elapsed)
    for pipe in pipes.values():
        pipe.send(False)
    difference = float(np.abs(complexity(losses["ours"]) - complexity(losses["plain"])).max())
    return Turns(seconds["ours"], seconds["plain"], gemm, difference)


def run(folder: Path, records: Sequence[Record], dtype: str = "float32", turns: int = TURNS) -> list[Row]:
    """Records per second of both, the share of the GEMM rate, and the largest difference."""
    model, tokenizer = load_model(folder, dtype)
    pairs = encode_pairs(records, tokenizer, max_length=MAX_LENGTH, **SETTINGS)
    tokens = sum(len(text.ids) for pair in pairs for text in pair)
    scored = sum(text.scored for pair in pairs for text in pair)
    operations = forward_operations(model, tokens, scored)
    del model
    measured = take_turns(folder, pairs, dtype, turns)
    ours, rate = statistics.median(measured.ours), statistics.median(measured.gemm)
    title = f"score, {len(records)} records in {dtype}"
    return [
        Row(
            f"{title}: against batches of {PLAIN_BATCH} in pool order with whole logits, in two passes",
            len(records) / ours,
            len(records) / statistics.median(measured.plain),
            "records/s",
            "5 times",
        ),
        Row(f"{title}: useful operations over the machine's GEMM rate", operations / ours / rate, None, "", "0.75"),
        Row(f"{title}: the machine's GEMM rate", rate / 1e9, None, "GFLOP/s", ""),
        Row(f"{title}: largest difference of a complexity", measured.difference, None, "", "5e-5 in float32"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.score", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--alpaca", type=Path, required=True)
    parser.add_argument("--records", type=int, default=96)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--turns", type=int, default=TURNS)
    options = parser.parse_args()
    quiet_environment()
    records = spread(read_alpaca(options.alpaca), options.records)
    for row in run(options.model, records, options.dtype, options.turns):
        print(row)


if __name__ == "__main__":
    main()
