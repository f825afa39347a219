"""MLflow lives here and nowhere else: one parent run a pipeline run, one child run a stage, written from files.

Stages write files and know nothing of MLflow. Afterwards one process reads what they wrote and logs it: the flow after
each stage, or the `register` stage for all of them under a bare `dvc repro`. Both take the same path, so the records
are the same, and a tracking server that is away costs no training: `dvc repro register` records everything later.

What a stage used and wrote is read from dvc.lock: parameters, dependencies and outputs with their hashes.

    parent run      all parameters; per iteration `evaluate/perplexity`, `score/mean_complexity`, ... (step = iteration,
                    0 is the base model); per optimizer step `step/loss`, `step/learning_rate`, `step/gradient_norm`
    child `score@2` its parameters, its metrics, its tables as artifacts, the records it read as dataset inputs

Every function here may raise Unreachable, when the tracking server does not answer.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from components import tables
from components.errors import Unreachable, UserError
from components.gate import CHAMPION, PREVIOUS
from components.provenance import read_subjects
from components.scratch import SCRATCH, seconds_file, throughput_file
from components.settings import PARAMS, Settings, read_params
from components.stage import quiet_environment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run
    from mlflow.entities.model_registry import ModelVersion

LOCK = Path("dvc.lock")
PARENT = "mlflow.parentRunId"
CHAMPIONS = "iterit.champions"
STAGE, ITERATION, OUTCOME, OUTPUTS = "iterit.stage", "iterit.iteration", "iterit.outcome", "iterit.outputs"

DEFAULTS = {
    "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db",
    # a server that is away is noticed in seconds: MLflow's own defaults make that 7 tries of up to 2 minutes each
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
LOCAL_PAGE = "http://127.0.0.1:5000"  # where `mlflow server` listens

# The records that a stage works on, as MLflow's dataset inputs: path below the project, name, context.
DATASETS = {
    "dedupe": [("data/pool.parquet", "pool", "training"), ("data/holdout.parquet", "holdout", "evaluation")],
    "score": [("data/pool.parquet", "pool", "evaluation")],
    "select": [("data/pool.parquet", "pool", "training")],
    "finetune": [("data/iterations/{key}/subset.parquet", "subset-{key}", "training")],
    "evaluate": [("data/holdout.parquet", "holdout", "evaluation")],
    "evaluate_base": [("data/holdout.parquet", "holdout", "evaluation")],
}
LARGEST_ARTIFACT = 64 << 20  # bytes; a larger table is named by its hash, DVC has its bytes
PREVIEW_ROWS = 1000  # of a table, as CSV, which MLflow's page can show
MOST_METRICS, MOST_PARAMS, LONGEST_PARAM = 1000, 100, 6000  # of one request, by MLflow's REST interface


@dataclass(frozen=True, slots=True)
class PipelineRun:
    """The parent run. A stage whose work ended after `started` ran in it; the others came from the cache."""

    experiment_id: str
    run_id: str
    url: str
    started: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class StageEntry:
    """What dvc.lock says of a stage: parameters by dotted key; dependencies and outputs, path -> MD5."""

    params: dict[str, Any]
    dependencies: dict[str, str]
    outputs: dict[str, str]


def tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULTS["MLFLOW_TRACKING_URI"]


@contextmanager
def answering() -> Iterator[None]:
    """Turn whatever MLflow raises when it cannot do its work into one line that names the server and the way on."""
    load_library()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client()  # opens the store
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Unreachable(
            f"MLFLOW_TRACKING_URI {tracking_uri()}: {reason[:200]}; the training is kept, "
            "`dvc repro register` (or `iterit run`) records it when MLflow answers again"
        ) from error


@functools.cache
def client() -> MlflowClient:
    load_library()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri())


def load_library() -> None:
    """Import MLflow, made quiet; it takes 2 s."""
    quiet_environment()
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):  # "Creating initial MLflow database tables..." and a line a migration
        logging.getLogger(name).setLevel(logging.WARNING)
    import mlflow  # noqa: F401

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # its import sets its own level


def start_pipeline_run(
    settings: Settings, name: str | None = None, tags: dict[str, str] | None = None, *, started: float | None = None
) -> PipelineRun:
    """Make the parent run, with all parameters. `name` defaults to DVC_EXP_NAME, then to a name of MLflow's choice."""
    begun = time.time() if started is None else started
    with answering():
        experiment_id = _experiment(settings.experiment)
        run = client().create_run(
            experiment_id,
            start_time=int(begun * 1000),
            run_name=name or os.environ.get("DVC_EXP_NAME"),
            tags={"mlflow.source.name": "iterit", **_git_commit(), **(tags or {})},
        )
        pipeline_run = _pipeline_run(run)
        _log(pipeline_run.run_id, params=_flatten(read_params()))
    return pipeline_run


