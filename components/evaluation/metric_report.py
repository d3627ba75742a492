"""The content of reports/metrics.json: every metric of docs/reference/metrics.md, from the scores of test images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from components.arrays import Indices, Mask
from components.config import Config
from components.evaluation.baselines import baselines, result_row
from components.evaluation.certificate import confusion_bound, measured_confusion, separation
from components.evaluation.metrics import stream_metrics
from components.evaluation.retrieve import Retrieve, retrieve_exactly
from components.evaluation.stream_scores import KnownTasks, StreamScores
from components.evaluation.unknown_tasks import rejection

if TYPE_CHECKING:
    from components.evaluation.all_modules import AllModules


def metric_report(
    scores: StreamScores, known: KnownTasks, config: Config, matrix: list[list[float]], retrieve: Retrieve
) -> dict[str, Any]:
    """Compute all metrics.

    Args:
        scores: of the test images.
        known: the images where all tasks are known (`with_known`).
        config: of the project.
        matrix: R[t][j] of components/evaluation/accuracy_matrix.py.
        retrieve: chooses the task of each image.

    Returns:
        Name -> number, table or matrix, as JSON holds it.
    """
    sizes, epsilon = np.bincount(scores.task, minlength=len(scores.signatures)), config.shortlist.epsilon
    retrieved = retrieve(known)[1]
    right_task = retrieved == scores.task
    columns = {
        "accuracy": scores.per_task(scores.correct(retrieved, known)),
        "label_accuracy": scores.per_task(label_correct(scores, known, retrieved, config)),
        "retrieval_accuracy": scores.per_task(right_task),
        "task_aware_accuracy": scores.per_task(scores.correct(scores.task, known)),
        "frozen_task_aware_accuracy": scores.per_task(
            np.concatenate([images.frozen_correct for images in scores.images])
        ),
    }
    exact = retrieve_exactly(scores, config, None)
    return {
        "tasks": scores.names,
        "classes": sum(len(signature.classes) for signature in scores.signatures),
        "test_images": len(scores.task),
        **stream_metrics(matrix, sizes.tolist()),
        "label_accuracy": float(np.mean(columns["label_accuracy"])),
        "retrieval_accuracy": float(right_task.mean()),
        "task_aware_accuracy": float(np.mean(columns["task_aware_accuracy"])),
        "frozen_task_aware_accuracy": float(np.mean(columns["frozen_task_aware_accuracy"])),
        **shortlist_metrics(scores, epsilon),
        **serving_metrics(known),
        "accuracy_matrix": matrix,
        "rules": {"pooled": result_row(scores, exact, scores.correct(exact, known))},
        "baselines": baselines(scores),
        "rejection": rejection(scores),
        "certificate": certificate_report(scores, epsilon),
        "per_task": {
            name: {key: values[k] for key, values in columns.items()} | {"test_images": int(sizes[k])}
            for k, name in enumerate(scores.names)
        },
    }


def label_correct(scores: StreamScores, known: KnownTasks, retrieved: Indices, config: Config) -> Mask:
    """Return whether the label alone is right, (n,): two tasks may share one, under one name or by stream.labels.

    Where another task was retrieved, the label is the class that the frozen network names there, since the image never
    ran under that task's module in evaluation.

    Args:
        scores: of the test images.
        known: the images where all tasks are known (`with_known`).
        retrieved: task of each image, (n,).
        config: its `stream.labels` joins and renames labels.
    """
    names = [[config.label(signature.task, name) for name in signature.classes] for signature in scores.signatures]
    first = np.cumsum([0, *(len(classes) for classes in names)])
    right = np.empty(len(retrieved), dtype=bool)
    for row, (own, label, chosen) in enumerate(zip(scores.task, scores.label, retrieved, strict=True)):
        if own == chosen:
            best = int(known.best_class[row])
        else:
            best = int(known.retrieval.frozen[row, first[chosen] : first[chosen + 1]].argmax())
        right[row] = names[chosen][best] == names[own][label]
    return right


def shortlist_metrics(scores: StreamScores, epsilon: float) -> dict[str, float]:
    """Compute how often the true task is in question, which is promised for 1 - epsilon, and how many tasks are."""
    shortlist = scores.p_values > epsilon
    return {
        "shortlist_coverage": float(shortlist[np.arange(len(shortlist)), scores.task].mean()),
        "shortlist_size": float(shortlist.sum(axis=1).mean()),
    }


def serving_metrics(known: KnownTasks) -> dict[str, float]:
    """Compute what constant cost changes: images called unknown, decided by the trunk, and with a shortlist cut."""
    found = known.retrieval
    return {
        "unknown_rate": float(found.unknown.mean()),
        "early_share": float(found.decided_by_trunk.mean()),
        "cap_rate": float(found.capped.mean()),
    }


def agreement(
    scores: StreamScores, known: KnownTasks, config: Config, retrieve: Retrieve, modules: AllModules | None
) -> float:
    """Return the share of images whose answer is the one with every task scored in full.

    Args:
        scores: of the test images.
        known: the images where all tasks are known (`with_known`).
        config: of the project.
        retrieve: chooses the task of each image.
        modules: the images under every module; None where h_0 is enough.
    """
    exact = retrieve_exactly(scores, config, modules)
    unknown = ~(scores.p_values > config.shortlist.epsilon).any(axis=1)
    return float(((retrieve(known)[1] == exact) & (known.retrieval.unknown == unknown)).mean())


def certificate_report(scores: StreamScores, epsilon: float) -> dict[str, Any]:
    """Compute what is promised beside what is measured, for each task and each pair; matrices in the tasks' order."""
    retriever = scores.retriever
    delta, bound = separation(retriever), confusion_bound(retriever)
    measured = measured_confusion(scores.pooled_scores, scores.task)
    coverage = scores.per_task(scores.p_values[np.arange(len(scores.task)), scores.task] > epsilon)
    tasks: dict[str, dict[str, Any]] = {}
    for row, signature in enumerate(scores.signatures):
        held_out = len(signature.support.calibration.scores)
        facts: dict[str, Any] = {"coverage_promised": 1 - epsilon, "coverage": coverage[row]}
        if others := [column for column in range(len(delta)) if column != row]:
            nearest = min(others, key=lambda column: float(delta[row, column]))
            facts |= {"nearest": scores.names[nearest], "delta": float(delta[row, nearest])}
            facts |= {"bound": float(bound[row, nearest]), "measured": float(measured[row, nearest])}
        tasks[signature.task] = facts | {"held_out_images": held_out}
    return {"tasks": tasks, "delta": delta.tolist(), "bound": bound.tolist(), "measured": measured.tolist()}
