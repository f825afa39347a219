"""MLflow's model registry: versions of the registered model, their aliases and tags, and the list of champions."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from components.core.errors import UserError
from components.core.files import read_json
from components.core.paths import scratch_folder
from components.core.settings.register import GATE_ALIASES
from components.tracking.client import client, explain_unreachable, tracking_uri
from components.tracking.runs import PipelineRun

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHALLENGER, CHAMPION, PREVIOUS_CHAMPION = GATE_ALIASES
CHAMPIONS = "iterit.champions"  # tag of the model: every champion in order, and what promoted it
CHECKPOINT = "iterit.checkpoint"  # tag of a version: digest of its checkpoint
HOLDOUT_DIGEST = "iterit.holdout"  # tag of a version: SHA-256 of the holdout it was evaluated on
READ_AS = "iterit.read_as"  # tag of a version: the settings with which the holdout was read

# artifacts of a version's run
EVALUATIONS = "holdout/evaluation.parquet"  # losses of each holdout record
BENCHMARKS = "benchmark/documents.parquet"  # a value for each document of a benchmark
BENCHMARK_RESULT = "benchmark/result.json"  # the benchmarks' figures, and what decides what was measured

NOT_FOUND = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's error codes
TOKENIZER_FILES = ("tokenizer", "special_tokens", "chat_template", "vocab", "merges")  # how their names begin
LOADING_PACKAGES = ("mlflow", "torch", "transformers", "accelerate")


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """A version of a registered model."""

    model: str
    version: str
    is_new: bool
    """Whether it was created for the checkpoint now; False when an earlier version holds the checkpoint."""


@dataclass(frozen=True, slots=True)
class AliasedVersion:
    """The version to which an alias points."""

    number: str
    tags: dict[str, str]


def register_checkpoint(
    run: PipelineRun,
    checkpoint: Path,
    *,
    name: str,
    alias: str,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    evaluations: Path,
) -> RegisteredVersion:
    """Point `alias` of the registered model `name` to the checkpoint: to its version, or to a new one if it has none.

    `tags` must hold the checkpoint's digest under `iterit.checkpoint`, by which its version is found. The folder is
    uploaded as it is, with MLflow's description beside it, and never loaded: MLflow opens it with
    `mlflow.transformers.load_model("models:/NAME@ALIAS")`, and once downloaded it is a plain Hugging Face folder. The
    table `evaluations` is an artifact of the run of a new version.
    """
    digest = tags[CHECKPOINT]
    with explain_unreachable():
        existing = next((item for item in _versions(name) if item.tags.get(CHECKPOINT) == digest), None)
        if existing:
            number = str(existing.version)
        else:
            _log_file(run.run_id, EVALUATIONS, evaluations)
            number = _create_version(run, checkpoint, name, tags, metrics)
        client().set_registered_model_alias(name, alias, number)
    return RegisteredVersion(name, number, is_new=existing is None)


def version_with_alias(name: str, alias: str) -> AliasedVersion | None:
    """The version to which the alias points; None when the model has no such alias."""
    from mlflow.exceptions import MlflowException

    with explain_unreachable():
        try:
            aliased = client().get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in NOT_FOUND:
                return None
            raise
    return AliasedVersion(str(aliased.version), dict(aliased.tags))


def version_of_checkpoint(name: str, digest: str) -> AliasedVersion | None:
    """The version that holds the checkpoint of this digest; None when there is none."""
    with explain_unreachable():
        existing = client().search_model_versions(f"name = '{name}' and tags.`{CHECKPOINT}` = '{digest}'")
        return next((AliasedVersion(str(item.version), dict(item.tags)) for item in existing), None)


def has_version(name: str, number: str) -> bool:
    """Whether the registered model has the version."""
    with explain_unreachable():
        return any(str(item.version) == number for item in client().search_model_versions(f"name = '{name}'"))


def set_alias(name: str, alias: str, number: str) -> None:
    """Point the alias to the version."""
    with explain_unreachable():
        client().set_registered_model_alias(name, alias, number)


def tag_version(name: str, number: str, tags: Mapping[str, str]) -> None:
    """Set tags of the version; its other tags stay."""
    with explain_unreachable():
        for key, value in tags.items():
            client().set_model_version_tag(name, number, key, value)


def promote(name: str, number: str, by: str) -> str | None:
    """Make a version the champion; return the number of the previous champion, None if there was none or it is this.

    The previous champion keeps the alias `previous_champion`. The registered model's tag iterit.champions gets the
    version, with `by`, the promoter: `gate` or `hand`.
    """
    previous = version_with_alias(name, CHAMPION)
    if previous is not None and previous.number == number:
        return None
    with explain_unreachable():
        champions = json.loads(client().get_registered_model(name).tags.get(CHAMPIONS, "[]"))
        if previous is not None:
            client().set_registered_model_alias(name, PREVIOUS_CHAMPION, previous.number)
        client().set_registered_model_alias(name, CHAMPION, number)
        client().set_registered_model_tag(name, CHAMPIONS, json.dumps([*champions, {"version": number, "by": by}]))
    return previous.number if previous else None


def download_version(name: str, number: str, folder: Path) -> Path:
    """Download the files of a registered version into `folder`; returns the folder that holds them."""
    from mlflow.artifacts import download_artifacts

    with explain_unreachable():
        return Path(download_artifacts(f"models:/{name}/{number}", dst_path=str(folder), tracking_uri=tracking_uri()))


def log_files(name: str, number: str, files: Mapping[str, Path]) -> None:
    """Add files to the run of a version: artifact -> file. Nothing where the run was deleted, or never was."""
    from mlflow.exceptions import MlflowException

    with explain_unreachable():
        run_id = client().get_model_version(name, number).run_id
        if run_id is None:
            return
        try:
            for artifact, file in files.items():
                _log_file(run_id, artifact, file)
        except MlflowException as error:
            if error.error_code not in NOT_FOUND:
                raise


def download_file(name: str, number: str, artifact: str, folder: Path) -> Path | None:
    """Download an artifact of the run of a version; None where MLflow does not have it."""
    from mlflow.exceptions import MlflowException

    with explain_unreachable():
        run_id = client().get_model_version(name, number).run_id
        if run_id is None:  # somebody made the version by hand
            return None
        try:
            artifacts = client().list_artifacts(run_id, str(Path(artifact).parent))
        except MlflowException as error:
            if error.error_code in NOT_FOUND:  # the run was deleted
                return None
            raise
        if not any(item.path == artifact for item in artifacts):
            return None
        return Path(client().download_artifacts(run_id, artifact, str(folder)))


def checkpoint_digest(reference: str) -> str:
    """Digest of a registered checkpoint; `reference`: models:/NAME/VERSION, models:/NAME@ALIAS, or a parent run's id.

    Raises UserError when MLflow has no such version.
    """
    from mlflow.exceptions import MlflowException

    with explain_unreachable():
        try:
            versions = _find_versions(reference)
        except MlflowException as error:
            if error.error_code not in NOT_FOUND:
                raise
            versions = []
    digests = [item.tags[CHECKPOINT] for item in versions if CHECKPOINT in item.tags]
    if not digests:
        raise UserError(f"{reference}: MLflow ({tracking_uri()}) has no checkpoint of this project there")
    return str(digests[0])


def _find_versions(reference: str) -> list[ModelVersion]:
    if not reference.startswith("models:/"):
        return list(client().search_model_versions(f"run_id = '{reference}'"))
    name_and_version = reference.removeprefix("models:/")
    if "@" in name_and_version:
        name, _, alias = name_and_version.rpartition("@")
        return [client().get_model_version_by_alias(name, alias)]
    name, _, number = name_and_version.rpartition("/")
    return [client().get_model_version(name, number)]


def _versions(name: str) -> list[ModelVersion]:
    """All versions of the registered model, the newest first; creates the model when it does not exist."""
    if not client().search_registered_models(f"name = '{name}'"):
        client().create_registered_model(name)
    versions: list[ModelVersion] = []
    token = None
    while True:
        page = client().search_model_versions(
            f"name = '{name}'", order_by=["version_number DESC"], max_results=200, page_token=token
        )
        versions += page
        token = page.token
        if not token:
            return versions


def _log_file(run_id: str, artifact: str, file: Path) -> None:
    scratch = scratch_folder("register") / artifact  # an artifact has the name of its file
    scratch.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, scratch)
    client().log_artifact(run_id, str(scratch), str(Path(artifact).parent))


def _create_version(
    run: PipelineRun, checkpoint: Path, name: str, tags: Mapping[str, str], metrics: Mapping[str, float]
) -> str:
    """Upload the checkpoint as a new version; returns its number."""
    from mlflow.entities import Metric

    model = client().create_logged_model(run.experiment_id, "checkpoint", run.run_id, tags=dict(tags), model_type="llm")
    scratch = scratch_folder("register")
    shutil.rmtree(scratch, ignore_errors=True)
    describe_for_mlflow(checkpoint, scratch, model.model_id)
    client().log_model_artifacts(model.model_id, str(checkpoint))
    client().log_model_artifacts(model.model_id, str(scratch))
    shutil.rmtree(scratch)
    client().finalize_logged_model(model.model_id, "READY")
    now = int(time.time() * 1000)
    holdout = [Metric(f"holdout/{key}", value, now, 0, model_id=model.model_id) for key, value in metrics.items()]
    client().log_batch(run.run_id, holdout)
    source = f"models:/{model.model_id}"
    created = client().create_model_version(name, source, run.run_id, tags=dict(tags), model_id=model.model_id)
    return str(created.version)


def describe_for_mlflow(checkpoint: Path, folder: Path, model_id: str) -> None:
    """Write to `folder` the files with which MLflow opens a Hugging Face folder, to be uploaded beside its files."""
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    tokenizer = folder / "components" / "tokenizer"
    tokenizer.mkdir(parents=True)
    for file in checkpoint.iterdir():
        if file.name.startswith(TOKENIZER_FILES):
            shutil.copyfile(file, tokenizer / file.name)
    text = Schema([ColSpec("string")])
    model = Model(model_id=model_id, signature=ModelSignature(inputs=text, outputs=text))
    model.add_flavor(
        "transformers",
        transformers_version=version("transformers"),
        code=None,
        task="text-generation",
        instance_type="TextGenerationPipeline",
        pipeline_model_type="AutoModelForCausalLM",
        model_binary=".",  # the checkpoint's files lie beside this description
        source_model_name="",
        torch_dtype=f"torch.{read_json(checkpoint / 'config.json').get('dtype', 'float32')}",
        components=["tokenizer"],
        tokenizer_type="AutoTokenizer",
    )
    model.add_flavor("python_function", loader_module="mlflow.transformers", python_version=platform.python_version())
    model.save(str(folder / "MLmodel"))
    requirements = "".join(f"{name}=={version(name)}\n" for name in LOADING_PACKAGES)
    (folder / "requirements.txt").write_text(requirements, encoding="utf-8")
