"""`finetune`: optimizer, schedule, batches and processes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from components.core.settings.block import NAME, Block, PositiveInt, Share


class LoraSettings(Block):
    rank: PositiveInt = 16
    """Rank of the update of each weight matrix."""
    alpha: PositiveInt = 32
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the update."""
    targets: str = "all-linear"
    """all-linear, or names of modules: q_proj,v_proj."""


class FinetuneSettings(Block):
    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak of the schedule."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    warmup_ratio: Share = 0.03
    """Share of the planned steps during which the learning rate rises."""
    planned_iterations: PositiveInt = 3
    """Iterations that one cosine schedule spans; an iteration beyond them begins a new cycle."""
    batch_size: PositiveInt = 8
    """Records per optimizer step, whatever the number of processes."""
    micro_batch_size: PositiveInt = 4
    """Records per forward pass of one process, packed where the model allows it; accumulation is derived."""
    max_length: Annotated[int, Field(ge=8)] = 512
    """Maximum tokens; longer conversations are truncated."""
    loss: Literal["record", "token"] = "record"
    """Average the loss over each record's response tokens, then over records; or over all tokens alike."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Gradients with a larger norm are scaled down to this one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the training; bfloat16 needs zero1, zero2 or zero3."""
    deepspeed: str = Field(default="zero0", pattern=NAME)
    """Name of a file in conf/deepspeed: zero0 for one process; zero2 and zero3 divide memory among several."""
    lora: LoraSettings | None = None
    """Train low-rank adapters instead of all weights."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    processes: PositiveInt = 1
    """Total number of processes, one per GPU; the stage starts the launcher itself."""
    hostfile: str | None = None
    """File with a line `HOST slots=N` per machine, for training on several machines that share this folder."""
    save_steps: PositiveInt = 100
    """Optimizer steps between checkpoints: the most that a killed stage loses."""
    keep_states: Literal["newest", "all"] = "newest"
    """Trainer states, each three times the size of the model: the newest, on this machine; or all, versioned by DVC."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    """Seed of every random stream."""
    deterministic: bool = True
    """Use only algorithms that are reproducible to the last bit; docs/method.md has the cost."""

    @model_validator(mode="after")
    def batch_divides(self) -> FinetuneSettings:
        if self.batch_size % self.processes:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of processes {self.processes}")
        if (self.batch_size // self.processes) % min(self.micro_batch_size, self.batch_size // self.processes):
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of processes x micro_batch_size "
                f"({self.processes} x {self.micro_batch_size})"
            )
        return self
