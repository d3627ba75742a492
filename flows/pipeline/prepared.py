"""What has to be known and put right before the first stage of a run: done once in a process."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from components.config import Config
from flows.pipeline.crash_recovery import forget_dropped_tasks, recover
from flows.pipeline.lock import run_lock
from flows.planning.plan import Plan, make_plan
from flows.tasks.preflight import preflight


@dataclass(frozen=True)
class Prepared:
    """A checked and repaired project, and what a run of it will do."""

    root: Path
    config: Config
    plan: Plan


_open: dict[Path, Prepared] = {}


@contextmanager
def prepared(root: Path, retrain: Collection[str] = ()) -> Iterator[Prepared]:
    """Hold the run lock of a project that is checked, repaired and compared with dvc.lock.

    The command `intaglio run` enters it, and so does the flow within, which then gets what the command has prepared.
    Where Prefect runs the flow alone, the flow prepares the project.

    Args:
        root: the project's folder.
        retrain: learned tasks that may be trained again.

    Raises:
        IntaglioError: params.yaml or a task's folder is wrong, or another process runs the pipeline; one line each.
    """
    if known := _open.get(root):
        yield known
        return
    with run_lock(root):
        config = preflight(root)
        recover(root)
        forget_dropped_tasks(root, config)
        _open[root] = Prepared(root, config, make_plan(root, config, retrain))
        try:
            yield _open[root]
        finally:
            del _open[root]
