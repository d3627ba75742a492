"""How well images of a task that was never learned are recognised as unknown, with each task left out in turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from components.arrays import Matrix, Vector
from components.evaluation.stream_scores import StreamScores
from components.retrieval.pooled import PooledRetriever
from components.signatures.scatter import dense

MOST = 6  # tasks that are left out in turn


def rejection(scores: StreamScores) -> dict[str, Any]:
    """Compute AUROC, and the false positive rate at 95 % true positives, of known against unknown images.

    For each task in turn: it is left out of the stream, its test images are the unknown ones, all others the known.
    Of more than MOST tasks, MOST evenly spaced ones are left out, so that the cost does not grow with the square of
    their number. Only h_0 is used.

    Returns:
        For each score ("conformal", and the baselines "mahalanobis" and "max_softmax"): the means over the tasks left
        out, and one row for each. Empty with fewer than two tasks.
    """
    tasks = scores.names
    if len(tasks) < 2:
        return {}
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for left_out in sorted({round(place) for place in np.linspace(0, len(tasks) - 1, min(MOST, len(tasks)))}):
        name = tasks[left_out]
        known = scores.task != left_out
        for score, knownness in _knownness(scores, left_out).items():
            rows.setdefault(score, {})[name] = {
                "auroc": float(roc_auc_score(known, knownness)),
                "fpr95": _fpr95(knownness[known], knownness[~known]),
            }
    return {
        score: {metric: float(np.mean([row[metric] for row in found.values()])) for metric in ("auroc", "fpr95")}
        | {"left_out": found}
        for score, found in rows.items()
    }


def _knownness(scores: StreamScores, left_out: int) -> Mapping[str, Vector]:
    """Return each score, larger where an image looks known to the tasks other than `left_out`, (n,)."""
    kept = [number for number in range(len(scores.signatures)) if number != left_out]
    (scatter, degrees), without = scores.pooled, scores.statistics[left_out]
    retriever = PooledRetriever.of_scatter(
        [scores.statistics[number] for number in kept],
        scatter - dense(without.scatter),
        degrees - without.degrees_of_freedom,
    )
    closeness: Matrix = retriever.class_scores(scores.h0)
    return {
        # p-values are equal for all images beyond the held-out ones; the score behind them is not.
        "conformal": scores.typicality[:, kept].max(axis=1),
        "mahalanobis": closeness.max(axis=1),
        "max_softmax": softmax(closeness, axis=1).max(axis=1),
    }


def _fpr95(known: Vector, unknown: Vector) -> float:
    """Return the share of unknown images above the threshold that 95 % of the known ones exceed."""
    return float((unknown >= np.quantile(known, 0.05)).mean())
