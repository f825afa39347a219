"""The texts of the documents of tasks, for the search for training records that share words with them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from components.benchmarks.tasks import LoadedTasks, Task
from components.data import tables


def task_texts(loaded: LoadedTasks) -> pa.Table:
    """tables.BENCHMARK_TEXTS: one row a document, in the order of the tasks' names and of the documents."""
    rows = [
        {"task": name, "document": number, "text": document_text(task, document)}
        for name, task in loaded.tasks.items()
        for number, document in enumerate(task.eval_docs)
    ]
    return pa.Table.from_pylist(rows, schema=tables.BENCHMARK_TEXTS)


def document_text(task: Task, document: dict[str, Any]) -> str:
    """What a model is asked, and the answers, one line each; without examples and without words of the task itself.

    Where the task names a field that tells its documents apart, that field is the question: a question that is made
    with a fixed introduction would be like all others of the task.
    """
    field = task.get_config("doc_to_decontamination_query") if task.get_config("should_decontaminate") else None
    question = document[field] if field in document else task.doc_to_text(document)
    choices = task.doc_to_choice(document) if task.get_config("doc_to_choice") is not None else []
    target = task.doc_to_target(document)
    parts = [question, *(choices or (target if isinstance(target, list) else [target]))]
    return "\n".join(part for part in parts if isinstance(part, str))
