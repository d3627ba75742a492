"""Which task an image belongs to, with nothing learned that could forget (docs/method.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from components.io import Arrays
from components.signature import Embeddings, Statistics

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]


def shrunk_covariance(scatter: Matrix, freedom: float) -> Matrix:
    """Covariance (d, d) of a scatter matrix with `freedom` degrees, shrunk to a multiple of the identity.

    Oracle approximating shrinkage (Chen, Wiesel, Eldar and Hero, 2010), which needs nothing but the scatter.
    """
    covariance = scatter / max(freedom, 1.0)
    width = len(covariance)
    mu = np.trace(covariance) / width
    alpha = np.mean(covariance**2)
    denominator = (freedom + 1) * (alpha - mu**2 / width)
    shrinkage = 1.0 if denominator <= 0 else min(1.0, (alpha + mu**2) / denominator)
    return cast(Matrix, (1 - shrinkage) * covariance + (shrinkage * mu + 1e-12) * np.eye(width))


@dataclass(frozen=True)
class PooledRetriever:
    """Class means of all tasks in the shared space h_0, with one within-class covariance pooled over tasks.

    whitener (d, d) with whitener @ whitener.T = covariance^-1; centers (C, d) whitened class means; owner (C,) the
    task of each. Two classes at Mahalanobis distance delta are confused with probability Phi(-delta / 2).
    """

    whitener: Matrix
    centers: Matrix
    owner: Indices

    @classmethod
    def fit(cls, tasks: Sequence[Statistics]) -> PooledRetriever:
        """From the statistics of every task so far, in order."""
        means = np.concatenate([statistics.means for statistics in tasks])
        freedom = sum(float(statistics.counts.sum()) - len(statistics.counts) for statistics in tasks)
        covariance = shrunk_covariance(cast(Matrix, sum(statistics.scatter for statistics in tasks)), freedom)
        whitener = np.linalg.inv(np.linalg.cholesky(covariance)).T
        owner = np.repeat(np.arange(len(tasks)), [len(statistics.means) for statistics in tasks])
        return cls(whitener, means @ whitener, owner)

    def scores(self, h0: Embeddings) -> Matrix:
        """log p_k(h_0) up to a constant, a task being the even mixture of its classes: (n, d) -> (n, T)."""
        log_parts = self.class_scores(h0)
        tasks = int(self.owner.max()) + 1
        columns = [self.owner == task for task in range(tasks)]
        return np.stack([logsumexp(log_parts[:, own], axis=1) - np.log(own.sum()) for own in columns], axis=1)

    def class_scores(self, h0: Embeddings) -> Matrix:
        """Minus half the squared Mahalanobis distance to each class mean: (n, d) -> (n, C)."""
        z = h0.astype(np.float64) @ self.whitener
        squared = (z**2).sum(axis=1)[:, None] - 2 * z @ self.centers.T + (self.centers**2).sum(axis=1)
        return cast(Matrix, -0.5 * np.maximum(squared, 0))

    def to_arrays(self) -> Arrays:
        """For a safetensors file."""
        return {"whitener": self.whitener.astype(np.float32), "centers": self.centers, "owner": self.owner}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> PooledRetriever:
        """The inverse of `to_arrays`."""
        return cls(arrays["whitener"].astype(np.float64), arrays["centers"], arrays["owner"])


def choose_task(scores: Matrix, class_log_probability: Matrix | None = None) -> Indices:
    """The retrieved task of each image, from task scores (n, T).

    With `class_log_probability` (n, T), the largest log p(c | x, k) of each task, the soft rule: the task of the
    class that maximises p(k | x) p(c | x, k).
    """
    total = scores if class_log_probability is None else log_posterior(scores) + class_log_probability
    return cast(Indices, total.argmax(axis=1))


def log_posterior(scores: Matrix) -> Matrix:
    """log p(k | x) under even task priors, (n, T) -> (n, T)."""
    return cast(Matrix, scores - logsumexp(scores, axis=1, keepdims=True))
