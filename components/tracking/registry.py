"""MLflow's model registry: versions of the registered model, their aliases and tags, the champions."""

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
from components.core.paths import SCRATCH
from components.tracking.client import answering, client, tracking_uri
from components.tracking.runs import PipelineRun

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


CHALLENGER, CHAMPION, PREVIOUS_CHAMPION = "challenger", "champion", "previous_champion"  # aliases
CHAMPIONS = "iterit.champions"  # tag of the model: every champion in order, and who made it one
CHECKPOINT = "iterit.checkpoint"  # tag of a version: the digest of its checkpoint
HOLDOUT_DIGEST = "iterit.holdout"  # tag of a version: SHA-256 of the holdout that it was evaluated on


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """A version of a registered model that has the alias now. `is_new`: it was made by this call."""

    model: str
    version: str
    is_new: bool


def register_checkpoint(
    run: PipelineRun, checkpoint: Path, *, name: str, alias: str, tags: Mapping[str, str], metrics: Mapping[str, float]
) -> RegisteredVersion:
    """Give `alias` of the registered model `name` to the checkpoint, as a new version unless one holds it already.

    The folder is uploaded as it is, with MLflow's description beside it, and never loaded: it opens with
    `mlflow.transformers.load_model("models:/NAME@ALIAS")`, and downloaded as any Hugging Face folder does.
    `tags` must hold the checkpoint's digest under `iterit.checkpoint`; it tells whether a version holds it.
    """
    digest = tags[CHECKPOINT]
    with answering():
        holder = next((one for one in _versions(name) if one.tags.get(CHECKPOINT) == digest), None)
        number = str(holder.version) if holder else _new_version(run, checkpoint, name, dict(tags), metrics)
        client().set_registered_model_alias(name, alias, number)
    return RegisteredVersion(name, number, is_new=holder is None)


@dataclass(frozen=True, slots=True)
class AliasedVersion:
    """The version that has an alias."""

    number: str
    tags: dict[str, str]


def version_with_alias(name: str, alias: str) -> AliasedVersion | None:
    """None when no version has the alias."""
    from mlflow.exceptions import MlflowException

    with answering():
        try:
            found = client().get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    return AliasedVersion(str(found.version), dict(found.tags))


def has_version(name: str, number: str) -> bool:
    with answering():
        return any(str(one.version) == number for one in client().search_model_versions(f"name = '{name}'"))


def set_alias(name: str, alias: str, number: str) -> None:
    with answering():
        client().set_registered_model_alias(name, alias, number)


def tag_version(name: str, number: str, tags: dict[str, str]) -> None:
    with answering():
        for key, value in tags.items():
            client().set_model_version_tag(name, number, key, value)


def promote(name: str, number: str, by: str) -> str | None:
    """Make a version the champion; the one before keeps an alias of its own, and is returned.

    The trace is the registered model's tag iterit.champions: every champion in order, and who made it one.
    """
    before = version_with_alias(name, CHAMPION)
    if before is not None and before.number == number:
        return None
    with answering():
        trace = json.loads(client().get_registered_model(name).tags.get(CHAMPIONS, "[]"))
        if before is not None:
            client().set_registered_model_alias(name, PREVIOUS_CHAMPION, before.number)
        client().set_registered_model_alias(name, CHAMPION, number)
        client().set_registered_model_tag(name, CHAMPIONS, json.dumps([*trace, {"version": number, "by": by}]))
    return before.number if before else None


def download_version(name: str, number: str, folder: Path) -> Path:
    """The files of a registered version, below `folder`."""
    from mlflow.artifacts import download_artifacts

    with answering():
        return Path(download_artifacts(f"models:/{name}/{number}", dst_path=str(folder), tracking_uri=tracking_uri()))


def find_checkpoint(reference: str) -> str:
    """Digest of the checkpoint of models:/NAME/VERSION, models:/NAME@ALIAS, or of the run that registered it.

    Raises UserError when MLflow does not know it.
    """
    from mlflow.exceptions import MlflowException

    with answering():
        try:
            if not reference.startswith("models:/"):
                found = list(client().search_model_versions(f"run_id = '{reference}'"))
            elif "@" in reference:
                name, _, alias = reference.removeprefix("models:/").rpartition("@")
                found = [client().get_model_version_by_alias(name, alias)]
            else:
                name, _, version_ = reference.removeprefix("models:/").rpartition("/")
                found = [client().get_model_version(name, version_)]
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            found = []
    digests = [one.tags[CHECKPOINT] for one in found if CHECKPOINT in one.tags]
    if not digests:
        raise UserError(f"{reference}: MLflow ({tracking_uri()}) has no checkpoint of this project there")
    return str(digests[0])


def _versions(name: str) -> list[ModelVersion]:
    """All versions of the registered model, the newest first; makes the model when there is none."""
    if not client().search_registered_models(f"name = '{name}'"):
        client().create_registered_model(name)
    found: list[ModelVersion] = []
    token = None
    while True:
        page = client().search_model_versions(
            f"name = '{name}'", order_by=["version_number DESC"], max_results=200, page_token=token
        )
        found += page
        token = page.token
        if not token:
            return found


def _new_version(
    run: PipelineRun, checkpoint: Path, name: str, tags: dict[str, str], metrics: Mapping[str, float]
) -> str:
    from mlflow.entities import Metric

    logged = client().create_logged_model(run.experiment_id, "checkpoint", run.run_id, tags=tags, model_type="llm")
    scratch = SCRATCH / "tmp" / "register"
    shutil.rmtree(scratch, ignore_errors=True)
    describe_for_mlflow(checkpoint, scratch, logged.model_id)
    client().log_model_artifacts(logged.model_id, str(checkpoint))
    client().log_model_artifacts(logged.model_id, str(scratch))
    shutil.rmtree(scratch)
    client().finalize_logged_model(logged.model_id, "READY")
    now = int(time.time() * 1000)
    client().log_batch(
        run.run_id,
        [Metric(f"holdout/{key}", value, now, 0, model_id=logged.model_id) for key, value in metrics.items()],
    )
    source = f"models:/{logged.model_id}"
    made = client().create_model_version(name, source, run.run_id, tags=tags, model_id=logged.model_id)
    return str(made.version)


def describe_for_mlflow(checkpoint: Path, folder: Path, model_id: str) -> None:
    """Write to `folder` what lets MLflow open the Hugging Face folder that it is put into."""
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    component = folder / "components" / "tokenizer"
    component.mkdir(parents=True)
    for file in checkpoint.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template", "vocab", "merges")):
            shutil.copyfile(file, component / file.name)
    config = read_json(checkpoint / "config.json")
    text = Schema([ColSpec("string")])
    model = Model(model_id=model_id, signature=ModelSignature(inputs=text, outputs=text))
    model.add_flavor(
        "transformers",
        transformers_version=version("transformers"),
        code=None,
        task="text-generation",
        instance_type="TextGenerationPipeline",
        pipeline_model_type="AutoModelForCausalLM",
        model_binary=".",  # the checkpoint lies beside this description
        source_model_name="",
        torch_dtype=f"torch.{config.get('dtype', 'float32')}",
        components=["tokenizer"],
        tokenizer_type="AutoTokenizer",
    )
    model.add_flavor("python_function", loader_module="mlflow.transformers", python_version=platform.python_version())
    model.save(str(folder / "MLmodel"))
    packages = ("mlflow", "torch", "transformers", "accelerate")
    (folder / "requirements.txt").write_text("".join(f"{name}=={version(name)}\n" for name in packages))
