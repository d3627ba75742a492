"""Sums over the images of a task from which its statistics and classifiers are fitted, and to which more images add.

Counts n_c, means m_c and within-class scatter S are sufficient for linear discriminants. S is kept as a factor R with
R^T R = S, the triangle of a QR decomposition: it has no more rows than there were images, and no more than columns.
For new images with counts k_c and means m'_c (Chan, Golub and LeVeque, 1979):

    S + S' + sum over c of n_c k_c / (n_c + k_c) (m_c - m'_c)(m_c - m'_c)^T
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from components.arrays import Arrays, Embeddings, Labels, Matrix, Vector
from components.signatures.statistics import Statistics, class_means


@dataclass(frozen=True)
class ClassSums:
    """Sums of a task's C classes in a space of width d.

    Attributes:
        counts: images per class, (C,) float64.
        means: class means, (C, d) float64; zero for a class without images.
        factor: R of this file's formula, (r, d) float64, r <= d.
    """

    counts: Vector
    means: Matrix
    factor: Matrix

    @classmethod
    def fit(cls, h: Embeddings, labels: Labels, classes: int) -> ClassSums:
        """Sum labelled embeddings.

        Args:
            h: (n, d) float32 or float64.
            labels: (n,) int64 in range(classes).
            classes: number of classes C.
        """
        x = h.astype(np.float64)
        counts, means = class_means(x, labels, classes)
        return cls(counts, means, triangle(x - means[labels]))

    def add(self, h: Embeddings, labels: Labels, classes: int) -> ClassSums:
        """Add labelled embeddings, whose classes may be new; arguments as in `fit`, with the C of both together."""
        more, new = ClassSums.fit(h, labels, classes), classes - len(self.counts)
        counts, means = np.pad(self.counts, (0, new)), np.pad(self.means, ((0, new), (0, 0)))
        total = counts + more.counts
        weight = np.sqrt(counts * more.counts / np.maximum(total, 1))
        between = weight[:, None] * (means - more.means)
        share = (more.counts / np.maximum(total, 1))[:, None]
        factor = triangle(np.concatenate([self.factor, more.factor, between]))
        return ClassSums(total, means + share * (more.means - means), factor)

    def statistics(self, start: int = 0, stop: int | None = None) -> Statistics:
        """Return the statistics of the coordinates from `start` to `stop`."""
        part = self.factor[:, start:stop]
        return Statistics(self.counts, self.means[:, start:stop], part.T @ part)

    @property
    def mean(self) -> Vector:
        """Return the mean of all images, (d,)."""
        return cast(Vector, self.counts @ self.means / self.counts.sum())

    def to_arrays(self) -> Arrays:
        """Return the arrays of a safetensors file, in float32 but for the counts and means."""
        return {"counts": self.counts, "means": self.means, "factor": self.factor.astype(np.float32)}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> ClassSums:
        """Read what `to_arrays` returned."""
        return cls(arrays["counts"], arrays["means"], arrays["factor"].astype(np.float64))


def triangle(rows: Matrix) -> Matrix:
    """Return R (min(n, d), d) with R^T R = X^T X for rows X (n, d), without a row that has no energy."""
    if not len(rows):
        return rows
    factor = cast(Matrix, np.linalg.qr(rows, mode="r"))
    return factor[np.any(factor != 0, axis=1)]
