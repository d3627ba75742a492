"""How well the signatures tell tasks apart: a bound under the fitted model, and the measured confusion.

In the whitened space of a PooledRetriever every class is a Gaussian with unit covariance. A pair of classes at
distance delta is confused with probability Phi(-delta / 2) and has the Bhattacharyya coefficient exp(-delta^2 / 8)
(docs/explanation/method.md, section 6).
"""

from __future__ import annotations

from typing import cast

import numpy as np

from components.arrays import Indices, Matrix
from components.retrieval.pooled import PooledRetriever


def distances(retriever: PooledRetriever) -> Matrix:
    """Return the Mahalanobis distances between all class means, (C, C)."""
    squared = (retriever.centers**2).sum(axis=1)
    return cast(
        Matrix, np.sqrt(np.maximum(squared[:, None] + squared - 2 * retriever.centers @ retriever.centers.T, 0))
    )


def separation(retriever: PooledRetriever) -> Matrix:
    """Return the separation of every pair of tasks, (T, T): the Mahalanobis distance of their closest classes."""
    between, tasks = distances(retriever), int(retriever.task_of_class.max()) + 1
    own = [retriever.task_of_class == task for task in range(tasks)]
    return np.array([[between[np.ix_(own[j], own[k])].min() for k in range(tasks)] for j in range(tasks)])


def confusion_bound(retriever: PooledRetriever) -> Matrix:
    """Return an upper bound on the error of telling task j from task k under the fitted model, (T, T), at most 1/2.

    1/2 sum over classes a of j and b of k of sqrt(pi_a pi_b) exp(-delta_ab^2 / 8)

    The Bhattacharyya bound (Kailath, 1967) of two equally likely tasks, each the even mixture of its classes, by the
    union over pairs of classes.
    """
    coefficients, tasks = np.exp(-(distances(retriever) ** 2) / 8), int(retriever.task_of_class.max()) + 1
    own = [np.flatnonzero(retriever.task_of_class == task) for task in range(tasks)]
    bound = np.zeros((tasks, tasks))
    for j in range(tasks):
        for k in range(tasks):
            if j != k:
                pairs = coefficients[np.ix_(own[j], own[k])].sum()
                bound[j, k] = min(0.5, 0.5 * pairs / np.sqrt(len(own[j]) * len(own[k])))
    return bound


def measured_confusion(scores: Matrix, truth: Indices) -> Matrix:
    """Return the error of telling task j from task k on their images, (T, T), where only these two are in question.

    It is the mean over the two tasks of the share of images that the other task scores higher.

    Args:
        scores: task scores (n, T).
        truth: the task of each image (n,).
    """
    tasks = scores.shape[1]
    error = np.zeros((tasks, tasks))
    for j in range(tasks):
        for k in range(j + 1, tasks):
            one, two = scores[truth == j], scores[truth == k]
            error[j, k] = error[k, j] = 0.5 * ((one[:, k] >= one[:, j]).mean() + (two[:, j] > two[:, k]).mean())
    return error
