"""What benchmark.tasks names, loaded with its data by lm-evaluation-harness.

An entry is a name that the harness knows (a task, a group or a tag), a set of this module, or a folder of task files in
conf/benchmarks, a folder that the stages depend on. A task file is the harness's own YAML; the paths of its data files
are relative to the project's folder.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core.errors import Unreachable, UserError, first_line
from components.core.paths import PARAMS
from components.core.settings.benchmark import BenchmarkSettings

FOLDER = Path("conf/benchmarks")
KEY = f"{PARAMS}: benchmark.tasks"
SHIPPED = "local"  # the tasks in FOLDER / "local"
SETS: Mapping[str, Mapping[str, int]] = {  # name -> tasks of the harness, and their numbers of examples in the prompt
    "paper": {  # arXiv 2412.17365
        "arc_challenge": 25,
        "hellaswag": 10,
        "mmlu": 0,
        "gsm8k": 8,
        "bbh": 3,
        "truthfulqa_mc2": 0,
        "humaneval": 0,
    }
}
SEED = 1234  # of the choice of examples for the prompt; the harness's own default

Task = Any  # lm_eval.api.task.Task
Group = Any  # lm_eval.api.group.Group


@dataclass(frozen=True, slots=True)
class LoadedTasks:
    """Tasks with their data, and the groups that they were named by, as the harness's `evaluate` takes them."""

    tasks: Mapping[str, Task]
    groups: Mapping[str, Group]


def load_tasks(settings: BenchmarkSettings) -> LoadedTasks:
    """The tasks of benchmark.tasks with their data.

    Raises UserError for a name or a folder that is unknown, for a task file that is none, and for a task that runs code
    where that is not allowed; Unreachable where the hub does not give a task's data.
    """
    _quiet_harness()
    folders, names = _entries(settings)
    manager, local = _find_tasks(folders, with_defaults=bool(names))
    names = {**names, **dict.fromkeys(local)}
    _check_names(manager, names, settings)
    tasks: dict[str, Task] = {}
    groups: dict[str, Group] = {}
    for name, shots in names.items():
        loaded = _load(manager, name)
        for leaf, task in loaded["tasks"].items():
            _set_fewshot(task, settings.fewshot.get(leaf, settings.fewshot.get(name, shots)))
        # a task that was named twice, alone and by its group, stays as it was named first
        tasks, groups = {**loaded["tasks"], **tasks}, {**loaded.get("groups", {}), **groups}
    return LoadedTasks(dict(sorted(tasks.items())), dict(sorted(groups.items())))


def _quiet_harness() -> None:
    """Switch off the harness's own notes, and the bars of loading data. To be called before its first import."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    import datasets

    datasets.disable_progress_bars()


def _entries(settings: BenchmarkSettings) -> tuple[list[Path], dict[str, int | None]]:
    """The folders of task files, and the harness's own names with their numbers of examples."""
    folders: list[Path] = []
    names: dict[str, int | None] = {}
    for entry in settings.tasks:
        if entry in SETS:
            names |= SETS[entry]
        elif entry == SHIPPED or "/" in entry:
            folders.append(_folder(FOLDER / SHIPPED if entry == SHIPPED else Path(entry)))
        else:
            names.setdefault(entry, None)
    return folders, names


def _folder(folder: Path) -> Path:
    """The folder, normalized. Raises UserError when it is none, or not where the stages see that its files change."""
    if not folder.is_dir():
        raise UserError(f"{KEY}: {folder}: no such folder")
    if not folder.resolve().is_relative_to(FOLDER.resolve()):
        raise UserError(
            f"{KEY}: {folder}: not in {FOLDER}; task files are kept there, where a change of them is noticed"
        )
    return folder


def _find_tasks(folders: Sequence[Path], *, with_defaults: bool) -> tuple[Any, list[str]]:
    """The harness's index of tasks, and the names of those in the folders. Raises UserError for a broken task file."""
    from lm_eval.tasks import TaskManager

    local: list[str] = []
    for folder in folders:
        index = TaskManager(include_path=str(folder), include_defaults=False).task_index
        files = {entry.yaml_path.resolve() for entry in index.values() if entry.yaml_path}
        for file in sorted(folder.rglob("*.yaml")):
            # a name with _ is that of a file that others include
            if file.resolve() not in files and not file.name.startswith("_"):
                raise UserError(f"{file}: not a task file of lm-evaluation-harness: it needs `task: NAME`, once")
        found = [name for name, entry in sorted(index.items()) if entry.kind.name in ("TASK", "PY_TASK")]
        if not found:
            raise UserError(f"{KEY}: {folder}: no task file in it (*.yaml)")
        local += found
    # 14,000 names are read in 10 s
    manager = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=with_defaults)
    return manager, local


def _check_names(manager: Any, names: Mapping[str, int | None], settings: BenchmarkSettings) -> None:
    """Raises UserError, one line a mistake, for names that the index lacks and tasks that may not run."""
    mistakes = []
    for name in names:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, [*manager.all_tasks, *SETS, SHIPPED], n=3)
            mistakes.append(f"{KEY}: {name}: no task that lm-evaluation-harness knows" + _or_rather(near))
        elif not settings.allow_code:
            runs_code = [task for task, config in _leaves(manager.task_index, name) if config.get("unsafe_code")]
            mistakes += [
                f"{KEY}: {task}: it runs the code that a model writes on this machine; "
                "`benchmark.allow_code: true` allows it"
                for task in runs_code
            ]
    if mistakes:
        raise UserError(*dict.fromkeys(mistakes))
    known = {*names, *(task for name in names for task, _ in _leaves(manager.task_index, name))}
    for name in settings.fewshot:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            raise UserError(
                f"{PARAMS}: benchmark.fewshot.{name}: not a task that benchmark.tasks names" + _or_rather(near)
            )


def _or_rather(near: Sequence[str]) -> str:
    return f"; near: {', '.join(near)}" if near else ""


def _leaves(index: Mapping[str, Any], name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and configuration of the tasks that a name of the index stands for."""
    entry = index.get(name)
    if entry is None:  # defined within a group
        return
    members = entry.cfg.get("task") if entry.kind.name == "GROUP" else None
    if entry.kind.name == "TAG":
        members = sorted(entry.tags)
    if not isinstance(members, list):
        yield name, entry.cfg or {}
        return
    for member in members:
        if isinstance(member, dict):
            nested = member.get("group") or member.get("task")
            yield from _leaves(index, nested) if isinstance(nested, str) else ()
        elif member != name:
            yield from _leaves(index, member)


def _load(manager: Any, name: str) -> Any:
    """The harness's tasks of this name, with their data."""
    try:
        return manager.load([name])
    except (ConnectionError, TimeoutError) as error:
        offline = os.environ.get("HF_HUB_OFFLINE") == "1"
        kind = UserError if offline else Unreachable
        raise kind(f"{KEY}: {name}: its data cannot be had: {first_line(error)}") from error
    except Exception as error:  # a task's own code may raise anything
        raise UserError(f"{KEY}: {name}: cannot be loaded: {first_line(error)}") from error


def _set_fewshot(task: Task, shots: int | None) -> None:
    if shots is not None:
        task.set_config(key="num_fewshot", value=shots)
    elif task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=SEED)