def open_pipeline_run(run_id: str) -> PipelineRun:
    """The parent run that another process has started."""
    with answering():
        return _pipeline_run(client().get_run(run_id))


def finish_pipeline_run(run: PipelineRun, status: str = "FINISHED") -> None:
    """`status` is FINISHED, FAILED or KILLED."""
    with answering():
        client().set_terminated(run.run_id, status=status)


def record_stage(
    run: PipelineRun,
    stage: str,
    entry: StageEntry | None = None,
    *,
    outcome: str | None = None,
    seconds: float | None = None,
) -> None:
    """Make the child run of a stage from the files that it wrote, once: a second call changes nothing.

    `entry` defaults to what dvc.lock holds, `seconds` to what the stage has noted down. `outcome` is `ran` or
    `cached`; by default the time tells.
    """
    entry = entry or read_entry(stage)
    name, _, key = stage.partition("@")
    ended = _ended(stage)
    outcome = outcome or ("ran" if ended is not None and ended >= run.started else "cached")
    if seconds is None and ended is not None:
        seconds = tables.read_json(seconds_file(stage))["seconds"]
    values, steps = _metrics(entry), _step_rows(entry)
    step = _iteration_number(stage)
    digest = _outputs_digest(entry)
    tags = {PARENT: run.run_id, STAGE: stage, OUTCOME: outcome, OUTPUTS: digest, "mlflow.source.name": stage}
    if step is not None:
        tags[ITERATION] = key or "base"
    tags |= {f"dvc.dep.{path}": md5 for path, md5 in entry.dependencies.items()}
    tags |= {f"dvc.out.{path}": md5 for path, md5 in entry.outputs.items()}
    if stage != "register":  # it is recorded from within, before it has a statement
        tags |= {f"sha256.{path}": digest for path, digest in read_subjects(stage).items()}
    with answering():
        if _is_recorded(run, stage, digest):
            return
        now = time.time()
        end = ended if outcome == "ran" and ended is not None else now
        begin = end - seconds if outcome == "ran" and seconds is not None else end
        child = client().create_run(run.experiment_id, start_time=int(begin * 1000), run_name=stage, tags=tags)
        child_id = child.info.run_id
        group = name.removesuffix("_base")  # the base model is step 0 of the checkpoints' series
        here, series = _entities(values, step), _entities({f"{group}/{k}": v for k, v in values.items()}, step)
        if seconds is not None:
            here += _entities({"seconds": seconds}, step)
        if outcome == "ran":
            throughput, by_step = _throughput(stage)
            here += _entities(throughput, step)
            for at, row in steps:
                row |= by_step.get(at, {})
        for at, row in steps:
            here += _entities(row, at)
        _log(child_id, here, entry.params)
        if step is not None:  # the series over iterations and steps belong to the run that spans them, too
            _log(run.run_id, series)
            log_steps(run, steps)
        _log_datasets(child_id, name, key, entry)
        _log_artifacts(child_id, entry)
        client().set_terminated(child_id, end_time=int(end * 1000))


def record_all(run: PipelineRun, settings: Settings, *, except_for: Sequence[str] = ()) -> None:
    """Record every stage of dvc.lock that belongs to the pipeline as params.yaml has it now."""
    for stage, entry in _read_lock().items():
        name, _, key = stage.partition("@")
        current = settings.ingest.files if name == "watch" else settings.iterations
        if stage not in except_for and (not key or key in current):
            record_stage(run, stage, entry)


def make_entry(blocks: Sequence[str], output: Path) -> StageEntry:
    """What dvc.lock will say of the stage that is running now, which depends on these blocks of params.yaml."""
    md5 = hashlib.md5(output.read_bytes(), usedforsecurity=False).hexdigest()  # DVC's hash of a file
    params = read_params()
    return StageEntry(_flatten({block: params[block] for block in blocks}), {}, {output.as_posix(): md5})


def read_entry(stage: str) -> StageEntry:
    """Raises UserError when dvc.lock does not have the stage."""
    locked = _read_lock()
    for _ in range(20):
        if stage in locked:
            return locked[stage]
        time.sleep(0.1)  # DVC writes the file in place: another stage's end may just be halfway through it
        locked = _read_lock()
    raise UserError(f"{LOCK}: no stage {stage}; `dvc repro` runs it")


def _read_lock() -> dict[str, StageEntry]:
    if not LOCK.is_file():
        raise UserError(f"{LOCK}: not found; `dvc repro` writes it")
    try:
        locked = YAML(typ="safe", pure=True).load(LOCK.read_text(encoding="utf-8")) or {}
    except YAMLError:  # half written, or a merge conflict: the stage that is asked for is not there
        return {}
    return {stage: _entry(found) for stage, found in (locked.get("stages") or {}).items()}


