"""The `iterit` command. Heavy imports wait inside the commands: --help and mistakes answer at once.

Exit codes: 0 done (or nothing new), 1 a stage failed, 2 something the user can mend, 75 try again later (another run
is at work, something unreachable did not answer), 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from components.errors import Unreachable, UserError
from components.stage import BAD_INPUT, TRY_LATER, collect_rarely, quiet_environment
from flows.audit import app as audit_app

INTERRUPTED = 130  # as a shell counts: 128 + SIGINT

app = typer.Typer(
    name="iterit",
    help="Retrain an instruction-tuned language model on data that it chooses itself.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


app.add_typer(audit_app)


@app.callback()
def iterit() -> None:
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
    from flows.parameters import set_parameters
    from flows.workspace import WorkspaceBusyError, check_workspace, workspace_lock

    settings = set_parameters(set_ or [], check_workspace)
    try:
        with workspace_lock():
            pass  # the flow takes it again; a busy folder needs no Prefect to be told
    except WorkspaceBusyError as busy:
        raise Unreachable(f"{busy}; try again when it has ended") from None

    from flows.server import start_prefect_server, wait_until_healthy

    quiet_environment()
    start_prefect_server()

    from components import tracking
    from flows.retrain import retrain
    from flows.stage import StageError
    from flows.summary import print_summary

    tracking.load_library()  # it takes 2 s, and so does the server's start
    wait_until_healthy()
    try:
        state = retrain(commit=commit, return_state=True)
    except KeyboardInterrupt:
        print("stopped; `iterit run` goes on with the stage that was interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    if state.is_completed():
        if state.name == "Busy":
            raise Unreachable(f"{state.message}; try again when it has ended")
        print_summary(settings, new=state.name == "Retrained")
        return
    failure = state.result(raise_on_failure=False)
    if isinstance(failure, UserError):
        raise failure
    if isinstance(failure, StageError):
        print("\n".join(failure.lines), file=sys.stderr)
        sys.exit(failure.exit_code if failure.exit_code in (BAD_INPUT, TRY_LATER) else 1)
    raise typer.Exit(1)


@app.command()
def serve(
    cron: Annotated[str | None, typer.Option(help='When to retrain, as a cron line: "0 3 * * 1".')] = None,
    interval: Annotated[str | None, typer.Option(help="How often to retrain: 90s, 30m, 6h or 7d.")] = None,
) -> None:
    """Keep retraining on a schedule until stopped; starts a Prefect server when PREFECT_API_URL names none."""
    from flows.deploy import serve_schedule

    serve_schedule(cron, interval)


@app.command()
def promote(version: Annotated[str, typer.Argument(help="Number of a registered version.")]) -> None:
    """Make a registered version the champion by hand."""
    from components.register import promote_by_hand

    print(promote_by_hand(version))


@app.command()
def rollback() -> None:
    """Make the previous champion the champion again."""
    from components.register import roll_back

    print(roll_back())


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; a UserError becomes one line a mistake."""
    collect_rarely()
    try:
        app(arguments)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(TRY_LATER if isinstance(error, Unreachable) else BAD_INPUT)


if __name__ == "__main__":
    main()
