"""`iterit audit`: reads the command line and prints the answers of components/audit.

Commands import what they need when they run, so that --help answers at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from components.core.errors import UserError

if TYPE_CHECKING:
    from components.audit.describe import CheckpointDescription, IterationDescription
    from components.audit.trace import RecordTrace

app = typer.Typer(name="audit", help="Which data trained which checkpoint, and the proof.", no_args_is_help=True)

REFERENCE = typer.Argument(
    metavar="REF", help="A folder, a digest, an MLflow run id, models:/NAME/VERSION or models:/NAME@ALIAS."
)


@app.command()
def checkpoint(
    reference: Annotated[str, REFERENCE],
    format_: Annotated[
        Literal["text", "json", "html"], typer.Option("--format", help="html is one page with every record.")
    ] = "text",
    records: Annotated[
        bool, typer.Option("--records", help="All records, not only the first ten of each iteration.")
    ] = False,
) -> None:
    """Every record that trained a checkpoint, along the chain from the base model to it."""
    from components.audit.describe import describe_checkpoint
    from components.audit.find import find_checkpoint

    description = describe_checkpoint(find_checkpoint(reference), every_record=records or format_ == "html")
    if format_ == "html":
        from components.audit.page import render

        print(render(description))
    elif format_ == "json":
        _print_json(asdict(description))
    else:
        _print_checkpoint(description)


def _print_checkpoint(description: CheckpointDescription) -> None:
    print(f"checkpoint  {description.checkpoint}  (recorded in {description.recorded_in})")
    for run in description.sealed:
        how = "registered" if run.registered else "part of   "
        flow = f", Prefect flow run {run.prefect_flow_run}" if run.prefect_flow_run else ""
        print(f"{how}  {run.tag}, MLflow run {run.mlflow_run}{flow}")
    print(f"base model  {description.base_model.digest}")
    for iteration in description.iterations:
        _print_iteration(iteration)


def _print_iteration(step: IterationDescription) -> None:
    print(f"\niteration {step.iteration}  -> {step.checkpoint}")
    print(f"  subset      {step.subset}: {step.records} records, {_join(step.sources)}")
    print(f"  candidates  {step.candidates}")
    print(f"  pool        {step.pool}")
    if step.code:
        print(f"  code        {step.code.commit}{'' if step.code.clean else ' with uncommitted changes'}")
    print(f"  packages    {', '.join(step.packages)}")
    print(f"  seeds       {_join(step.seeds)}")
    print(f"  params      {json.dumps(step.params, sort_keys=True)}")
    if step.metrics:
        numbers = {name: value for name, value in step.metrics.items() if isinstance(value, int | float)}
        print(f"  holdout     {_join(numbers)}")
    print("  rank  record                            source            complexity  diversity     score")
    for pick in step.picks:
        print(
            f"  {pick.rank:>4}  {pick.id}  {pick.source:<16}  {_columns(pick.complexity, pick.diversity, pick.score)}"
        )
    if len(step.picks) < step.records:
        print(f"  ... {step.records - len(step.picks)} more: --records")


@app.command()
def record(
    record_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="A record's id: 32 hex digits.")] = None,
    text: Annotated[str | None, typer.Option(help="Text that a message of the record holds.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="JSON file with a record, or a list of them, in a known shape.")
    ] = None,
    format_: Annotated[Literal["text", "json"], typer.Option("--format", help="How to print it.")] = "text",
) -> None:
    """Every checkpoint that a record trained; why it did not train the others; the last clean one."""
    from components.audit.trace import trace_record

    traces = [trace_record(id_) for id_ in _record_ids(record_id, text, file)]
    if format_ == "json":
        _print_json([asdict(trace) for trace in traces])
        return
    for trace in traces:
        _print_trace(trace)


def _print_trace(trace: RecordTrace) -> None:
    print(f"record {trace.record}")
    for trained in trace.trained:
        how = "through an earlier iteration"
        if trained.directly:
            how = f"rank {trained.rank}  {_columns(trained.complexity, trained.diversity, trained.score)}"
        place = f"{trained.checkpoint[:16]}  iteration {trained.iteration}"
        print(f"  trained   {place}  {how}  {trained.recorded_in[:12]}")
    for unused in trace.not_used:
        place = f"{unused.checkpoint[:16]}  iteration {unused.iteration}"
        print(f"  not used  {place}  {unused.why}  {unused.recorded_in[:12]}")
    for commit in trace.lost:
        print(f"  unknown   commit {commit[:12]}: its statements are neither in DVC's cache nor on its remote")
    clean = trace.last_clean
    last = f"{clean.checkpoint}, iteration {clean.iteration}" if clean else "the base model"
    print(f"  last clean checkpoint: {last}")


def _record_ids(record_id: str | None, text: str | None, file: Path | None) -> list[str]:
    """The ids of the records that the command line asks for."""
    from components.audit.trace import ids_of_file, ids_with_text

    if sum(given is not None for given in (record_id, text, file)) != 1:
        raise UserError("audit record: give one of ID, --text and --file")
    if record_id is not None:
        if len(record_id) != 32 or not set(record_id) <= set("0123456789abcdef"):
            raise UserError(f"{record_id}: a record's id is 32 hex digits")
        return [record_id]
    if text is not None:
        ids = ids_with_text(text)
        if not ids:
            raise UserError(f"--text: no record that can be read holds {text!r}")
        return ids
    assert file
    return ids_of_file(file)


@app.command()
def verify(
    reference: Annotated[str, REFERENCE] = "",
    replay: Annotated[
        str | None, typer.Option(metavar="N", help="Also run iteration N again from its recorded inputs.")
    ] = None,
) -> None:
    """Compare a checkpoint's chain with all that was recorded of it; exit code 1 at the first mismatch."""
    from components.audit.entries import read_definitions, verify_statements
    from components.audit.find import find_checkpoint, workspace_checkpoint
    from components.audit.replay import replay_iteration
    from components.audit.verify import verify_checkpoint

    definitions = read_definitions()
    for check in verify_statements(definitions, required=not reference):
        if not check.holds:
            print(check)
            raise typer.Exit(1)
    last = find_checkpoint(reference) if reference else workspace_checkpoint()
    verification, lines = verify_checkpoint(last, definitions), set()
    for check in chain(verification.checks, replay_iteration(last.snapshot, replay) if replay else ()):
        if str(check) not in lines:  # several stages read the same file
            print(check)
            lines.add(str(check))
        if not check.holds:
            raise typer.Exit(1)
    print(f"{len(lines)} checks hold: iteration {last.iteration}, {last.digest}")
    print(f"compared with {verification.compared_with()}; there is no signature")


@app.command()
def diff(first: Annotated[str, REFERENCE], second: Annotated[str, REFERENCE]) -> None:
    """What differs between two checkpoints: records, parameters, code, packages; as JSON."""
    from components.audit.compare import compare_checkpoints
    from components.audit.find import find_checkpoint

    _print_json(asdict(compare_checkpoints(find_checkpoint(first), find_checkpoint(second))))


@app.command()
def rebuild() -> None:
    """Make the index anew from the statements, dvc.lock and git's history."""
    from components.audit.index import measure_index, rebuild_index

    size = measure_index(rebuild_index())
    print(f"{size.checkpoints} checkpoints, {size.occurrences} occurrences of records")


def _columns(*numbers: float | None) -> str:
    return "  ".join("         -" if number is None else f"{number:10.4f}" for number in numbers)


def _join(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _print_json(value: Mapping[str, Any] | Iterable[Any]) -> None:
    print(json.dumps(value, indent=2, sort_keys=True))
