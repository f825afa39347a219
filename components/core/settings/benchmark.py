"""`benchmark`: tasks of lm-evaluation-harness, and the checkpoints that they are run on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from components.core.settings.block import Block, PositiveInt


class BenchmarkSettings(Block):
    tasks: list[str] = []
    """Names of tasks, groups and tags of lm-evaluation-harness; `paper`, a set; `local`, the tasks in
    conf/benchmarks/local; or another folder of task files in conf/benchmarks. None: nothing is run."""
    checkpoints: list[str] = []
    """The checkpoints that the tasks are run on: `base`, and iterations by their quoted keys."""
    fewshot: dict[str, Annotated[int, Field(ge=0)]] = {}
    """Number of examples in the prompt, by name of a task or group; otherwise the number is the task's own."""
    batch_size: PositiveInt = 8
    """Texts per batch. Fixed, because padding moves the last digits of a figure."""
    limit: PositiveInt | None = None
    """Maximum number of documents per task, the first ones; for a try, not for a result."""
    apply_chat_template: bool = False
    """Ask in the form of the tokenizer's chat template, with score.system as its system message."""
    allow_code: bool = False
    """Allow tasks that run the code that a model writes, such as humaneval, on this machine."""

    @model_validator(mode="after")
    def tasks_and_checkpoints_are_named_together(self) -> BenchmarkSettings:
        """DVC makes a stage for each checkpoint named, and the tasks alone would run nowhere."""
        if self.tasks and not self.checkpoints:
            raise ValueError("tasks has names, and checkpoints has none; name them, such as checkpoints: [base, '1']")
        if self.checkpoints and not self.tasks:
            raise ValueError("checkpoints has names, and tasks has none; name one, such as tasks: [local]")
        for key, names in (("tasks", self.tasks), ("checkpoints", self.checkpoints)):
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{key} names {', '.join(repeated)} more than once")
        return self
