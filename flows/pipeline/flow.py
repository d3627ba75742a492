"""The flow: run the stages of dvc.yaml, publish, register, judge, promote."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NoReturn, cast

import httpx
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import task_run
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from components.errors import IntaglioError, TransientError
from components.io import read_json
from flows.pipeline.prepared import Prepared, prepared
from flows.pipeline.progress import Progress
from flows.pipeline.stage_process import StageStoppedError, run_stage
from flows.pipeline.stage_scheduler import StageScheduler
from flows.pipeline.summary import Summary, as_markdown, closing_lines, failure_lines
from flows.planning.timings import record_seconds
from flows.settings import enter, find_root

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from flows.registry.promote import Decision
    from flows.registry.publish import Publication

WORKERS = 2
RETRY_DELAYS = (10.0, 60.0)


class Run:
    """What the tasks of one flow run share. Not a dataclass: Prefect would take it apart to look for futures."""

    def __init__(self, project: Prepared, progress: Progress, retry_delays: Sequence[float]) -> None:
        self.root, self.config = project.root, project.config
        self.progress, self.retry_delays = progress, tuple(retry_delays)
        self.stop = threading.Event()


@flow(
    name="continual_finetuning",
    description="The DAG of dvc.yaml, then publish, register, judge and promote.",
    task_runner=cast(TaskRunner[PrefectFuture[Any]], ThreadPoolTaskRunner(max_workers=WORKERS)),
)
def continual_finetuning(root: str | None = None, retry_delays: Sequence[float] = RETRY_DELAYS) -> Summary:
    """Run the pipeline of one project once.

    Args:
        root: the project's folder; by default the current folder or the nearest above it with a dvc.yaml.
        retry_delays: seconds before the second, the third ... attempt at a stage that had a transient fault.

    Raises:
        IntaglioError: something that a person has to put right, one line each. Whatever had finished is kept.
    """
    folder = find_root(Path(root) if root else None)
    enter(folder)
    with prepared(folder) as project:
        dag = project.plan.dag
        scheduler = StageScheduler(dag, project.plan.to_run, WORKERS)
        run = Run(project, Progress(len(dag.stages)), retry_delays)
        for line in project.plan.lines:
            run.progress.show(line)
        run.progress.up_to_date(len(scheduler.outcomes))
        try:
            _run_stages(run, scheduler)
        except BaseException:
            run.stop.set()  # Ctrl-C, SIGTERM or a cancelled flow run: no stage survives it
            raise
        return _conclude(run, scheduler)


def _run_stages(run: Run, scheduler: StageScheduler) -> None:
    """Start what may start and wait for what runs, until neither is left."""
    stage_task = dvc_stage.with_options(retries=len(run.retry_delays))
    futures: dict[str, PrefectFuture[str]] = {}
    done: SimpleQueue[str] = SimpleQueue()
    while True:
        while stage := scheduler.next_stage():
            # What it needs is there already: `wait_for` only draws the arrows in Prefect's pages.
            upstream = [futures[name] for name in sorted(stage.upstream) if name in futures]
            future = stage_task.submit(stage.name, run, return_state=False, wait_for=upstream)
            futures[stage.name] = future
            future.add_done_callback(partial(_put, done, stage.name))
        if not scheduler.running:
            return
        name = done.get()
        result = futures[name].result(raise_on_failure=False)
        if isinstance(result, BaseException):
            scheduler.failed(name, result)
        else:
            scheduler.finished(name, result)


def _put(done: SimpleQueue[str], name: str, _future: PrefectFuture[str]) -> None:
    done.put(name)


def _is_transient(_task: Any, _run: Any, state: Any) -> bool:
    return isinstance(state.result(raise_on_failure=False), TransientError)


@task(
    name="stage",
    task_run_name="{stage}",
    retry_condition_fn=_is_transient,
    cache_policy=NO_CACHE,  # DVC is the only cache
    persist_result=False,
)
def dvc_stage(stage: str, run: Run) -> str:
    """Run one stage; its output goes to Prefect's log and, indented, to the terminal."""
    logger, progress, delays = get_run_logger(), run.progress, run.retry_delays
    attempt = int(task_run.run_count or 1)
    if attempt > 1:
        # Prefect would sleep through a Ctrl-C; this wait ends at once.
        run.stop.wait(delays[attempt - 2])

    def on_line(line: str) -> None:
        logger.info(line)
        progress.printed(stage, line)

    progress.started(stage)
    begun = time.monotonic()
    try:
        outcome = run_stage(run.root, stage, on_line, run.stop)
    except TransientError as error:
        again = f"; trying again in {delays[attempt - 1]:.0f} s" if attempt <= len(delays) else ""
        progress.show(f"{error}: a fault that may pass{again}")
        raise
    except IntaglioError as error:
        progress.show(f"{stage} {'stopped' if isinstance(error, StageStoppedError) else 'FAILED'}")
        raise
    seconds = time.monotonic() - begun
    progress.finished(stage, outcome, seconds)
    if outcome == "ran":
        record_seconds(run.root, stage, seconds)
    return outcome


def _conclude(run: Run, scheduler: StageScheduler) -> Summary:
    if scheduler.errors:
        _fail(run, scheduler)
    from flows.registry.mlflow_store import connect

    client = connect(run.root)
    publication = publish_runs(client, run)
    version = register_model(client, run, publication)
    decision = judge_and_promote(client, run, version)
    summary = Summary(
        scheduler.outcomes,
        run.progress.elapsed,
        run_id=publication.run_id,
        published_now=publication.new,
        decision=decision,
        metrics=read_json(run.root / "reports" / "metrics.json"),
    )
    _show(summary)
    for line in closing_lines(summary):
        run.progress.show(line)
    return summary


def _fail(run: Run, scheduler: StageScheduler) -> NoReturn:
    errors = {stage: str(error) for stage, error in scheduler.errors.items()}
    summary = Summary(scheduler.outcomes, run.progress.elapsed, errors, scheduler.not_started)
    _show(summary)
    for error in scheduler.errors.values():
        if not isinstance(error, IntaglioError):
            raise error  # a bug: its stack trace is wanted
    raise IntaglioError("\n".join(failure_lines(summary)))


def _show(summary: Summary) -> None:
    """Give the run its page in Prefect. Without a server there is none, which must not hide how the run ended."""
    with suppress(httpx.TransportError):
        create_markdown_artifact(as_markdown(summary), key="continual-finetuning")


@task(name="publish", cache_policy=NO_CACHE, persist_result=False)
def publish_runs(client: MlflowClient, run: Run) -> Publication:
    """Log the stages' outputs to MLflow, unless this state was logged before."""
    from flows.registry.publish import publish

    return publish(client, run.root, run.config)


@task(name="register", cache_policy=NO_CACHE, persist_result=False)
def register_model(client: MlflowClient, run: Run, publication: Publication) -> str:
    """Register the bundle as challenger, unless this state was registered before.

    Args:
        client: of the project's registry.
        run: the flow run.
        publication: the MLflow run with the results.
    """
    from flows.registry.register import register

    return register(client, run.root, run.config, publication)


@task(name="promote", cache_policy=NO_CACHE, persist_result=False)
def judge_and_promote(client: MlflowClient, run: Run, version: str) -> Decision:
    """Judge the version by the gates, and move the alias `champion` to it if it passes.

    Args:
        client: of the project's registry.
        run: the flow run.
        version: the version's number.
    """
    from flows.registry.promote import settle

    return settle(client, run.config.gates, version)