def _entry(locked: dict[str, Any]) -> StageEntry:
    params = {key: value for file in (locked.get("params") or {}).values() for key, value in file.items()}
    dependencies, outputs = (
        {item["path"]: item.get("md5", "") for item in locked.get(kind) or ()} for kind in ("deps", "outs")
    )
    return StageEntry(_flatten(params), dependencies, outputs)


def _experiment(name: str) -> str:
    found = client().get_experiment_by_name(name)
    if found is None:
        # the page then opens on training runs and models, not on traces of agents
        return str(client().create_experiment(name, tags={"mlflow.experimentKind": "custom_model_development"}))
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"{PARAMS}: experiment: {name}: deleted in MLflow; restore it "
            f"(`mlflow experiments restore --experiment-id {found.experiment_id}`) or choose another name"
        )
    return str(found.experiment_id)


def _pipeline_run(run: Run) -> PipelineRun:
    info = run.info
    page = tracking_uri() if tracking_uri().startswith("http") else LOCAL_PAGE
    url = f"{page.rstrip('/')}/#/experiments/{info.experiment_id}/runs/{info.run_id}"
    return PipelineRun(info.experiment_id, info.run_id, url, info.start_time / 1000)


def _git_commit() -> dict[str, str]:
    """MLflow's tag for the code's version, where this is a git repository with a commit."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {"mlflow.source.git.commit": done.stdout.strip()} if done.returncode == 0 else {}


def _ended(stage: str) -> float | None:
    """When the stage's work ended here, in seconds since the epoch; None when it never ran in this workspace."""
    file = seconds_file(stage)
    return file.stat().st_mtime if file.is_file() else None


def _iteration_number(stage: str) -> int | None:
    """The place of a stage in the loop, 0 for the base model; None for a stage that is not in the loop."""
    name, _, key = stage.partition("@")
    if name == "evaluate_base":
        return 0
    return int(key) if key and name != "watch" else None


def _outputs_digest(entry: StageEntry) -> str:
    """One digest for all that a stage wrote: SHA-256 of the paths and their hashes, in hex."""
    text = "".join(f"{path}\0{md5}\n" for path, md5 in sorted(entry.outputs.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _is_recorded(run: PipelineRun, stage: str, digest: str) -> bool:
    """Whether the stage has a complete child run; one that was cut off, or of other outputs, is taken away."""
    query = f"tags.`{PARENT}` = '{run.run_id}' and tags.`{STAGE}` = '{stage}'"
    recorded = False
    for child in client().search_runs([run.experiment_id], query):
        if child.info.status == "FINISHED" and child.data.tags.get(OUTPUTS) == digest:
            recorded = True
        else:
            client().delete_run(child.info.run_id)
    return recorded


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys: {"score": {"dtype": x}} -> {"score.dtype": x}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _metrics(entry: StageEntry) -> dict[str, float]:
    """The numbers of the metrics files that the stage wrote, nested ones by path: {"rejected/too_long": 3}."""
    numbers: dict[str, float] = {}
    for path in entry.outputs:
        if path.startswith("metrics/") and path.endswith(".json"):
            for key, value in _flatten(tables.read_json(Path(path))).items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    numbers[key.replace(".", "/")] = float(value)
    return numbers


def log_steps(run: PipelineRun, steps: Sequence[tuple[int, dict[str, float]]]) -> None:
    """Add optimizer steps to the series of the parent run; those that it has already are left out.

    Called while a stage trains, and once more when it has ended.
    """
    with answering():
        have = {metric.step for metric in client().get_metric_history(run.run_id, "step/loss")} if steps else set()
        _log(run.run_id, [metric for at, row in steps if at not in have for metric in _entities(row, at)])


def _throughput(stage: str) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
    """How fast the stage was here and its peak memory, and the speed of each step; nothing where that is not known."""
    file = throughput_file(stage)
    if not file.is_file():
        return {}, {}
    measured = tables.read_json(file)
    by_step = {int(step): {"step/tokens_per_second": speed} for step, speed in measured.pop("steps").items()}
    return {f"throughput/{name}": value for name, value in measured.items()}, by_step


def _step_rows(entry: StageEntry) -> list[tuple[int, dict[str, float]]]:
    """The optimizer steps of the stage: their number, counted over all iterations, and what was measured in each."""
    rows = []
    for path in map(Path, entry.outputs):
        if path.name == "steps.csv":
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    measured = {f"step/{key}": float(row[key]) for key in ("loss", "learning_rate", "gradient_norm")}
                    rows.append((int(row["step"]), measured))
    return rows


def _entities(values: dict[str, float], step: int | None) -> list[Metric]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(key, value, now, step or 0) for key, value in values.items()]


def _log(run_id: str, metrics: Sequence[Metric] = (), params: dict[str, Any] | None = None) -> None:
    """Log in portions that MLflow's REST interface accepts."""
    from mlflow.entities import Param

    entities = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in (params or {}).items()]
    for start in range(0, len(metrics), MOST_METRICS):
        client().log_batch(run_id, metrics=metrics[start : start + MOST_METRICS])
    for start in range(0, len(entities), MOST_PARAMS):
        client().log_batch(run_id, params=entities[start : start + MOST_PARAMS])


