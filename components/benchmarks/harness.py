"""Tasks on a model, by lm-evaluation-harness: figures with standard errors, and a value for each document.

The harness computes the figures, and the standard errors of means and of groups. Of the weighted perplexities, for
which it has none, the standard error is the jackknife's over documents (components/evaluation/statistics.py); for
exp(x) it is exp(x) times that of x.

Nothing of it depends on the day, the machine's name or the order of the tasks' names in params.yaml.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import math
import random
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, redirect_stderr
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from components.benchmarks.figures import PER_UNIT, PERPLEXITIES, metric_name
from components.benchmarks.tasks import SEED, LoadedTasks, Task
from components.core.progress import SECONDS_BETWEEN_LINES
from components.core.settings.benchmark import BenchmarkSettings
from components.data import tables
from components.evaluation.statistics import weighted_interval

DIGITS = 6
BOOTSTRAPS = 1000  # resamplings for the standard error of what is no mean over documents, where the harness makes them
TEMPLATE = (
    "description",
    "doc_to_text",
    "doc_to_target",
    "doc_to_choice",
    "target_delimiter",
    "fewshot_delimiter",
    "gen_prefix",
)
PLACES = ("config_source",)  # of a configuration's metadata: a path of this machine


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric of a task or a group."""

    value: float
    standard_error: float | None
    """None where there is none: a single document, or a metric that the harness has no estimate for."""

    def __str__(self) -> str:
        return f"{self.value:.4g}" + ("" if self.standard_error is None else f" ± {self.standard_error:.2g}")


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What is stored of a task."""

    version: str
    config: str
    """SHA-256 of the task's configuration."""
    template: str
    """SHA-256 of the part of it that makes the prompts, and of the chat template, where it is applied."""
    data: str
    """SHA-256 of the documents that were asked."""
    fewshot: int
    documents: int
    metrics: Mapping[str, Figure]


@dataclass(frozen=True, slots=True)
class GroupResult:
    """What is stored of a group: its tasks' figures together."""

    tasks: list[str]
    metrics: Mapping[str, Figure]


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """What metrics/benchmark/N.json holds beside the checkpoint's digest, and the table of documents."""

    harness: str
    tasks: Mapping[str, TaskResult]
    groups: Mapping[str, GroupResult]
    documents: pa.Table
    """tables.BENCHMARKS."""


def run_tasks(
    model: Any,
    tokenizer: Any,
    loaded: LoadedTasks,
    settings: BenchmarkSettings,
    system: str,
    arithmetic: AbstractContextManager[object],
) -> BenchmarkResult:
    """Run the tasks on a model; `system` is the system message where a chat template is applied.

    `arithmetic` is entered while the harness works.
    """
    import numpy as np
    import torch
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(SEED)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size)
    with arithmetic, redirect_stderr(_ProgressLines()):
        results = evaluator.evaluate(
            lm=harness,
            task_dict={"tasks": dict(loaded.tasks), "groups": dict(loaded.groups)},
            limit=settings.limit,
            bootstrap_iters=BOOTSTRAPS,
            system_instruction=system or None if settings.apply_chat_template else None,
            apply_chat_template=settings.apply_chat_template,
            fewshot_as_multiturn=settings.apply_chat_template,
            confirm_run_unsafe_code=settings.allow_code,
        )
    template = tokenizer.chat_template if settings.apply_chat_template else None
    documents = document_table(loaded, results["samples"])
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in documents.to_pylist():
        rows.setdefault(row["task"], []).append(row)
    return BenchmarkResult(
        harness=version("lm_eval"),
        tasks={
            name: _task_result(task, results["results"][name], results["samples"][name], template, rows.get(name, []))
            for name, task in loaded.tasks.items()
        },
        groups={
            name: GroupResult(
                sorted(task.task_name for task in group.get_all_tasks()), _figures(results["groups"][name])
            )
            for name, group in loaded.groups.items()
            if name in results.get("groups", {})
        },
        documents=documents,
    )


class _ProgressLines(io.TextIOBase):
    """The harness's progress bars as a line now and then: a log keeps every state of a bar that is drawn."""

    def __init__(self) -> None:
        self._terminal = sys.stderr
        self._last = time.monotonic()

    def write(self, text: str) -> int:
        state = text.strip()
        if state and time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            print(f"benchmark: {state}", file=self._terminal, flush=True)
        return len(text)


