"""What the pooled Gaussian model promises about telling tasks apart, beside what test images show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kurtosis, norm

from components.arrays import Matrix
from components.config import Config
from components.evaluation.certificate import confusion_bound, measured_confusion, separation
from components.lab.task_sequence import ArrivingTask, Labelled, TaskSequence
from components.retrieval.pooled import PooledRetriever
from components.signatures.statistics import Statistics
from components.signatures.support import Support

EPSILONS = (0.01, 0.02, 0.05, 0.1)
_COMPONENTS = 32  # principal directions along which excess kurtosis is measured


def theory(sequence: TaskSequence, config: Config, seed: int) -> dict[str, Any]:
    """Measure separation, bound and confusion of every pair of tasks, and how far embeddings are from the model.

    Args:
        sequence: the tasks, and the test images of each.
        config: settings of the supports, whose coverage is measured.
        seed: of the supports.

    Returns:
        tasks; delta, bound, gaussian and measured (T, T); delta_by_tasks: smallest and median separation, and
        retrieval accuracy, with the first t tasks known; kurtosis: median and largest excess over principal directions
        of the within-class scatter (0 for a Gaussian), per task; coverage: for every epsilon, promised and measured.
    """
    statistics = [_statistics(task) for task in sequence.tasks]
    retriever = PooledRetriever.fit(statistics)
    truth = np.repeat(np.arange(len(sequence.test)), [len(part) for part in sequence.test])
    scores = np.concatenate([retriever.scores(part.images.h0) for part in sequence.test])
    delta = separation(retriever)
    return {
        "tasks": [task.name for task in sequence.tasks],
        "delta": delta.tolist(),
        "bound": confusion_bound(retriever).tolist(),
        "gaussian": norm.cdf(-delta / 2).tolist(),
        "measured": measured_confusion(scores, truth).tolist(),
        "delta_by_tasks": [
            _separation_of(statistics[:count], sequence.test) for count in range(2, len(statistics) + 1)
        ],
        "kurtosis": {task.name: _kurtosis(task) for task in sequence.tasks},
        "coverage": _coverage(sequence, config, seed),
    }


def _statistics(task: ArrivingTask) -> Statistics:
    return Statistics.fit(task.train.images.h0, task.train.labels, task.classes)


def _separation_of(statistics: Sequence[Statistics], test: Sequence[Labelled]) -> dict[str, float]:
    retriever, count = PooledRetriever.fit(statistics), len(statistics)
    between = separation(retriever)[np.triu_indices(count, 1)]
    right = [retriever.scores(part.images.h0).argmax(axis=1) == task for task, part in enumerate(test[:count])]
    return {
        "tasks": count,
        "smallest": float(between.min()),
        "median": float(np.median(between)),
        "retrieval_accuracy": float(np.concatenate(right).mean()),
    }


def _kurtosis(task: ArrivingTask) -> dict[str, float]:
    """Measure excess kurtosis of within-class residuals along their first principal directions."""
    h = task.train.images.h0.astype(np.float64)
    residual = h - _statistics(task).means[task.train.labels]
    _, _, axes = np.linalg.svd(residual, full_matrices=False)
    along = cast(NDArray[np.float64], kurtosis(residual @ axes[:_COMPONENTS].T, axis=0))
    return {"median": float(np.median(along)), "largest": float(along.max())}


def _coverage(sequence: TaskSequence, config: Config, seed: int) -> list[dict[str, Any]]:
    """Measure the share of test images whose own task stays in the shortlist, over all tasks and in the worst one."""
    own: list[NDArray[np.float64]] = []
    others: list[Matrix] = []
    supports = [
        Support.fit(task.train.images.h0, task.val.images.h0, config.signature, seed) for task in sequence.tasks
    ]
    for number, part in enumerate(sequence.test):
        p_values = np.stack([support.p_values(part.images.h0) for support in supports], axis=1)
        own.append(p_values[:, number])
        others.append(p_values)
    everything = np.concatenate(others)
    held_out = [len(task.val) for task in sequence.tasks]
    rows: list[dict[str, Any]] = []
    for epsilon in EPSILONS:
        per_task = [float((p > epsilon).mean()) for p in own]
        row: dict[str, Any] = {
            "epsilon": epsilon,
            "promised": 1 - epsilon,
            "coverage": float((np.concatenate(own) > epsilon).mean()),
        }
        row |= {"worst": min(per_task), "worst_task": sequence.tasks[int(np.argmin(per_task))].name}
        row |= {"shortlist_size": float((everything > epsilon).sum(axis=1).mean())}
        row |= {"unknown_rate": float((~(everything > epsilon).any(axis=1)).mean()), "held_out_smallest": min(held_out)}
        rows.append(row)
    return rows
