"""What the frozen backbone alone reaches, on its part of h_0: the least that adaptation has to beat."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from components.arrays import Indices, Mask, Matrix
from components.evaluation.test_scores import TestScores
from components.retrieval.pooled import PooledRetriever
from components.signatures.classifier import Classifier
from components.signatures.statistics import pooled_covariance


def result_row(scored: TestScores, retrieved: Indices, correct: Mask) -> dict[str, float]:
    """accuracy_final and retrieval_accuracy of one way to predict: retrieved task (n,), whether all is right (n,)."""
    return {
        "accuracy_final": float(np.mean(scored.per_task(correct))),
        "retrieval_accuracy": float((retrieved == scored.task).mean()),
    }


def baselines(scored: TestScores) -> dict[str, dict[str, float]]:
    """What the frozen backbone alone reaches over all classes at once, on its part of h_0.

    nearest_class_mean: cosine to the class means (SimpleCIL); frozen_lda: linear discriminant analysis with the
    pooled covariance.
    """
    tasks = [signature.statistics.first(scored.frozen_width) for signature in scored.signatures]
    retriever = PooledRetriever.fit(tasks)
    means = np.concatenate([statistics.means for statistics in tasks])
    h0 = scored.h0[:, : scored.frozen_width]
    h = h0.astype(np.float64)
    cosine = (h / np.linalg.norm(h, axis=1, keepdims=True)) @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    first = np.concatenate([[0], np.cumsum([len(statistics.means) for statistics in tasks])])[:-1]
    truth = first[scored.task] + scored.label
    found: Mapping[str, Matrix] = {
        "nearest_class_mean": cosine,
        "frozen_lda": retriever.class_scores(h0),
    }
    return {
        name: result_row(scored, retriever.task_of_class[scores.argmax(axis=1)], scores.argmax(axis=1) == truth)
        for name, scores in found.items()
    }


def frozen_task_aware(scored: TestScores) -> Mask:
    """Whether LDA on the frozen h_0 is right when the task is given, (n,): what adaptation has to beat."""
    correct = np.zeros(len(scored.task), dtype=bool)
    for number, signature in enumerate(scored.signatures):
        statistics = signature.statistics.first(scored.frozen_width)
        classifier = Classifier.from_covariance(statistics.means, pooled_covariance([statistics]))
        own = scored.task == number
        chosen = classifier.log_probabilities(scored.h0[own, : scored.frozen_width]).argmax(axis=1)
        correct[own] = chosen == scored.label[own]
    return correct
