"""The console command. Commands import what they need inside: torch, Prefect and MLflow take seconds each."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from components.errors import IntaglioError
from flows.cli import project, registry
from flows.cli.bench import bench
from flows.cli.predict import predict
from flows.cli.run import plan, run, serve_schedule
from flows.cli.serve import serve
from flows.cli.tasks import tasks

app = typer.Typer(
    help="Continual fine-tuning of one frozen vision transformer, as a pipeline.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM


def main() -> None:
    """Run the command line of this process. An error that a user can act on is one line, never a stack trace."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """Run one command line and return its exit status."""
    try:
        app(args=arguments, prog_name="intaglio")
    except SystemExit as end:
        if end.code in (_INTERRUPTED, _TERMINATED):
            print("interrupted", file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except IntaglioError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 1
    return 0


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(_TERMINATED)


def version() -> None:
    """Print the installed version."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        print(f"intaglio {installed('intaglio')}")
    except PackageNotFoundError:
        raise IntaglioError("intaglio is not installed here; run `pip install -e .` in its folder") from None


for command in (
    project.init,
    project.doctor,
    run,
    plan,
    predict,
    serve,
    registry.promote,
    registry.rollback,
    registry.status,
    registry.certificate,
    serve_schedule,
    version,
):
    app.command()(command)
app.add_typer(tasks, name="task")
app.add_typer(bench, name="bench")