def document_table(loaded: LoadedTasks, samples: Mapping[str, list[dict[str, Any]]]) -> pa.Table:
    """tables.BENCHMARKS from the harness's samples; a metric whose value of a document is no number is left out."""
    rows = []
    for name, task in loaded.tasks.items():
        better = task.higher_is_better()
        for sample in sorted(samples[name], key=lambda sample: (sample["filter"], sample["doc_id"])):
            for metric in sample["metrics"]:
                measured = _value_and_weight(metric, sample[metric])
                if measured is None:
                    continue
                rows.append(
                    {
                        "task": name,
                        "document": sample["doc_id"],
                        "digest": _digest(sample["doc"]),
                        "metric": metric_name(metric, sample["filter"]),
                        "value": measured[0],
                        "weight": measured[1],
                        "higher_is_better": bool(better.get(metric, True)) and metric not in PER_UNIT,
                    }
                )
    return pa.Table.from_pylist(rows, schema=tables.BENCHMARKS)


def _value_and_weight(metric: str, value: Any) -> tuple[float, float] | None:
    """A document's value and its weight in the task's figure; None for what is no number."""
    if metric in PER_UNIT and isinstance(value, tuple | list):
        loglikelihood, units = map(float, value)
        scale = 1.0 if metric in PERPLEXITIES else math.log(2)
        return (-loglikelihood / units / scale, units) if units else None
    if isinstance(value, tuple | list | dict | str):
        return None
    number = float(value)
    return (number, 1.0) if math.isfinite(number) else None


def _task_result(
    task: Task,
    results: Mapping[str, Any],
    samples: list[dict[str, Any]],
    chat_template: str | None,
    rows: list[dict[str, Any]],
) -> TaskResult:
    """`rows`: those of the task in tables.BENCHMARKS."""
    config = _plain(task.dump_config())
    config["metadata"] = {key: value for key, value in config.get("metadata", {}).items() if key not in PLACES}
    fewshot = int(config.pop("num_fewshot", 0) or 0)
    digests = {sample["doc_id"]: _digest(sample["doc"]) for sample in samples}
    prompt = {**{key: config.get(key) for key in TEMPLATE}, "chat_template": chat_template}
    return TaskResult(
        version=str(task.VERSION),
        config=_digest(config),
        template=_digest(prompt),
        data=_digest([digest for _, digest in sorted(digests.items())]),
        fewshot=fewshot,
        documents=len(digests),
        metrics=_with_jackknife(_figures(results), rows),
    )


def _figures(results: Mapping[str, Any]) -> dict[str, Figure]:
    """The numbers of the harness's result of a task or a group: its keys are `METRIC,FILTER`."""
    figures = {}
    for key, value in results.items():
        metric, comma, filter_ = key.partition(",")
        number = _number(value)
        if comma and number is not None and not metric.endswith("_stderr"):
            error = _number(results.get(f"{metric}_stderr,{filter_}"))
            figures[metric_name(metric, filter_)] = Figure(number, error)
    return figures


def _number(value: Any) -> float | None:
    """The value, rounded, where it is a finite number; the harness writes N/A for what it does not know."""
    try:
        return round(float(value), DIGITS) if math.isfinite(float(value)) else None
    except (TypeError, ValueError):
        return None


def _with_jackknife(figures: Mapping[str, Figure], rows: list[dict[str, Any]]) -> dict[str, Figure]:
    """The figures, with standard errors of the weighted perplexities."""
    completed = dict(figures)
    for name, figure in figures.items():
        metric = name.partition("/")[0]
        own = [row for row in rows if row["metric"] == name]
        if metric in PER_UNIT and figure.standard_error is None and len(own) > 1:
            interval = weighted_interval([row["value"] for row in own], [row["weight"] for row in own])
            scale = math.exp(interval.mean) if metric in PERPLEXITIES else 1.0
            completed[name] = Figure(figure.value, round(scale * interval.standard_error, DIGITS))
    return completed


def _plain(value: Any) -> Any:
    """A configuration as JSON values: functions as their source text, which holds no address of memory."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if callable(value):
        try:
            return inspect.getsource(value)
        except (OSError, TypeError):
            return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def _digest(value: Any) -> str:
    """SHA-256 of the value's JSON with sorted keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
