"""Sufficient statistics of a task in the space that all tasks share: they add up, so that no old image is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from components.arrays import Embeddings, Labels, Matrix, Vector
from components.signatures.scatter import CompactScatter, Scatter, dense, shrunk_covariance

_ENOUGH = 1024  # held-out images that fix a few numbers; beyond them only the cost would grow


def subsample(images: int) -> slice:
    """Which of so many held-out images are enough to fix a few numbers: an even sample, in whatever order they come."""
    return slice(None, None, max(1, -(-images // _ENOUGH)))


@dataclass(frozen=True)
class Statistics:
    """Sufficient statistics of a task on h_0: counts (C,), class means (C, d), within-class scatter (d, d).

    They add up over tasks, so a covariance pooled over all tasks needs no old data. A scatter that was read from a
    signature stays compact until it is asked for: a hundred tasks would need gigabytes for their matrices.
    """

    counts: Vector
    means: Matrix
    scatter: Scatter

    @classmethod
    def fit(cls, h: Embeddings, labels: Labels, classes: int) -> Statistics:
        """Of embeddings h (n, d) with labels (n,) in range(classes), each class at least once."""
        x = h.astype(np.float64)
        counts = np.bincount(labels, minlength=classes).astype(np.float64)
        members = csr_array((np.ones(len(x)), (labels, np.arange(len(x)))), shape=(classes, len(x)))
        means = members @ x / counts[:, None]
        x -= means[labels]
        return cls(counts, means, x.T @ x)

    def first(self, width: int) -> Statistics:
        """Of the first `width` coordinates alone."""
        scatter = self.scatter
        part = scatter.first(width) if isinstance(scatter, CompactScatter) else scatter[:width, :width]
        return Statistics(self.counts, self.means[:, :width], part)

    @property
    def degrees_of_freedom(self) -> float:
        """Degrees of freedom of the scatter."""
        return float(self.counts.sum()) - len(self.counts)


def pooled_scatter(tasks: Sequence[Statistics]) -> tuple[Matrix, float]:
    """The within-class scatter (d, d) of all `tasks` together, and its degrees of freedom."""
    total = dense(tasks[0].scatter).copy()
    for statistics in tasks[1:]:
        total += dense(statistics.scatter)
    return total, sum(statistics.degrees_of_freedom for statistics in tasks)


def pooled_covariance(tasks: Sequence[Statistics]) -> Matrix:
    """The within-class covariance (d, d) of all `tasks` together, shrunk."""
    return shrunk_covariance(*pooled_scatter(tasks))
