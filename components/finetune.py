"""Stage `finetune@N`: trains one pass over the subset, continuing where the parent iteration stopped.

The model, the optimizer's moments, the position in the learning-rate schedule and the random state come from the
parent, so that N iterations in N stages are one continuous training (components/training/).

    python -m components.finetune --iteration 2 --subset data/iterations/2/subset.parquet
        --parent-model models/1 --parent-state state/1 --model models/2 --state state/2 ...

With finetune.processes > 1 the stage starts that many workers of itself through torchrun, or through DeepSpeed's
launcher on the machines of a hostfile. A killed stage resumes from its last checkpoint (finetune.save_steps).
"""

from __future__ import annotations

import argparse
import math
import os
import resource
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.core.files import publish_folder, read_json, write_csv, write_json
from components.core.launch import init_single_process, launch_workers, worker
from components.core.params import load_settings
from components.core.paths import scratch_folder, throughput_file
from components.core.settings.finetune import FinetuneSettings
from components.core.settings.pipeline import Settings
from components.core.stage import stage, stage_name
from components.data import tables
from components.data.records import read_records
from components.provenance.digests import cached_digest, file_digest, folder_digest
from components.provenance.statements import statement_of
from components.training.checkpoint import build_model, build_trainer_state, make_readable, model_card
from components.training.deepspeed import CONFIGS, check_precision, prepare_deepspeed
from components.training.resume import (
    Step,
    explain_full_disk,
    last_checkpoint,
    prepare_scratch,
    read_steps,
    remove_scratch,
)
from components.training.state import Progress, prune_trainer_states, read_progress, store_trainer_state

if TYPE_CHECKING:
    from components.training.batches import Example  # imports torch

TRAINED = "trained.json"  # in the scratch folder: the first worker's report


@dataclass(frozen=True, slots=True)
class Trained:
    """The first worker's report of the whole training; the peak memory is its own."""

    records: int
    tokens: int
    operations: float
    """Useful floating-point operations of all steps."""
    gemm: float
    """Operations per second of matrix products, of all processes together."""
    peak_memory_bytes: int
    peak_gpu_memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class TrainingMetrics:
    """The content of metrics/finetune/N.json; losses are in nats per token."""

    records: int
    tokens: int
    steps: int
    training_loss: float
    """Mean over the steps."""
    first_loss: float
    last_loss: float
    learning_rate: float
    """Of the last step."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """The speed of the training on this machine; only in MLflow, because it differs from run to run."""

    tokens_per_second: float
    share_of_gemm: float
    """Useful operations per second over those of matrix products."""
    peak_memory_bytes: int
    steps: Mapping[int, float]
    """Step -> tokens per second."""
    peak_gpu_memory_bytes: int | None = None


def identity(options: argparse.Namespace, settings: Settings) -> Mapping[str, Any]:
    """Everything that must be the same for a training to resume from a checkpoint."""
    here = Path(__file__).parent
    return {
        "subset": file_digest(options.subset),
        "parent_model": cached_digest(options.parent_model),
        "parent_state": asdict(read_progress(options.parent_state)),
        "settings": {
            **settings.finetune.model_dump(),
            **{key: getattr(settings.score, key) for key in ("system", "template", "template_date")},
        },
        "config": file_digest(CONFIGS / f"{settings.finetune.deepspeed}.json"),
        "code": [file_digest(Path(__file__)), *(folder_digest(here / room) for room in ("data", "model", "training"))],
        "versions": {name: version(name) for name in ("torch", "transformers", "deepspeed", "accelerate")},
    }


def train(options: argparse.Namespace, settings: Settings, scratch: Path) -> None:
    """Train in this process or in workers, which leave Trainer's checkpoint and the log of its steps in `scratch`."""
    if settings.finetune.processes > 1:
        launch_workers("components.finetune", settings.finetune.processes, settings.finetune.hostfile, scratch)
    else:
        init_single_process()
        run_worker(options, settings, scratch)


def run_worker(options: argparse.Namespace, settings: Settings, scratch: Path) -> None:
    """Train as one of the training processes; the first of them writes its report to `scratch`."""
    prepare_deepspeed()
    import torch

    from components.model.chat import pin_date
    from components.training.iteration import encode_subset, train_iteration

    finetune, what = settings.finetune, stage_name("finetune", options.iteration)
    model, tokenizer = load_trainable(options.parent_model, finetune)
    pin_date(tokenizer, settings.score.template_date)
    examples = encode_subset(
        read_records(options.subset),
        tokenizer,
        finetune,
        system=settings.score.system,
        template=settings.score.template,
        iteration=int(options.iteration),
    )
    operations = training_operations(examples, model, finetune)  # before ZeRO-3 shards the weights
    train_iteration(examples, model, finetune, parent_state=options.parent_state, scratch=scratch, what=what)
    torch.distributed.destroy_process_group()  # a process whose threads outlive Python may end with SIGABRT
    if int(os.environ["RANK"]) == 0:
        write_json(scratch / TRAINED, asdict(report(examples, operations, finetune)))


