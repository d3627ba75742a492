"""The content of reports/metrics.json: every metric of docs/reference/metrics.md, from the scores of test images."""

from __future__ import annotations

from typing import Any

import numpy as np

from components.arrays import Indices
from components.config import Config
from components.evaluation.baselines import baselines, frozen_task_aware, result_row
from components.evaluation.certificate import confusion_bound, measured_confusion, separation
from components.evaluation.metrics import stream_metrics
from components.evaluation.retrieve import RULES, accuracy_matrix, retrieve, retrieve_exactly
from components.evaluation.test_scores import KnownTasks, TestScores
from components.evaluation.unknown_tasks import rejection
from components.retrieval.pooled import PooledRetriever


def metric_report(scores: TestScores, known: KnownTasks, config: Config) -> dict[str, Any]:
    """Compute all metrics.

    Args:
        scores: of the test images.
        known: the images where all tasks are known (`with_known`).
        config: of the project.

    Returns:
        Name -> number, table or matrix, as JSON holds it.
    """
    sizes, epsilon = np.bincount(scores.task, minlength=len(scores.signatures)), config.shortlist.epsilon
    matrix, (_, retrieved) = accuracy_matrix(scores, config), retrieve(scores, known, config)
    right_task = retrieved == scores.task
    columns = {
        "accuracy": scores.per_task(scores.correct(retrieved, known)),
        "retrieval_accuracy": scores.per_task(right_task),
        "task_aware_accuracy": scores.per_task(scores.correct(scores.task, known)),
        "frozen_task_aware_accuracy": scores.per_task(frozen_task_aware(scores)),
    }
    return {
        "tasks": scores.names,
        "classes": sum(len(signature.classes) for signature in scores.signatures),
        "test_images": len(scores.task),
        **stream_metrics(matrix, sizes.tolist()),
        "retrieval_accuracy": float(right_task.mean()),
        "task_aware_accuracy": float(np.mean(columns["task_aware_accuracy"])),
        "frozen_task_aware_accuracy": float(np.mean(columns["frozen_task_aware_accuracy"])),
        **shortlist_metrics(scores, epsilon),
        **serving_metrics(scores, known, config, retrieved),
        "accuracy_matrix": matrix,
        "rules": {rule: _rule_row(scores, known, config, rule) for rule in RULES},
        "baselines": baselines(scores),
        "rejection": rejection(scores),
        "certificate": certificate_report(scores, epsilon),
        "per_task": {
            name: {key: values[k] for key, values in columns.items()} | {"test_images": int(sizes[k])}
            for k, name in enumerate(scores.names)
        },
    }


def shortlist_metrics(scores: TestScores, epsilon: float) -> dict[str, float]:
    """Compute how often the true task is in question, which is promised for 1 - epsilon, and how many tasks are."""
    shortlist = scores.p_values > epsilon
    return {
        "shortlist_coverage": float(shortlist[np.arange(len(shortlist)), scores.task].mean()),
        "shortlist_size": float(shortlist.sum(axis=1).mean()),
    }


def serving_metrics(scores: TestScores, known: KnownTasks, config: Config, retrieved: Indices) -> dict[str, float]:
    """Compute what constant cost changes.

    Args:
        scores: of the test images.
        known: the images where all tasks are known (`with_known`).
        config: of the project.
        retrieved: task of each image as it is served, (n,).

    Returns:
        unknown_rate: share of images that are called unknown; early_share: that the trunk decided; cap_rate: whose
        shortlist was cut; agreement_with_exact: whose answer is the one with every task scored in full.
    """
    found, exact = known.retrieval, retrieve_exactly(scores, known, config, config.retrieval.rule)
    unknown = ~(scores.p_values > config.shortlist.epsilon).any(axis=1)
    return {
        "unknown_rate": float(found.unknown.mean()),
        "early_share": float(found.decided_by_trunk.mean()),
        "cap_rate": float(found.capped.mean()),
        "agreement_with_exact": float(((retrieved == exact) & (found.unknown == unknown)).mean()),
    }


def certificate_report(scores: TestScores, epsilon: float) -> dict[str, Any]:
    """Compute what is promised beside what is measured, for each task and each pair; matrices in the tasks' order."""
    retriever = PooledRetriever.fit([signature.statistics for signature in scores.signatures])
    delta, bound = separation(retriever), confusion_bound(retriever)
    measured = measured_confusion(retriever.scores(scores.h0), scores.task)
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


def _rule_row(scores: TestScores, known: KnownTasks, config: Config, rule: str) -> dict[str, float]:
    """Compute the accuracy of one retrieval rule with the same modules and classifiers, every task scored in full."""
    retrieved = retrieve_exactly(scores, known, config, rule)
    return result_row(scores, retrieved, scores.correct(retrieved, known))
