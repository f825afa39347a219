"""`iterit audit`: reads the command line and prints what components/audit.py finds."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from components.audit.page import render
from components.core.errors import UserError

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
        bool, typer.Option("--records", help="All records, not the first ten of each iteration.")
    ] = False,
) -> None:
    """Every record that trained a checkpoint, along the chain from the base model to it."""
    from components.audit.describe import describe_checkpoint
    from components.audit.find import find_checkpoint

    found = describe_checkpoint(find_checkpoint(reference), every_record=records or format_ == "html")
    if format_ == "html":
        print(render(found))
        return
    if format_ == "json":
        _print_json(found)
        return
    print(f"checkpoint  {found['checkpoint']}  (told by {found['recorded_in']})")
    for one in found["sealed"]:
        how = "registered" if one["registered"] else "part of   "
        print(f"{how}  {one['tag']}, MLflow run {one['mlflow_run']}, Prefect flow run {one['prefect_flow_run']}")
    print(f"base model  {found['base_model']['digest']}")
    for step in found["iterations"]:
        code = step["code"]
        print(f"\niteration {step['iteration']}  -> {step['checkpoint']}")
        print(f"  subset      {step['subset']}: {step['records']} records, {_counts(step['sources'])}")
        print(f"  candidates  {step['candidates']}")
        print(f"  pool        {step['pool']}")
        if code:
            print(f"  code        {code['commit']}{'' if code['clean'] else ' with changes that no commit has'}")
        print(f"  packages    {', '.join(step['packages'])}")
        print(f"  seeds       {_counts(step['seeds'])}")
        print(f"  params      {json.dumps(step['params'], sort_keys=True)}")
        if step["metrics"]:
            numbers = {name: value for name, value in step["metrics"].items() if isinstance(value, int | float)}
            print(f"  holdout     {_counts(numbers)}")
        print("  rank  record                            source            complexity  diversity     score")
        for pick in step["picks"]:
            print(f"  {pick['rank']:>4}  {pick['id']}  {pick['source']:<16}  {_numbers(pick)}")
        if len(step["picks"]) < step["records"]:
            print(f"  ... {step['records'] - len(step['picks'])} more: --records")


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

    found = [trace_record(one) for one in _record_ids(record_id, text, file)]
    if format_ == "json":
        _print_json(found)
        return
    for one in found:
        print(f"record {one['record']}")
        for use in one["trained"]:
            how = f"rank {use['rank']}  {_numbers(use)}" if use["directly"] else "through an earlier iteration"
            print(
                f"  trained   {use['checkpoint'][:16]}  iteration {use['iteration']}  {how}  {use['recorded_in'][:12]}"
            )
        for other in one["not_used"]:
            where = f"{other['checkpoint'][:16]}  iteration {other['iteration']}"
            print(f"  not used  {where}  {other['why']}  {other['recorded_in'][:12]}")
        for commit in one["lost"]:
            print(f"  not known  commit {commit[:12]}: its statements are neither in DVC's cache nor on its remote")
        clean = one["last_clean"]
        print(
            f"  last clean checkpoint: {clean['checkpoint']}, iteration {clean['iteration']}"
            if clean
            else "  last clean checkpoint: the base model"
        )


def _record_ids(record_id: str | None, text: str | None, file: Path | None) -> list[str]:
    from components.audit.trace import ids_of_file, ids_with_text

    if sum(one is not None for one in (record_id, text, file)) != 1:
        raise UserError("audit record: give one of ID, --text and --file")
    if record_id is not None:
        if len(record_id) != 32 or not set(record_id) <= set("0123456789abcdef"):
            raise UserError(f"{record_id}: a record's id is 32 hex digits")
        return [record_id]
    if text is not None:
        found = ids_with_text(text)
        if not found:
            raise UserError(f"--text: no record whose data are at hand holds {text!r}")
        return found
    assert file
    return ids_of_file(file)


@app.command()
def verify(
    reference: Annotated[str, REFERENCE] = "",
    replay: Annotated[str | None, typer.Option(metavar="N", help="Make iteration N again from its inputs.")] = None,
) -> None:
    """Compute every digest along a checkpoint's chain anew; exit code 1 at the first that is another."""
    from components.audit.find import find_checkpoint, workspace_checkpoint
    from components.audit.replay import replay_iteration
    from components.audit.verify import verify_checkpoint, verify_statements

    for check in verify_statements():
        if not check.holds:
            print(check)
            raise typer.Exit(1)
    last = workspace_checkpoint() if not reference else find_checkpoint(reference)
    count = 0
    for check in itertools.chain(verify_checkpoint(last), replay_iteration(last.snapshot, replay) if replay else ()):
        print(check)
        if not check.holds:
            raise typer.Exit(1)
        count += 1
    print(f"{count} digests hold: iteration {last.iteration}, {last.digest}")


@app.command()
def diff(one: Annotated[str, REFERENCE], other: Annotated[str, REFERENCE]) -> None:
    """What differs between two checkpoints: records, parameters, code, packages; as JSON."""
    from components.audit.compare import compare_checkpoints
    from components.audit.find import find_checkpoint

    _print_json(compare_checkpoints(find_checkpoint(one), find_checkpoint(other)))


@app.command()
def rebuild() -> None:
    """Make the index anew from the statements, dvc.lock and git's history."""
    from components.audit.index import rebuild_index

    index = rebuild_index()
    queries = ("select count(*) from checkpoint", "select count(*) from entry")
    count, places = (index.execute(query).fetchone()[0] for query in queries)
    print(f"{count} checkpoints, {places} places of records")


def _numbers(row: dict[str, Any]) -> str:
    return "  ".join(
        "         -" if row[name] is None else f"{row[name]:10.4f}" for name in ("complexity", "diversity", "score")
    )


def _counts(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, sort_keys=True))