def _log_datasets(run_id: str, name: str, key: str, entry: StageEntry) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    hashes = {**entry.dependencies, **entry.outputs}
    inputs = []
    for pattern, title, context in DATASETS.get(name, ()):
        path = pattern.format(key=key)
        # MLflow's own digest of a table sees its first 10,000 rows only; this is DVC's MD5 of the whole file
        dataset = Dataset(title.format(key=key), hashes[path], "local", json.dumps({"uri": path}))
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    if inputs:
        client().log_inputs(run_id, inputs)


def _log_artifacts(run_id: str, entry: StageEntry) -> None:
    """Every file that the stage wrote, tables also as CSV; folders (models, trainer states) are named by their hash."""
    for path in map(Path, entry.outputs):
        if path.is_file() and path.stat().st_size <= LARGEST_ARTIFACT:
            place = path.parent.as_posix()  # as in the project: samples/1.json is not metrics/evaluate/1.json
            client().log_artifact(run_id, str(path), place)
            if path.suffix == ".parquet":
                with tempfile.TemporaryDirectory() as folder:
                    preview = Path(folder) / f"{path.stem}.csv"
                    write_preview(path, preview)
                    client().log_artifact(run_id, str(preview), place)


def write_preview(table_file: Path, file: Path) -> None:
    """The first rows of a Parquet table as CSV; the messages of a record become its prompt and its response."""
    from components import records

    with pq.ParquetFile(table_file) as opened:
        first = next(opened.iter_batches(PREVIEW_ROWS), None)
        table = pa.Table.from_batches([first] if first is not None else [], schema=opened.schema_arrow)
    if "messages" in table.schema.names:
        rows = [
            {"id": record.id, "source": record.source, "prompt": record.prompt, "response": record.response}
            for record in records.from_rows(table.to_pylist())
        ]
        table = pa.Table.from_pylist(
            rows, pa.schema([(name, pa.string()) for name in ("id", "source", "prompt", "response")])
        )
    arrow_csv.write_csv(table, file)


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """A version of a registered model that has the alias now. `is_new`: it was made by this call."""

    model: str
    version: str
    is_new: bool


def register_checkpoint(
    run: PipelineRun, checkpoint: Path, *, name: str, alias: str, tags: dict[str, str], metrics: dict[str, float]
) -> RegisteredVersion:
    """Give `alias` of the registered model `name` to the checkpoint, as a new version unless one holds it already.

    The folder is uploaded as it is, with MLflow's description beside it, and never loaded: it opens with
    `mlflow.transformers.load_model("models:/NAME@ALIAS")`, and downloaded as any Hugging Face folder does.
    `tags` must hold the checkpoint's digest under `iterit.checkpoint`; it tells whether a version holds it.
    """
    digest = tags["iterit.checkpoint"]
    with answering():
        holder = next((one for one in _versions(name) if one.tags.get("iterit.checkpoint") == digest), None)
        number = str(holder.version) if holder else _new_version(run, checkpoint, name, tags, metrics)
        client().set_registered_model_alias(name, alias, number)
    return RegisteredVersion(name, number, is_new=holder is None)


@dataclass(frozen=True, slots=True)
class Holder:
    """The version that has an alias."""

    number: str
    tags: dict[str, str]


def holder_of(name: str, alias: str) -> Holder | None:
    """None when no version has the alias."""
    from mlflow.exceptions import MlflowException

    with answering():
        try:
            found = client().get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    return Holder(str(found.version), dict(found.tags))


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
    before = holder_of(name, CHAMPION)
    if before is not None and before.number == number:
        return None
    with answering():
        trace = json.loads(client().get_registered_model(name).tags.get(CHAMPIONS, "[]"))
        if before is not None:
            client().set_registered_model_alias(name, PREVIOUS, before.number)
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
    digests = [one.tags["iterit.checkpoint"] for one in found if "iterit.checkpoint" in one.tags]
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


def _new_version(run: PipelineRun, checkpoint: Path, name: str, tags: dict[str, str], metrics: dict[str, float]) -> str:
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
    config = tables.read_json(checkpoint / "config.json")
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
