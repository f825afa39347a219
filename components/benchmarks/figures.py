"""Names of a task's figures, and whether those of gate.benchmarks can be compared: known before anything is trained."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence

from components.benchmarks.tasks import Group, LoadedTasks, Task
from components.core.errors import UserError
from components.core.paths import PARAMS

PERPLEXITIES = ("word_perplexity", "byte_perplexity")  # exp(nats per word or byte)
PER_UNIT = (*PERPLEXITIES, "bits_per_byte")  # a document's value is (log-likelihood, number of words or bytes)


def metric_name(metric: str, filter_: str) -> str:
    """`acc`, or `exact_match/strict-match` where the task has filters."""
    return metric if filter_ == "none" else f"{metric}/{filter_}"


def check_figures(loaded: LoadedTasks, figures: Iterable[str]) -> None:
    """Raises UserError, one line each, for figures that no task has, or that are no mean over documents.

    `figures`: TASK/METRIC or GROUP/METRIC, the metric with its filter after a slash, where the task has filters.
    """
    mistakes = list(_mistakes(loaded, figures))
    if mistakes:
        raise UserError(*mistakes)


def _mistakes(loaded: LoadedTasks, figures: Iterable[str]) -> Iterator[str]:
    for figure in figures:
        key = f"{PARAMS}: gate.benchmarks: {figure}"
        name, _, metric = figure.partition("/")
        if name not in loaded.tasks and name not in loaded.groups:
            near = difflib.get_close_matches(name, [*loaded.tasks, *loaded.groups], n=3)
            yield f"{key}: benchmark.tasks runs no task {name}" + (f"; near: {', '.join(near)}" if near else "")
            continue
        group = loaded.groups.get(name)
        known = _of_group(group) if group else _of_task(loaded.tasks[name])
        if metric not in known:
            there = f"there are: {', '.join(known)}" if known else "it has none"
            yield f"{key}: {name} has no such metric that is a mean over documents; {there}"


def _of_task(task: Task) -> list[str]:
    """Its metrics that are means over documents, with their filters."""
    filters = [one.name for one in getattr(task, "_filters", ())] or ["none"]
    means = [metric for metric, function in task.aggregation().items() if _is_mean(function) or metric in PER_UNIT]
    return [metric_name(metric, filter_) for metric in means for filter_ in filters]


def _of_group(group: Group) -> Sequence[str]:
    """Those of all its tasks, which the group weighs by their documents."""
    averaged = [one for one in group.aggregate_metric_list or () if one.weight_by_size and one.aggregation == "mean"]
    every_filter = {one.metric for one in averaged if one.filter_list is None}
    names = {metric_name(one.metric, filter_) for one in averaged for filter_ in one.filter_list or ()}
    tasks = [set(_of_task(task)) for task in group.get_all_tasks()]
    common = set.intersection(*tasks) if tasks else set()
    return sorted(one for one in common if one in names or one.partition("/")[0] in every_filter)


def _is_mean(function: object) -> bool:
    from lm_eval.api.metrics import mean

    return function is mean
