"""Which task an image belongs to, with nothing learned that could forget (docs/method.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack, solve_triangular
from scipy.special import logsumexp

from components.arrays import Arrays, Embeddings, Indices, Matrix
from components.signatures.statistics import Statistics, pooled_covariance


@dataclass(frozen=True)
class PooledRetriever:
    """Class means of all tasks in the shared space h_0, with one within-class covariance pooled over tasks.

    whitener (d, d) with whitener @ whitener.T = covariance^-1; centers (C, d) whitened class means; owner (C,) the
    task of each. Two classes at Mahalanobis distance delta are confused with probability Phi(-delta / 2).
    """

    whitener: Matrix
    centers: Matrix
    task_of_class: Indices

    @classmethod
    def fit(cls, tasks: Sequence[Statistics]) -> PooledRetriever:
        """From the statistics of every task so far, in order."""
        means = np.concatenate([statistics.means for statistics in tasks])
        # Of a triangular matrix, which numpy's inv does not know: a fifth of the time in thousands of dimensions.
        inverse, _ = lapack.dtrtri(np.linalg.cholesky(pooled_covariance(tasks)), lower=1)
        whitener = np.asarray(inverse, order="C").T
        task_of_class = np.repeat(np.arange(len(tasks)), [len(statistics.means) for statistics in tasks])
        return cls(whitener, means @ whitener, task_of_class)

    def scores(self, h0: Embeddings) -> Matrix:
        """log p_k(h_0) up to a constant, a task being the even mixture of its classes: (n, d) -> (n, T)."""
        return mixture_scores(self.class_scores(h0), self.task_of_class)

    def class_scores(self, h0: Embeddings) -> Matrix:
        """Minus half the squared Mahalanobis distance to each class mean: (n, d) -> (n, C)."""
        z = h0.astype(np.float64) @ self.whitener
        squared = (z**2).sum(axis=1)[:, None] - 2 * z @ self.centers.T + (self.centers**2).sum(axis=1)
        return cast(Matrix, -0.5 * np.maximum(squared, 0))

    def linear(self) -> LinearRetriever:
        """The same task scores, up to a constant per image, for a cost that does not hold a (d, d) matrix."""
        middle = self.centers.mean(axis=0)  # counted from here, scores are small enough for float32
        around = self.centers - middle
        origin = solve_triangular(self.whitener.T, middle, lower=True)
        offset = -0.5 * (around**2).sum(axis=1)
        coef, offset, origin = (x.astype(np.float32) for x in (around @ self.whitener.T, offset, origin))
        return LinearRetriever(coef, offset, origin, self.task_of_class)


@dataclass(frozen=True)
class LinearRetriever:
    """A PooledRetriever as it is served: one linear discriminant per class around `origin` (d,).

    coef (C, d), offset (C,), owner (C,): the task of each class, in order.
    """

    coef: NDArray[np.float32]
    offset: NDArray[np.float32]
    origin: NDArray[np.float32]
    task_of_class: Indices

    def scores(self, h: Embeddings) -> Matrix:
        """Task scores (n, d) -> (n, T), equal to PooledRetriever's but for a constant per image."""
        return mixture_scores(self.class_scores(h), self.task_of_class)

    def class_scores(self, h: Embeddings) -> Matrix:
        """Class scores (n, d) -> (n, C), equal to PooledRetriever's but for a constant per image."""
        # coef stands first, so that BLAS reads what is large in order.
        found = (self.coef @ (h - self.origin).T).T + self.offset
        return found.astype(np.float64, order="C")

    def to_arrays(self) -> Arrays:
        """For a safetensors file."""
        return {"coef": self.coef, "offset": self.offset, "origin": self.origin, "owner": self.task_of_class}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> LinearRetriever:
        """The inverse of `to_arrays`."""
        return cls(arrays["coef"], arrays["offset"], arrays["origin"], arrays["owner"])


def mixture_scores(class_scores: Matrix, task_of_class: Indices) -> Matrix:
    """log of the even mixture of each task's classes, which stand in the order of their tasks `task_of_class` (C,).

    (n, C) -> (n, T).
    """
    first, classes = np.unique(task_of_class, return_index=True)[1], np.bincount(task_of_class)
    top = np.maximum.reduceat(class_scores, first, axis=1)
    parts = np.exp(class_scores - np.repeat(top, classes, axis=1))
    return cast(Matrix, top + np.log(np.add.reduceat(parts, first, axis=1) / classes))


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
