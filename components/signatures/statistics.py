"""Sufficient statistics of a task in the space that all tasks share.

Counts, class means and within-class scatter of each task add up to those of all tasks. So one covariance is pooled
over all tasks, and no image of an earlier task is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from components.arrays import Embeddings, Labels, Matrix, Vector
from components.signatures.scatter import CompactScatter, Scatter, dense, shrunk_covariance

_ENOUGH = 1024  # held-out images to fit a few numbers on; more would only cost more


def subsample(images: int) -> slice:
    """Return an even sample of so many held-out images, of at most _ENOUGH, to fit a few numbers on."""
    return slice(None, None, max(1, -(-images // _ENOUGH)))


@dataclass(frozen=True)
class Statistics:
    """Sufficient statistics of a task's C classes on h_0.

    A scatter that was read from a signature stays compact until its matrix is needed: the matrices of a hundred tasks
    would take gigabytes.

    Attributes:
        counts: images per class, (C,) float64.
        means: class means, (C, d) float64.
        scatter: within-class scatter, (d, d).
    """

    counts: Vector
    means: Matrix
    scatter: Scatter

    @classmethod
    def fit(cls, h: Embeddings, labels: Labels, classes: int) -> Statistics:
        """Compute the statistics of labelled embeddings.

        Args:
            h: (n, d) float32.
            labels: (n,) int64 in range(classes), each class at least once.
            classes: number of classes C.
        """
        x = h.astype(np.float64)
        counts, means = class_means(x, labels, classes)
        x -= means[labels]
        return cls(counts, means, x.T @ x)

    def first(self, width: int) -> Statistics:
        """Return the statistics of the first `width` coordinates alone."""
        scatter = self.scatter
        part = scatter.first(width) if isinstance(scatter, CompactScatter) else scatter[:width, :width]
        return Statistics(self.counts, self.means[:, :width], part)

    def part(self, start: int) -> Statistics:
        """Return the statistics of the coordinates from `start` on, of a scatter that is not compact."""
        return Statistics(self.counts, self.means[:, start:], dense(self.scatter)[start:, start:])

    @property
    def degrees_of_freedom(self) -> float:
        """Degrees of freedom of the scatter: images minus classes."""
        return float(self.counts.sum()) - len(self.counts)


def class_means(x: Matrix, labels: Labels, classes: int) -> tuple[Vector, Matrix]:
    """Return the number of images of each class (C,) and their mean (C, d); zero for a class without images.

    Args:
        x: embeddings, (n, d) float64.
        labels: (n,) int64 in range(classes).
        classes: number of classes C.
    """
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    members = csr_array((np.ones(len(x)), (labels, np.arange(len(x)))), shape=(classes, len(x)))
    return counts, members @ x / np.maximum(counts, 1)[:, None]


def pooled_scatter(tasks: Sequence[Statistics]) -> tuple[Matrix, float]:
    """Return the within-class scatter (d, d) of all `tasks` together, and its degrees of freedom."""
    total = dense(tasks[0].scatter).copy()
    for statistics in tasks[1:]:
        total += dense(statistics.scatter)
    return total, sum(statistics.degrees_of_freedom for statistics in tasks)


def pooled_covariance(tasks: Sequence[Statistics]) -> Matrix:
    """Return the within-class covariance (d, d) of all `tasks` together, shrunk (`shrunk_covariance`)."""
    return shrunk_covariance(*pooled_scatter(tasks))
