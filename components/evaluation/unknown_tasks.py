"""How well images of a task that was never learned are recognised as unknown: each task left out in turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from components.arrays import Matrix, Vector
from components.evaluation.test_scores import TestScores
from components.retrieval.pooled import PooledRetriever


def rejection(scored: TestScores) -> dict[str, Any]:
    """AUROC, and false positive rate at 95 % true positives, of known against unknown images, from h_0 alone.

    For each task in turn: it is left out of the stream, its test images are the unknown ones, all others the known.

    Returns:
        For each way to tell ("conformal", and the baselines "mahalanobis" and "max_softmax"): the means over the tasks
        left out, and one row per task. Empty with fewer than two tasks.
    """
    tasks = [signature.task for signature in scored.signatures]
    if len(tasks) < 2:
        return {}
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for left_out, name in enumerate(tasks):
        known = scored.task != left_out
        for way, knownness in _knownness(scored, left_out).items():
            rows.setdefault(way, {})[name] = {
                "auroc": float(roc_auc_score(known, knownness)),
                "fpr95": _fpr95(knownness[known], knownness[~known]),
            }
    return {
        way: {metric: float(np.mean([row[metric] for row in found.values()])) for metric in ("auroc", "fpr95")}
        | {"left_out": found}
        for way, found in rows.items()
    }


def _knownness(scored: TestScores, left_out: int) -> Mapping[str, Vector]:
    """Larger where an image looks known to the tasks other than `left_out`, (n,) for each way to tell."""
    kept = [number for number in range(len(scored.signatures)) if number != left_out]
    retriever = PooledRetriever.fit([scored.signatures[number].statistics for number in kept])
    closeness: Matrix = retriever.class_scores(scored.h0)
    return {
        # p-values have ties where an image lies beyond all held-out ones; the score behind them has none.
        "conformal": scored.typicality[:, kept].max(axis=1),
        "mahalanobis": closeness.max(axis=1),
        "max_softmax": softmax(closeness, axis=1).max(axis=1),
    }


def _fpr95(known: Vector, unknown: Vector) -> float:
    """Share of unknown images let in by the threshold that lets in 95 % of the known ones."""
    return float((unknown >= np.quantile(known, 0.05)).mean())
