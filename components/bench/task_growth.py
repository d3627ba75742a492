"""What task t costs for growing t: a chain of modules, each trained on the real past of all those before it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from components.config import BASE
from components.io import write_json
from components.modules.adapted_linear import attach
from components.modules.low_rank import Head, read_past, write_module
from components.training.checkpoint import Checkpoints
from components.training.loop import Split, TrainingJob, train_epoch
from components.training.state import TrainingState
from components.vision.backbone import Vit

STEPS = 6  # of a measured epoch: what may grow is the cost of a step, their number is the same for all
CHAIN_STEPS = 2  # by which the other tasks learn: enough to leave a real component behind
ROUNDS = 7  # times that the measured tasks take turns
MEASURED = (1, 2, 10, 20, 50)


def task_cost(job: TrainingJob, fresh: Callable[[], Vit], folder: Path, tasks: int) -> dict[str, Any]:
    """Learn tasks one after the other, by a few steps each, and time an epoch of some of them.

    Args:
        job: images and settings; each task learns them with a module of its own.
        fresh: a backbone without modules.
        folder: an empty place for the chain of modules.
        tasks: their number; 0 measures nothing.

    Returns:
        task_cost: a row for each of the tasks MEASURED and for the last one: the seconds of its epoch, medians of turns
        taken one after the other, and those of reading its past. From 3 tasks on also task_cost_ratio: the last task's
        epoch over the second one's, the median of what it was in each turn.
    """
    write_json(folder / BASE / "module.json", {"task": BASE})
    short = _shortened(job, CHAIN_STEPS)
    for number in range(1, tasks + 1):
        own = _attached(short, fresh(), folder, number)
        _epoch(own, folder)
        _store(own, folder, number)
    return _measure(_shortened(job, STEPS), fresh, folder, sorted({*MEASURED, tasks} & {*range(1, tasks + 1)}))


def _measure(job: TrainingJob, fresh: Callable[[], Vit], folder: Path, numbers: Sequence[int]) -> dict[str, Any]:
    jobs, ready, seconds = dict[int, TrainingJob](), dict[int, float](), dict[int, list[float]]()
    for number in numbers:
        begin = time.perf_counter()
        jobs[number] = _attached(job, fresh(), folder, number)
        ready[number], seconds[number] = time.perf_counter() - begin, []
    for turn in range(1 + ROUNDS):
        for number in numbers:
            spent = _epoch(jobs[number], folder)
            seconds[number] += [spent] if turn else []  # the first turn warms up
    rows = [
        {
            "task": number,
            "epoch_seconds": round(statistics.median(seconds[number]), 4),
            "past_seconds": round(ready[number], 4),
        }
        for number in numbers
    ]
    for row in rows:
        print("task {task}: {epoch_seconds} s an epoch, {past_seconds} s for its past".format(**row), flush=True)
    if not numbers or numbers[-1] < 3:
        return {"task_cost": rows}
    ratios = [last / second for last, second in zip(seconds[numbers[-1]], seconds[2], strict=True)]
    return {"task_cost": rows, "task_cost_ratio": round(statistics.median(ratios), 4)}


def _shortened(job: TrainingJob, steps: int) -> TrainingJob:
    """Shorten a training to one epoch of `steps` batches, with at most as many images of validation."""
    images = steps * job.settings.batch_size
    train = Split(job.train.tokens, job.train.labels[:images])
    val = Split(job.val.tokens, job.val.labels[:images])
    return replace(job, train=train, val=val, settings=job.settings.model_copy(update={"epochs": 1}))


def _attached(job: TrainingJob, vit: Vit, folder: Path, number: int) -> TrainingJob:
    """Prepare the training of task `number`, on the past of all tasks before it."""
    past = read_past(folder, _name(number - 1), job.settings.past_budget)
    return replace(job, task=_name(number), vit=vit, trained=attach(vit, past, job.settings, number), seed=number)


def _epoch(job: TrainingJob, folder: Path) -> float:
    """Measure the seconds of an epoch with its validation."""
    width, images = 2 * job.vit.width, len(job.train)
    parameters, settings = job.trained.parameters(), job.settings
    state = TrainingState.begin(parameters, width, job.classes, images, settings, job.seed)
    start = time.perf_counter()
    train_epoch(job, state, Checkpoints(folder / "checkpoints", every=math.inf))
    return time.perf_counter() - start


def _store(job: TrainingJob, folder: Path, number: int) -> None:
    trained, settings = job.trained, job.settings
    component, reuse = trained.component(), trained.reuse(settings.reuse_threshold)
    previous = _name(number - 1)
    head = Head(np.zeros((job.classes, 2 * job.vit.width), np.float32), np.zeros(job.classes, np.float32))
    write_module(folder, job.task, previous, component, reuse, trained.past, head, job.vit, settings.max_rank)


def _name(number: int) -> str:
    return f"task-{number}" if number else BASE
