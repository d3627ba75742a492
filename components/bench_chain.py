"""What task t costs for growing t: a chain of modules, each trained on the real past of all those before it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from components.adapt import attach
from components.backbone import Vit
from components.checkpoint import Checkpoints
from components.config import BASE
from components.io import write_json
from components.modules import read_past, write_module
from components.train import Lesson, Split, train_epoch
from components.training_state import TrainingState

STEPS = 6  # of an epoch in the chain: what may grow is the cost of a step, their number is the same for all
ROUNDS = 5  # times that the two tasks of the comparison take turns


def task_cost(lesson: Lesson, fresh: Callable[[], Vit], folder: Path, tasks: int) -> dict[str, Any]:
    """Learn `tasks` tasks after one another, an epoch of a few steps each, and time it.

    Args:
        lesson: images and settings; each task learns them with a module of its own.
        fresh: a backbone without modules.
        folder: an empty place for the chain of modules.
        tasks: their number; 0 measures nothing.

    Returns:
        task_cost: a row for each task: the seconds of its epoch, and those of reading its past. From 3 tasks on also
        task_cost_ratio: the last task's epoch over the second one's, medians of turns taken one after the other.
    """
    images = STEPS * lesson.settings.batch_size
    train = Split(lesson.train.tokens, lesson.train.labels[:images])
    lesson = replace(lesson, train=train, val=Split(lesson.val.tokens, lesson.val.labels[:images]))
    write_json(folder / BASE / "module.json", {"task": BASE})
    rows: list[dict[str, float]] = []
    for number in range(1, tasks + 1):
        begin = time.perf_counter()
        taught = _attached(lesson, fresh(), folder, number)
        ready = time.perf_counter()
        seconds = _epoch(taught, folder)
        _store(taught, folder, number)
        rows.append({"task": number, "epoch_seconds": round(seconds, 4), "past_seconds": round(ready - begin, 4)})
        print(f"task {number}: {seconds:.3f} s an epoch, {ready - begin:.3f} s for its past", flush=True)
    return {"task_cost": rows} | ({"task_cost_ratio": _ratio(lesson, fresh, folder, tasks)} if tasks > 2 else {})


def _ratio(lesson: Lesson, fresh: Callable[[], Vit], folder: Path, tasks: int) -> float:
    seconds: dict[int, list[float]] = {2: [], tasks: []}
    taught = {number: _attached(lesson, fresh(), folder, number) for number in seconds}
    for _ in range(ROUNDS):
        for number, found in seconds.items():
            found.append(_epoch(taught[number], folder))
    return round(statistics.median(seconds[tasks]) / statistics.median(seconds[2]), 4)


def _attached(lesson: Lesson, vit: Vit, folder: Path, number: int) -> Lesson:
    """The lesson of task `number`, on the past of all tasks before it."""
    past = read_past(folder, _name(number - 1), lesson.settings.past_budget)
    return replace(lesson, task=_name(number), vit=vit, trained=attach(vit, past, lesson.settings, number), seed=number)


def _epoch(lesson: Lesson, folder: Path) -> float:
    """Seconds of an epoch with its validation, after one step that warms up."""
    parameters, width = lesson.trained.parameters(), 2 * lesson.vit.width
    never = Checkpoints(folder / "checkpoints", every=math.inf)
    seconds = math.nan
    for part in (replace(lesson, train=Split(lesson.train.tokens, lesson.train.labels[:1])), lesson):
        state = TrainingState.begin(parameters, width, lesson.classes, len(part.train), lesson.settings, lesson.seed)
        start = time.perf_counter()
        train_epoch(part, state, never)
        seconds = time.perf_counter() - start
    return seconds


def _store(lesson: Lesson, folder: Path, number: int) -> None:
    trained, settings = lesson.trained, lesson.settings
    component, reuse = trained.component(), trained.reuse(settings.reuse_threshold)
    previous = _name(number - 1)
    write_module(folder, lesson.task, previous, component, reuse, trained.past, lesson.vit, settings.max_rank)


def _name(number: int) -> str:
    return f"task-{number}" if number else BASE
