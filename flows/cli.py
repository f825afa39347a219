"""The `iterit` command. Heavy imports wait inside the commands, so that --help and mistakes answer at once.

Exit codes: 0 done (or nothing new), 1 a stage failed, 2 a mistake that the user can mend, 75 try again later (another
run is at work, or a server does not answer), 130 Ctrl-C.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components.core.errors import exit_on_user_error
from components.core.process import relax_gc
from components.promotion.champion import promote_by_hand, roll_back
from flows.cli_audit import app as audit_app

app = typer.Typer(
    name="iterit",
    help="Retrain an instruction-tuned language model on data that it chooses itself.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(audit_app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"iterit {version('iterit')}")
        raise typer.Exit


@app.callback()
def iterit(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Retrain an instruction-tuned language model on data that it chooses itself."""


@app.command()
def run(
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a parameter in params.yaml first, such as select.ratio=0.1."
        ),
    ] = None,
    commit: Annotated[
        bool, typer.Option("--commit/--no-commit", help="Commit the results, as seal in params.yaml says.")
    ] = True,
) -> None:
    """Retrain with params.yaml: only what changed runs again."""
    from flows.foreground import prepare_run, run_flow

    prepare_run(set_ or [])

    from flows.retrain import retrain

    raise typer.Exit(run_flow(retrain, commit=commit))


@app.command()
def serve(
    cron: Annotated[str | None, typer.Option(help='When to retrain, as a cron line: "0 3 * * 1".')] = None,
    interval: Annotated[str | None, typer.Option(help="How often to retrain: 90s, 30m, 6h or 7d.")] = None,
) -> None:
    """Keep retraining on a schedule until stopped; starts a Prefect server when PREFECT_API_URL names none."""
    from flows.schedule import serve_schedule

    serve_schedule(cron, interval)


@app.command()
def register() -> None:
    """Register the checkpoint in this folder, such as that of an applied experiment, and pass it through the gate."""
    from components.register import describe_registered, register_by_hand
    from flows.workspace import claim_workspace

    with claim_workspace():
        print(*describe_registered(register_by_hand()), sep="\n")


@app.command()
def report(
    output: Annotated[Path | None, typer.Option(help="Where to write it; report.html by default.")] = None,
) -> None:
    """Write the page of the run in this folder: is it better, what was picked, what did it cost."""
    from components.core.params import load_settings
    from flows.page import PAGE, write_page

    print(write_page(load_settings(), output or PAGE))


@app.command()
def compare(
    file: Annotated[Path, typer.Argument(help="What is compared: docs/compare.md.")] = Path("compare.yaml"),
    workers: Annotated[int, typer.Option(min=1, help="Cells side by side, one a GPU.")] = 1,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what it will cost, after a minute's measurement.")
    ] = False,
) -> None:
    """Does the choice pay? Trains with several arms and seeds on one pool, and says how sure the differences are."""
    from flows import compare_command

    if plan:
        compare_command.plan(file, workers)
    else:
        raise typer.Exit(compare_command.compare(file, workers))


@app.command()
def promote(version: Annotated[str, typer.Argument(help="Number of a registered version.")]) -> None:
    """Make a registered version the champion by hand."""
    print(promote_by_hand(version))


@app.command()
def rollback() -> None:
    """Make the previous champion the champion again."""
    print(roll_back())


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; every mistake of a UserError becomes one `error:` line."""
    relax_gc()
    with exit_on_user_error():
        app(arguments)


if __name__ == "__main__":
    main()
