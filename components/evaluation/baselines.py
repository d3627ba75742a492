"""Baselines: what the frozen backbone reaches without any module, on its part of h_0."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from components.arrays import Indices, Mask, Matrix
from components.evaluation.stream_scores import StreamScores
from components.retrieval.pooled import PooledRetriever


def result_row(scores: StreamScores, retrieved: Indices, correct: Mask) -> dict[str, float]:
    """Return accuracy_final and retrieval_accuracy of one way to predict.

    Args:
        scores: of the test images.
        retrieved: task of each image, (n,) int64.
        correct: whether task and class are right, (n,) bool.
    """
    return {
        "accuracy_final": float(np.mean(scores.per_task(correct))),
        "retrieval_accuracy": float((retrieved == scores.task).mean()),
    }


def baselines(scores: StreamScores) -> dict[str, dict[str, float]]:
    """Classify over all classes at once on the frozen part of h_0.

    Returns:
        nearest_class_mean: by the cosine to the class means (SimpleCIL, Zhou et al., 2023); frozen_lda: by linear
        discriminant analysis with the pooled covariance. A row of results each.
    """
    tasks = [signature.statistics.first(scores.frozen_width) for signature in scores.signatures]
    scatter, degrees = scores.pooled
    width = scores.frozen_width
    retriever = PooledRetriever.of_scatter(tasks, scatter[:width, :width], degrees)
    means = np.concatenate([statistics.means for statistics in tasks])
    h0 = scores.h0[:, : scores.frozen_width]
    h = h0.astype(np.float64)
    cosine = (h / np.linalg.norm(h, axis=1, keepdims=True)) @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    first = np.concatenate([[0], np.cumsum([len(statistics.means) for statistics in tasks])])[:-1]
    truth = first[scores.task] + scores.label
    found: Mapping[str, Matrix] = {
        "nearest_class_mean": cosine,
        "frozen_lda": retriever.class_scores(h0),
    }
    return {
        name: result_row(scores, retriever.task_of_class[logits.argmax(axis=1)], logits.argmax(axis=1) == truth)
        for name, logits in found.items()
    }
