"""params.yaml as a whole: all blocks, the chain of iterations, and the rules that span several blocks."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from components.core.settings.base_model import ModelSource
from components.core.settings.benchmark import BenchmarkSettings
from components.core.settings.block import Block
from components.core.settings.contamination import ContaminationSettings
from components.core.settings.dedupe import DedupeSettings
from components.core.settings.evaluate import EvaluateSettings
from components.core.settings.finetune import FinetuneSettings
from components.core.settings.gate import GateSettings
from components.core.settings.ingest import IngestSettings
from components.core.settings.noise import NoiseSettings
from components.core.settings.register import RegisterSettings
from components.core.settings.score import ScoreSettings
from components.core.settings.seal import SealSettings
from components.core.settings.select import SelectSettings


class Iteration(Block):
    parent: str
    """`base` for the first iteration, the key of the previous iteration for the others."""


class Settings(Block):
    experiment: str = Field(default="iterit", min_length=1, max_length=500)
    """Name of the MLflow experiment."""
    base_model: ModelSource = Field(discriminator="kind")
    proxy_model: Annotated[ModelSource, Field(discriminator="kind")] | None = None
    """A smaller model that scores with score.model: proxy; it takes the keys of base_model."""
    ingest: IngestSettings
    dedupe: DedupeSettings
    noise: NoiseSettings = Field(default_factory=NoiseSettings)
    score: ScoreSettings
    select: SelectSettings
    finetune: FinetuneSettings
    evaluate: EvaluateSettings
    benchmark: BenchmarkSettings = Field(default_factory=BenchmarkSettings)
    contamination: ContaminationSettings = Field(default_factory=ContaminationSettings)
    register_: RegisterSettings = Field(alias="register")
    gate: GateSettings
    seal: SealSettings = Field(default_factory=SealSettings)
    iterations: dict[str, Iteration]

    @model_validator(mode="after")
    def model_scores_for_the_strategy(self) -> Settings:
        """Strategies that are defined by the model that scores have it named."""
        strategy, model = self.select.strategy, self.score.model
        if model == "none" and self.select.reads_complexity:
            raise ValueError(f"score.model: none: select.strategy {strategy} needs a complexity: score.model: current")
        needed = {"iterit-static": "base", "superfiltering": "proxy"}.get(strategy, model)
        if model != needed:
            raise ValueError(f"score.model: {model}: select.strategy {strategy} needs score.model: {needed}")
        if model == "proxy" and self.proxy_model is None:
            raise ValueError("score.model: proxy: needs a proxy_model")
        return self

    @model_validator(mode="after")
    def embeddings_are_for_the_strategy_that_reads_them(self) -> Settings:
        strategy, measure = self.select.strategy, self.score.measure
        if strategy == "rds+":
            if not self.ingest.targets:
                raise ValueError(
                    "select.strategy: rds+ chooses what is like the examples of a target, and no source under ingest "
                    "has target: true (docs/data.md)"
                )
            if measure != "embedding":
                raise ValueError("score.measure: complexity: select.strategy rds+ needs score.measure: embedding")
        if measure == "embedding":
            if self.select.reads_complexity:
                raise ValueError(
                    f"score.measure: embedding: select.strategy {strategy}, or select.max_complexity_quantile, needs a "
                    "complexity: score.measure: complexity"
                )
            if self.score.model == "none":
                raise ValueError("score.model: none: score.measure: embedding needs a model, such as score.model: base")
            if not self.ingest.targets:
                raise ValueError("score.measure: embedding: no source under ingest has target: true (docs/data.md)")
        return self

    @model_validator(mode="after")
    def benchmarked_checkpoints_exist(self) -> Settings:
        if unknown := [key for key in self.benchmark.checkpoints if key not in ("base", *self.iterations)]:
            known = ", ".join(("base", *self.iterations))
            raise ValueError(f"benchmark.checkpoints: {unknown[0]!r} is no checkpoint; there are: {known}")
        return self

    @model_validator(mode="after")
    def gate_has_its_benchmarks(self) -> Settings:
        """Every checkpoint that may be registered is benchmarked, where the gate compares benchmarks."""
        if not self.gate.benchmarks:
            return self
        figure = next(iter(self.gate.benchmarks))
        if not self.benchmark.tasks:
            raise ValueError(f"gate.benchmarks: {figure}: benchmark.tasks names no task")
        may_be_registered = list(self.iterations) if self.gate.register_ == "best" else list(self.iterations)[-1:]
        if missing := [key for key in may_be_registered if key not in self.benchmark.checkpoints]:
            raise ValueError(
                f"gate.benchmarks: {figure}: benchmark.checkpoints must name '{missing[0]}', which may be registered"
            )
        return self

    @field_validator("experiment", mode="after")
    @classmethod
    def experiment_is_a_name(cls, value: str) -> str:
        """What MLflow would refuse, and what would garble its page."""
        if not value.isprintable() or not value.strip():
            raise ValueError(f"{value!r} is no name: it must have a letter, and no control characters")
        return value

    @field_validator("iterations", mode="before")
    @classmethod
    def keys_are_quoted(cls, value: Any) -> Any:
        """DVC silently makes no stage of an integer key."""
        for key in value if isinstance(value, dict) else ():
            if not isinstance(key, str):
                raise ValueError(f"key {key} must be quoted: '{key}'")
        return value

    @field_validator("iterations", mode="after")
    @classmethod
    def chain_is_whole(cls, value: dict[str, Iteration]) -> dict[str, Iteration]:
        expected = "base"
        for number, (key, iteration) in enumerate(value.items(), 1):
            if key != str(number):
                raise ValueError(f"iteration {key!r} stands where '{number}' is expected; keys count up from '1'")
            if iteration.parent != expected:
                raise ValueError(f"{key}.parent is {iteration.parent!r}; the chain needs {expected!r} there")
            expected = key
        if not value:
            raise ValueError("no iteration; the first is '1': {parent: base}")
        return value
