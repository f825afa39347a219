"""Fine-tuning against a plain Trainer: batches of one record, padded to max_length.

The stage itself, DeepSpeed and all, beside transformers.Trainer as it comes, over the same records with the same
threads, in turns and in processes of their own. Rates are real tokens (no padding) per second of the optimizer steps,
the first, which warms up, among them.

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
from components.core.process import quiet_environment
from components.data.records import Record, write_records

TURNS = 3
PROJECT = Path(__file__).parent.parent


def the_stage(folder: Path, records: Sequence[Record], *, deterministic: bool = True) -> dict[str, Any]:
    """Run the stage over `records` in a project folder of its own; what it says of its speed."""
    place = Path(tempfile.mkdtemp(dir=folder))
    for name in ("components", "conf"):
        (place / name).symlink_to(PROJECT / name)
    params = read_params(PROJECT / "params.yaml")
    params["finetune"]["deterministic"] = deterministic
    YAML().dump(params, place / "params.yaml")
    (place / "models").mkdir()
    (place / "models/base").symlink_to((folder / "base").resolve())
    write_records(place / "subset.parquet", records)
    write_json(place / "state/base/progress.json", {"step": 0, "steps_per_iteration": None})
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
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    subprocess.run([sys.executable, "-m", "components.finetune", *words], cwd=place, check=True, stderr=subprocess.PIPE)
    found: dict[str, Any] = read_json(place / ".iterit/throughput/finetune@1.json")
    shutil.rmtree(place)
    return found


def warm_share(told: dict[str, Any]) -> float:
    """The share of the GEMM rate once memory is warm: of the median step in the later half."""
    rates = list(told["steps"].values())
    warm: float = told["share_of_gemm"] * statistics.median(rates[len(rates) // 2 :]) / told["tokens_per_second"]
    return warm


def plain_trainer(folder: Path, records: Sequence[Record], batch_size: int, max_length: int) -> float:
    """Real tokens per second of transformers.Trainer, one padded record a forward pass."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        rate = pool.apply(_plain_trainer, (str(folder / "base"), list(records), batch_size, max_length))
        pool.close()
        pool.join()
    return rate


def _plain_trainer(model: str, records: Sequence[Record], batch_size: int, max_length: int) -> float:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
    from transformers.utils.logging import disable_progress_bar

    from components.model.chat import encode_conditional

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = encode_conditional(records, tokenizer, system="You are a helpful assistant.", max_length=max_length)
    rows = []
    for text in texts:
        padding = max_length - len(text.ids)
        rows.append(
            {
                "input_ids": torch.tensor([*text.ids, *[0] * padding]),
                "attention_mask": torch.tensor([1] * len(text.ids) + [0] * padding),
                "labels": torch.tensor([-100] * text.start + text.ids[text.start :] + [-100] * padding),
            }
        )
    seconds: list[float] = []

    class Clock(TrainerCallback):
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
        Trainer(model=loaded, args=arguments, train_dataset=rows, callbacks=[Clock()]).train()
    return sum(len(text.ids) for text in texts) / sum(seconds)


def run(model: Path, records: Sequence[Record], turns: int = TURNS) -> list[Row]:
    """Tokens per second of both, and ours as a share of the machine's GEMM rate."""
    settings = load_settings(PROJECT / "params.yaml").finetune
    ours, free, plain = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "base").symlink_to(model.resolve())
        for _ in range(turns):
            ours.append(the_stage(folder, records))
            free.append(the_stage(folder, records, deterministic=False))
            plain.append(plain_trainer(folder, records, settings.batch_size, settings.max_length))
    of = f"fine-tune, {len(records)} records"
    return [
        Row(
            f"{of}: against transformers.Trainer with batches of one padded record",
            statistics.median(one["tokens_per_second"] for one in ours),
            statistics.median(plain),
            "tokens/s",
            "1.5 times",
        ),
        Row(
            f"{of}: with deterministic algorithms against without",
            statistics.median(one["tokens_per_second"] for one in ours),
            statistics.median(one["tokens_per_second"] for one in free),
            "tokens/s",
            "",
        ),
        Row(
            f"{of}: useful operations over the machine's GEMM rate",
            statistics.median(one["share_of_gemm"] for one in ours),
            None,
            "",
            "0.6",
        ),
        Row(
            f"{of}: the same in the later half of the steps", statistics.median(map(warm_share, ours)), None, "", "0.6"
        ),
        Row(f"{of}: peak memory", max(one["peak_memory_bytes"] for one in ours) / 2**30, None, "GiB", ""),
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
