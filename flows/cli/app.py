"""The console command. Imports stand inside the commands: torch, Prefect and MLflow take seconds each."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from components.errors import IntaglioError
from flows.cli.bench import bench

app = typer.Typer(
    help="Continual fine-tuning of one frozen vision transformer, as a pipeline.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
tasks = typer.Typer(help="The tasks of the stream.", no_args_is_help=True)
app.add_typer(tasks, name="task")
app.add_typer(bench, name="bench")

_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM


def main() -> None:
    """The entry point: an error that a user can act on is one line, never a stack trace."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """Run one command line; returns its exit status."""
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


def _project() -> Path:
    from flows.settings import enter, find_root

    root = find_root()
    enter(root)
    return root


@app.command()
def run() -> None:
    """Run the pipeline once: every stage that changed, then publish, judge and promote."""
    root = _project()
    from flows.pipeline.crash_recovery import forget_dropped_tasks, recover
    from flows.pipeline.lock import run_lock
    from flows.pipeline.prefect_server import start_server
    from flows.pipeline.summary import closing_lines
    from flows.pipeline.up_to_date import summary_if_up_to_date
    from flows.tasks.preflight import preflight

    with run_lock(root):
        config = preflight(root)
        recover(root)
        forget_dropped_tasks(root, config.tasks)
        if summary := summary_if_up_to_date(root, config):
            print("\n".join(closing_lines(summary)))
            return
        print("starting Prefect ...", flush=True)
        server = start_server(root)
        from flows.pipeline.flow import continual_finetuning

        print(f"Prefect's pages during the run: {server.wait()}", flush=True)
        with server.attended():
            continual_finetuning(str(root))


@app.command()
def predict(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="Image files, folders, or quoted patterns such as 'in/**/*.jpg'; - reads paths from stdin."
        ),
    ] = None,
    listed: Annotated[
        str | None, typer.Option("--list", help="A list of paths: text, one a line, or .csv, .parquet, .jsonl; or -.")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="The list's column of paths; default: path, image or file.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write a .parquet, .csv or .jsonl file.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an output that was interrupted.")] = False,
    as_lines: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    top: Annotated[int, typer.Option(min=1, help="How many answers per image.")] = 1,
    bundle: Annotated[Path | None, typer.Option(help="A bundle's folder instead of the champion.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Guess also where no task knows the image.")] = False,
    engine: Annotated[str, typer.Option(help="local, or dask: workers on this machine or a cluster.")] = "local",
    scheduler: Annotated[str | None, typer.Option(help="Address of a running Dask scheduler.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that decode, or Dask workers.")] = None,
) -> None:
    """Name the task and the class of images, with the champion (or the bundle in a folder).

    An image that no task knows is `unknown`. Large jobs: docs/batch.md.
    """
    if not paths and listed is None:
        raise typer.BadParameter("name images, folders or patterns, or give --list FILE")
    from components.inference.image_paths import Inputs
    from flows.prediction.predict import predict as classify
    from flows.prediction.request import PredictionRequest, bundle_folder

    request = PredictionRequest(
        Inputs(tuple(paths or ()), listed, column),
        bundle_folder(bundle),
        output=output,
        resume=resume,
        as_lines=as_lines,
        top=top,
        force=force,
        device=device,
        precision=precision,
        engine=engine,
        scheduler=scheduler,
        workers=workers,
    )
    if status := classify(request):
        raise typer.Exit(status)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")] = 8080,
    bundle: Annotated[Path | None, typer.Option(help="A bundle's folder instead of the champion.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=256, help="Images predicted together at most.")] = 32,
    delay_ms: Annotated[float, typer.Option(min=0, help="How long an image waits for others at most.")] = 5.0,
    queue: Annotated[int, typer.Option(min=1, help="Images held at most; more are refused with 503.")] = 256,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at the champion's alias.")] = 5.0,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Size of a request's body at most.")] = 16.0,
    drain: Annotated[float, typer.Option(min=0, help="Seconds of service after SIGTERM, with /health at 503.")] = 1.0,
    grace: Annotated[float, typer.Option(min=1, help="Seconds that requests have to end after that.")] = 30.0,
    access_log: Annotated[bool, typer.Option("--access-log", help="One JSON line per request on stderr.")] = False,
) -> None:
    """Answer requests over HTTP with the champion, and follow its alias, until SIGTERM."""
    from flows.settings import be_quiet, find_root

    root = Path.cwd() if bundle else find_root()
    be_quiet(root)
    from flows.serving.run import Options
    from flows.serving.run import serve as serve_until_stopped
    from flows.serving.served_model import Champion, Folder

    options = Options(
        host=host,
        port=port,
        batch=batch,
        delay=delay_ms / 1e3,
        queue=queue,
        device=device,
        precision=precision,
        poll=poll,
        max_body=round(max_body_mb * 2**20),
        drain=drain,
        grace=grace,
        access_log=access_log,
    )
    serve_until_stopped(options, Folder(bundle) if bundle else Champion(root))


@app.command()
def promote(
    version: Annotated[int | None, typer.Option(help="A version's number; default: the challenger.")] = None,
    force: Annotated[bool, typer.Option(help="Promote even if a gate blocks; needs --reason.")] = False,
    reason: Annotated[str, typer.Option(help="Why; kept in the version's tag `forced`.")] = "",
) -> None:
    """Run the gates for the challenger and make it champion if it passes."""
    if force and not reason.strip():
        raise IntaglioError("--force needs --reason TEXT: it is kept with the version")
    root = _project()
    from components.params import load_config
    from flows.pipeline.lock import run_lock
    from flows.pipeline.summary import gate_table, verdict
    from flows.registry.mlflow_store import connect
    from flows.registry.promote import promote as promote_version

    with run_lock(root):
        gates = load_config(root / "params.yaml").gates
        number = None if version is None else str(version)
        decision = promote_version(connect(root), gates, number, reason.strip() if force else None)
    for line in [verdict(decision), *gate_table(decision.rows)]:
        print(line)
    if decision.verdict == "blocked":
        raise typer.Exit(1)


@app.command()
def rollback() -> None:
    """Make the previous champion champion again."""
    root = _project()
    from flows.pipeline.lock import run_lock
    from flows.registry.mlflow_store import connect
    from flows.registry.promote import rollback as roll_back

    with run_lock(root):
        before, after = roll_back(connect(root))
    print(f"champion: version {after} again; version {before} was rolled back")


@app.command()
def status() -> None:
    """Show the champion, the versions and the last runs."""
    root = _project()
    from flows.registry.status import status_lines

    for line in status_lines(root):
        print(line)


@app.command()
def certificate() -> None:
    """Show what the signatures promise about telling tasks apart, and what was measured."""
    root = _project()
    from components.io import read_json
    from flows.pipeline.summary import certificate_lines

    for line in certificate_lines(read_json(root / "reports" / "metrics.json")):
        print(line)


@app.command(name="serve-schedule")
def serve_schedule(cron: Annotated[str, typer.Option(help="When to run, as a cron expression.")] = "0 3 * * *") -> None:
    """Serve the flow on a schedule until interrupted."""
    root = _project()
    from flows.pipeline.schedule import serve_schedule as serve
    from flows.tasks.preflight import preflight

    preflight(root)
    serve(root, cron)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        print(f"intaglio {installed('intaglio')}")
    except PackageNotFoundError:
        raise IntaglioError("intaglio is not installed here; run `pip install -e .` in its folder") from None


@tasks.command(name="add")
def add(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits, '_' and '-'.")],
    folder: Annotated[
        Path, typer.Argument(help="One folder of images per class, or train/val/test with such folders.")
    ],
    params: Annotated[Path | None, typer.Option(help="The file to change; default: the project's params.yaml.")] = None,
    new_stream: Annotated[bool, typer.Option("--new-stream", help="In place of all tasks so far.")] = False,
) -> None:
    """Append a folder of images as the next task."""
    from flows.settings import find_root
    from flows.tasks.add_task import add_task

    added = add_task(find_root(), name, folder, params, new_stream)
    place = "begins a new stream" if new_stream else f"follows {added.previous}"
    print(f"task {added.name} {place}: {added.contents.summary} in {added.folder}")
    only = "" if new_stream else " does only this task's stages and the shared ones at the end"
    print(f"next: `intaglio run`{only}")


@tasks.command(name="list")
def list_tasks() -> None:
    """List the tasks in order of arrival."""
    from components.params import load_config
    from flows.settings import find_root

    config = load_config(find_root() / "params.yaml")
    width = max(len(name) for name in config.tasks)
    for position, (name, task) in enumerate(config.stream.tasks.items(), start=1):
        print(f"{position:>3}  {name:<{width}}  {task.folder}")