def load_trainable(folder: Path, settings: FinetuneSettings) -> tuple[Any, Any]:
    """The model to train, with an adapter where finetune.lora asks for one, and the tokenizer."""
    from components.model.load import load_model
    from components.training.lora import load_with_adapter

    if settings.lora is None:
        return load_model(folder, settings.dtype)
    return load_with_adapter(folder, settings.lora, settings.dtype)


def training_operations(examples: Sequence[Example], model: Any, settings: FinetuneSettings) -> int:
    """Useful floating-point operations of a pass over the examples."""
    from components.model.throughput import forward_operations

    records = [example for example in examples if example.weight]
    tokens = sum(len(example.ids) for example in records)
    scored = sum(len(example.ids) - example.start for example in records)
    passes = 3 if settings.lora is None else 2  # forward, gradients of activations and, unless frozen, of weights
    return passes * forward_operations(model, tokens, scored)


def report(examples: Sequence[Example], operations: int, settings: FinetuneSettings) -> Trained:
    """The report of the process that calls."""
    import torch

    from components.model.throughput import measure_gemm

    has_gpu = torch.cuda.is_available()
    records = [example for example in examples if example.weight]
    return Trained(
        records=len(records),
        tokens=sum(len(example.ids) for example in records),
        operations=operations,
        gemm=settings.processes * measure_gemm("cuda" if has_gpu else "cpu", settings.dtype),
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        peak_gpu_memory_bytes=torch.cuda.max_memory_allocated() if has_gpu else None,
    )


def publish(options: argparse.Namespace, settings: FinetuneSettings, scratch: Path) -> None:
    """Write the stage's outputs from what the training left in `scratch`, which a repetition finds as it was."""
    trained, steps = Trained(**read_json(scratch / TRAINED)), read_steps(scratch)
    before, checkpoint = read_progress(options.parent_state), last_checkpoint(scratch)
    after = Progress(
        before.step + len(steps), before.steps_per_iteration or len(steps), settings.processes, settings.deepspeed
    )
    assert checkpoint and checkpoint.name == f"checkpoint-{after.step}"
    model, state, trainer_state = scratch / "model", scratch / "state", scratch / "trainer_state"
    build_model(checkpoint, options.parent_model, model, lora=settings.lora is not None)
    card = model_card(options.iteration, options.parent_model.name, options.subset, trained.records, steps)
    (model / "README.md").write_text(card, encoding="utf-8")
    build_trainer_state(checkpoint, trainer_state)
    store_trainer_state(trainer_state, state, after, keep_all=settings.keep_states == "all")
    make_readable(model)
    make_readable(state)
    write_csv(options.steps, tables.STEPS.names, ({**asdict(step), "iteration": options.iteration} for step in steps))
    write_json(options.metrics, asdict(training_metrics(trained, steps)))
    speed = asdict(throughput(trained, steps))
    write_json(
        throughput_file(stage_name("finetune", options.iteration)),
        {name: value for name, value in speed.items() if value is not None},
    )
    publish_folder(state, options.state)
    publish_folder(model, options.model)


def training_metrics(trained: Trained, steps: Sequence[Step]) -> TrainingMetrics:
    """The metrics of a whole training."""
    losses = [step.loss for step in steps]
    return TrainingMetrics(
        records=trained.records,
        tokens=trained.tokens,
        steps=len(steps),
        training_loss=math.fsum(losses) / len(losses),
        first_loss=losses[0],
        last_loss=losses[-1],
        learning_rate=steps[-1].learning_rate,
    )


def throughput(trained: Trained, steps: Sequence[Step]) -> Throughput:
    """The speed of a whole training."""
    seconds = math.fsum(step.seconds for step in steps)
    return Throughput(
        tokens_per_second=trained.tokens / seconds,
        share_of_gemm=trained.operations / seconds / trained.gemm,
        peak_memory_bytes=trained.peak_memory_bytes,
        peak_gpu_memory_bytes=trained.peak_gpu_memory_bytes,
        steps={step.step: step.tokens_per_second for step in steps},
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m components.finetune", description="Train one pass over the subset."
    )
    parser.add_argument("--iteration", required=True)
    for name in ("subset", "parent-model", "parent-state", "model", "state", "steps", "metrics"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    # added by DeepSpeed's launcher
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    scratch = scratch_folder(stage_name("finetune", options.iteration))
    if options.worker:
        with worker(scratch):
            run_worker(options, load_settings(), scratch)
        return
    with stage("finetune", options.iteration) as running, statement_of(running.name):
        settings = load_settings()
        check_precision(settings.finetune.deepspeed, settings.finetune.dtype)
        prune_trainer_states(options.parent_state)
        saved = prepare_scratch(scratch, identity(options, settings))
        resumed = len(read_steps(scratch))
        if saved:
            print(f"{running.name}: going on after {saved.name}", flush=True)
        train(options, settings, scratch)
        running.arithmetic.seconds = math.fsum(step.seconds for step in read_steps(scratch)[resumed:])
        with explain_full_disk(scratch):
            publish(options, settings.finetune, scratch)
    remove_scratch(scratch)


if __name__ == "__main__":
    main()
