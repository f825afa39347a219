"""Fine-tuning against a plain Trainer: batches of one record, padded to max_length.

The whole stage, DeepSpeed included, against transformers.Trainer with its defaults, over the same records with the
same threads, in alternate turns and separate processes. Rates are real tokens (no padding) per second of optimizer
steps, the first one included, which warms up.

    python -m benchmarks.finetune --model models/base --alpaca FILE --records 16
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.corpus import read_alpaca, spread
from benchmarks.report import Row
from components.core.files import read_json, write_json
from components.core.params import load_settings, read_params
from components.core.paths import PARAMS, throughput_file
from components.core.process import quiet_environment
from components.data.records import Record, write_records
from components.finetune import Throughput
from components.model.chat import Encoded, encode_conditional

TURNS = 3
PROJECT = Path(__file__).parent.parent


def run_stage(folder: Path, records: Sequence[Record], *, deterministic: bool = True) -> Throughput:
    """Run the stage over `records` in a new project folder, from the model `folder`/base."""
    project = Path(tempfile.mkdtemp(dir=folder))
    for name in ("components", "conf"):
        (project / name).symlink_to(PROJECT / name)
    params = read_params(PROJECT / PARAMS)
    params["finetune"]["deterministic"] = deterministic
    YAML().dump(params, project / PARAMS)
    (project / "models").mkdir()
    (project / "models/base").symlink_to((folder / "base").resolve())
    write_records(project / "subset.parquet", records)
    write_json(project / "state/base/progress.json", {"step": 0, "steps_per_iteration": None})
    options = {
        "iteration": "1",
        "subset": "subset.parquet",
        "parent-model": "models/base",
        "parent-state": "state/base",
        "model": "models/1",
        "state": "state/1",
        "steps": "steps.csv",
        "metrics": "metrics.json",
    }
    command = [sys.executable, "-m", "components.finetune", *(f"--{name}={value}" for name, value in options.items())]
    subprocess.run(command, cwd=project, check=True, stderr=subprocess.PIPE)
    throughput = Throughput(**read_json(project / throughput_file("finetune@1")))
    shutil.rmtree(project)
    return throughput


def warm_share(measured: Throughput) -> float:
    """The share of the GEMM rate in the median step of the later half, when memory has been touched."""
    rates = list(measured.steps.values())
    return measured.share_of_gemm * statistics.median(rates[len(rates) // 2 :]) / measured.tokens_per_second


def plain_trainer(folder: Path, records: Sequence[Record], batch_size: int, max_length: int) -> float:
    """Real tokens per second of transformers.Trainer, one padded record per forward pass."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        rate = pool.apply(_plain_trainer, (str(folder / "base"), list(records), batch_size, max_length))
        pool.close()
        pool.join()
    return rate


def _plain_trainer(model: str, records: Sequence[Record], batch_size: int, max_length: int) -> float:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = encode_conditional(records, tokenizer, system="You are a helpful assistant.", max_length=max_length)
    seconds: list[float] = []

    class StepTimer(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            seconds.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds[-1] += time.perf_counter()

    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=batch_size,
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        rows = [_padded_row(text, max_length) for text in texts]
        Trainer(model=loaded, args=arguments, train_dataset=rows, callbacks=[StepTimer()]).train()
    return sum(len(text.ids) for text in texts) / sum(seconds)


def _padded_row(text: Encoded, length: int) -> dict[str, Any]:
    import torch

    padding = length - len(text.ids)
    return {
        "input_ids": torch.tensor([*text.ids, *[0] * padding]),
        "attention_mask": torch.tensor([1] * len(text.ids) + [0] * padding),
        "labels": torch.tensor([-100] * text.start + text.ids[text.start :] + [-100] * padding),
    }


def run(model: Path, records: Sequence[Record], turns: int = TURNS) -> list[Row]:
    """Tokens per second of both, and the stage's share of the machine's GEMM rate."""
    settings = load_settings(PROJECT / PARAMS).finetune
    deterministic, free, plain = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "base").symlink_to(model.resolve())
        for _ in range(turns):
            deterministic.append(run_stage(folder, records))
            free.append(run_stage(folder, records, deterministic=False))
            plain.append(plain_trainer(folder, records, settings.batch_size, settings.max_length))
    title = f"fine-tune, {len(records)} records"
    rate = statistics.median(turn.tokens_per_second for turn in deterministic)
    share = statistics.median(turn.share_of_gemm for turn in deterministic)
    peak = max(turn.peak_memory_bytes for turn in deterministic)
    return [
        Row(
            f"{title}: against transformers.Trainer with batches of one padded record",
            rate,
            statistics.median(plain),
            "tokens/s",
            "1.5 times",
        ),
        Row(
            f"{title}: with deterministic algorithms against without",
            rate,
            statistics.median(turn.tokens_per_second for turn in free),
            "tokens/s",
            "",
        ),
        Row(f"{title}: useful operations over the machine's GEMM rate", share, None, "", "0.6"),
        Row(
            f"{title}: the same in the later half of the steps",
            statistics.median(map(warm_share, deterministic)),
            None,
            "",
            "0.6",
        ),
        Row(f"{title}: peak memory", peak / 2**30, None, "GiB", ""),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finetune", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--alpaca", type=Path, required=True)
    parser.add_argument("--records", type=int, default=16)
    parser.add_argument("--turns", type=int, default=TURNS)
    options = parser.parse_args()
    quiet_environment()
    for row in run(options.model, spread(read_alpaca(options.alpaca), options.records), options.turns):
        print(row)


if __name__ == "__main__":
    main()
