"""Retrieval by prototypes: which task an image belongs to, with no learned parameter that could forget.

In the space h_0 that all tasks share, every class is a Gaussian with its own mean mu_c, the class's prototype, and one
within-class covariance S pooled over all tasks so far. A task is the even mixture of its classes:

    score_k(x) = log 1/|C_k| sum over c in C_k of exp(-1/2 (h_0 - mu_c)^T S^-1 (h_0 - mu_c))

Two classes at Mahalanobis distance delta are confused with probability Phi(-delta / 2) under this model, which
components/evaluation/certificate.py turns into bounds (docs/explanation/method.md, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy.linalg import lapack, solve_triangular
from scipy.special import logsumexp

from components.arrays import Arrays, Embeddings, Float32, Indices, Matrix
from components.signatures.scatter import shrunk_covariance
from components.signatures.statistics import Statistics, pooled_scatter


@dataclass(frozen=True)
class PooledRetriever:
    """The class means of all tasks, in the coordinates in which the pooled covariance is the identity.

    Attributes:
        whitener: W with W W^T = S^-1, so that h W is whitened, (d, d) float64.
        centers: whitened class means, (C, d) float64.
        task_of_class: number of each class's task, in order, (C,) int64.
    """

    whitener: Matrix
    centers: Matrix
    task_of_class: Indices

    @classmethod
    def fit(cls, tasks: Sequence[Statistics]) -> PooledRetriever:
        """Pool the statistics of all tasks so far, in order."""
        return cls.of_scatter(tasks, *pooled_scatter(tasks))

    @classmethod
    def of_scatter(cls, tasks: Sequence[Statistics], scatter: Matrix, degrees_of_freedom: float) -> PooledRetriever:
        """Fit from a scatter that was pooled before: to pool that of a hundred tasks takes seconds.

        Args:
            tasks: their means count, in order.
            scatter: of all of them together, (d, d).
            degrees_of_freedom: likewise.
        """
        means = np.concatenate([statistics.means for statistics in tasks])
        covariance = shrunk_covariance(scatter, degrees_of_freedom)
        # LAPACK's inverse of a triangular matrix takes a fifth of the time of numpy's inv in thousands of dimensions.
        inverse, _ = lapack.dtrtri(np.linalg.cholesky(covariance), lower=1)
        whitener = np.asarray(inverse, order="C").T
        task_of_class = np.repeat(np.arange(len(tasks)), [len(statistics.means) for statistics in tasks])
        return cls(whitener, means @ whitener, task_of_class)

    def scores(self, h0: Embeddings) -> Matrix:
        """Return score_k of this file's formula, (n, d) -> (n, T): log p_k(h_0) up to a constant."""
        return mixture_scores(self.class_scores(h0), self.task_of_class)

    def class_scores(self, h0: Embeddings) -> Matrix:
        """Return minus half the squared Mahalanobis distance to each class mean, (n, d) -> (n, C)."""
        z = h0.astype(np.float64) @ self.whitener
        squared = (z**2).sum(axis=1)[:, None] - 2 * z @ self.centers.T + (self.centers**2).sum(axis=1)
        return cast(Matrix, -0.5 * np.maximum(squared, 0))

    def linear(self) -> LinearRetriever:
        """Return linear discriminants of the same scores, up to a constant per image, without a (d, d) matrix.

        -1/2 |z - m_c|^2 = m_c . z - 1/2 |m_c|^2 + a constant of the image, at a whitened image z and center m_c.
        """
        middle = self.centers.mean(axis=0)  # relative to it, scores are small enough for float32
        around = self.centers - middle
        origin = solve_triangular(self.whitener.T, middle, lower=True)
        offset = -0.5 * (around**2).sum(axis=1)
        coef, offset, origin = (x.astype(np.float32) for x in (around @ self.whitener.T, offset, origin))
        return LinearRetriever(coef, offset, origin, self.task_of_class)


@dataclass(frozen=True)
class LinearRetriever:
    """A PooledRetriever as it is served: the linear discriminant coef_c . (h - origin) + offset_c of each class c.

    Attributes:
        coef: (C, d) float32.
        offset: (C,) float32.
        origin: (d,) float32.
        task_of_class: number of each class's task, in order, (C,) int64.
    """

    coef: Float32
    offset: Float32
    origin: Float32
    task_of_class: Indices

    def scores(self, h: Embeddings) -> Matrix:
        """Return PooledRetriever's task scores, up to a constant per image, (n, d) -> (n, T)."""
        return mixture_scores(self.class_scores(h), self.task_of_class)

    def class_scores(self, h: Embeddings) -> Matrix:
        """Return PooledRetriever's class scores, up to a constant per image, (n, d) -> (n, C)."""
        # With coef, the larger factor, on the left, BLAS reads it in order.
        scores = (self.coef @ (h - self.origin).T).T + self.offset
        return scores.astype(np.float64, order="C")

    def to_arrays(self) -> Arrays:
        """Return the arrays of a safetensors file."""
        return {"coef": self.coef, "offset": self.offset, "origin": self.origin, "owner": self.task_of_class}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> LinearRetriever:
        """Read what `to_arrays` returned."""
        return cls(arrays["coef"], arrays["offset"], arrays["origin"], arrays["owner"])


def mixture_scores(class_scores: Matrix, task_of_class: Indices) -> Matrix:
    """Return the logarithm of the even mixture of each task's classes, (n, C) -> (n, T).

    Args:
        class_scores: log-likelihoods up to a constant per image, (n, C).
        task_of_class: number of each class's task, in order, (C,).
    """
    first, classes = np.unique(task_of_class, return_index=True)[1], np.bincount(task_of_class)
    top = np.maximum.reduceat(class_scores, first, axis=1)
    parts = np.exp(class_scores - np.repeat(top, classes, axis=1))
    return cast(Matrix, top + np.log(np.add.reduceat(parts, first, axis=1) / classes))


def choose_task(scores: Matrix, class_log_probability: Matrix | None = None) -> Indices:
    """Return the task of each image, (n,).

    Args:
        scores: of the tasks, (n, T).
        class_log_probability: the largest log p(c | x, k) of each task, (n, T). With it the soft rule applies: the
            task of the class that maximises p(k | x) p(c | x, k).
    """
    total = scores if class_log_probability is None else log_posterior(scores) + class_log_probability
    return cast(Indices, total.argmax(axis=1))


def log_posterior(scores: Matrix) -> Matrix:
    """Return log p(k | x) under equal task priors, (n, T) -> (n, T)."""
    return cast(Matrix, scores - logsumexp(scores, axis=1, keepdims=True))
