"""One experiment: a method learns one sequence of a stream's tasks, and every metric is measured."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from components.evaluation.metrics import stream_metrics
from components.lab.embedded_images import ImageRows
from components.lab.method import Method, TaskAndClass
from components.lab.method_registry import MethodEntry, Settings
from components.lab.module_store import ModuleStore
from components.lab.task_sequence import Labelled, TaskSequence

Row = dict[str, Any]


def run_experiment(
    entry: MethodEntry, sequence: TaskSequence, store: ModuleStore, seed: int, settings: Settings
) -> Row:
    """Learn the tasks in order; after each, answer the test images of all tasks so far.

    Args:
        entry: how the method is made.
        sequence: the tasks in order of arrival, and the test images of each.
        store: trains and keeps modules.
        seed: of everything random in the method.
        settings: one point of the method's grid.

    Returns:
        The metrics of docs/reference/metrics.md; `accuracy_matrix` R[t][j], j <= t; and `retrieval_matrix`, the share
        of task j's test images that are given to each task in the end.
    """
    method = entry.make(store, seed, settings)
    start, testing = time.monotonic(), 0.0
    matrix: list[list[float]] = []
    last = len(sequence.tasks) - 1
    for number, task in enumerate(sequence.tasks):
        method.learn(task)
        if entry.final_only and number < last:
            continue
        before = time.monotonic()
        answer = _answers(method, sequence.test[: number + 1])
        matrix.append(_accuracies(answer, sequence.test[: number + 1]))
        testing += time.monotonic() - before
    learning = time.monotonic() - start - testing
    metrics = stream_metrics(matrix, [len(part) for part in sequence.test]) if not entry.final_only else _final(matrix)
    aware = [float((method.within(part.images, k) == part.labels).mean()) for k, part in enumerate(sequence.test)]
    confusion = _confusion(answer, sequence.test)
    right = sum(row[k] * len(part) for k, (row, part) in enumerate(zip(confusion, sequence.test, strict=True)))
    return {
        **metrics,
        "retrieval_accuracy": right / sum(len(part) for part in sequence.test),
        "task_aware_accuracy": float(np.mean(aware)),
        "task_aware": dict(zip((task.name for task in sequence.tasks), aware, strict=True)),
        "tasks": [task.name for task in sequence.tasks],
        "accuracy_matrix": matrix,
        "retrieval_matrix": confusion,
        "bytes_per_task": method.stored_bytes() / len(sequence.tasks),
        "learning_seconds": learning,
        "testing_seconds": testing,
    }


def validation_accuracy(
    entry: MethodEntry, sequence: TaskSequence, store: ModuleStore, seed: int, settings: Settings
) -> float:
    """Measure accuracy_final on the validation images, by which settings are chosen.

    Args:
        entry: how the method is made.
        sequence: the tasks in order of arrival.
        store: trains and keeps modules.
        seed: of everything random in the method.
        settings: the point of the method's grid to try.
    """
    method = entry.make(store, seed, settings)
    for task in sequence.tasks:
        method.learn(task)
    held_out = [task.val for task in sequence.tasks]
    return float(np.mean(_accuracies(_answers(method, held_out), held_out)))


def _final(matrix: Sequence[Sequence[float]]) -> Mapping[str, float]:
    return {"accuracy_final": float(np.mean(matrix[-1]))}


def _answers(method: Method, parts: Sequence[Labelled]) -> TaskAndClass:
    rows = np.concatenate([part.images.rows for part in parts])
    return method.predict(ImageRows(parts[0].images.embedded, rows))


def _accuracies(answer: TaskAndClass, parts: Sequence[Labelled]) -> list[float]:
    """Return the share of each task's images whose task and class are right."""
    ends = np.cumsum([len(part) for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    truth = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    correct = (answer.task == truth) & (answer.label == labels)
    return [float(own.mean()) for own in np.split(correct, ends[:-1])]


def _confusion(answer: TaskAndClass, parts: Sequence[Labelled]) -> list[list[float]]:
    ends = np.cumsum([len(part) for part in parts])
    shares = [np.bincount(own, minlength=len(parts)) / len(own) for own in np.split(answer.task, ends[:-1])]
    return [row.tolist() for row in shares]
