"""Within-class scatter: the covariance that it makes, and how it is kept in few bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from components.io import Arrays

Matrix = NDArray[np.float64]

SHRINK = 5.0  # times the odds that OAS gives to the target


def shrunk_covariance(scatter: Matrix, freedom: float) -> Matrix:
    """Covariance (d, d) of a scatter matrix with `freedom` degrees, shrunk to a multiple of the identity.

    Oracle approximating shrinkage (Chen, Wiesel, Eldar and Hero, 2010), which needs nothing but the scatter, with its
    odds multiplied by `SHRINK`: it minimises the error of a Gaussian's covariance, while classification uses the
    inverse, and embeddings have heavy tails. Held-out likelihood asks for two to four times as much on every set,
    validation accuracy for up to ten (docs/results/50-ablations.md).
    """
    covariance = scatter / max(freedom, 1.0)
    width = len(covariance)
    mu = np.trace(covariance) / width
    alpha = np.mean(covariance**2)
    oas, rest = alpha + mu**2, (freedom + 1) * (alpha - mu**2 / width) - (alpha + mu**2)
    shrinkage = 1.0 if rest <= 0 else SHRINK * oas / (SHRINK * oas + rest)
    return cast(Matrix, (1 - shrinkage) * covariance + (shrinkage * mu + 1e-12) * np.eye(width))


@dataclass(frozen=True)
class CompactScatter:
    """S (d, d) as a factor model: sum over r of energy_r v_r v_r^T, plus a diagonal.

    directions (r, d) float16, the v_r; energy (r,) and rest (d,) float32, not negative. Such scatters add up over tasks
    as full ones do, and their diagonal, hence their trace, is that of S. Not int8: its rounding of strong directions
    drowns the weak ones, which are what tells tasks apart (docs/results/50-ablations.md).
    """

    directions: NDArray[np.float16]
    energy: NDArray[np.float32]
    rest: NDArray[np.float32]

    @classmethod
    def of(cls, scatter: Matrix, rank: int) -> CompactScatter:
        """With the `rank` leading eigenvectors of a positive semi-definite scatter (d, d); all where d <= rank."""
        width = len(scatter)
        energy, vectors = eigh(scatter, subset_by_index=[max(0, width - rank), width - 1])
        directions = np.ascontiguousarray(vectors.T).astype(np.float16)
        rounded = cls(directions, np.maximum(energy, 0).astype(np.float32), np.zeros(width, np.float32))
        # What rounding takes from the diagonal, or adds to it, is made good here.
        rest = np.maximum(np.diag(scatter) - np.diag(rounded.matrix()), 0)
        return cls(rounded.directions, rounded.energy, rest.astype(np.float32))

    def matrix(self) -> Matrix:
        """The scatter (d, d) that it stands for."""
        directions = self.directions.astype(np.float64)
        matrix = (directions.T * self.energy) @ directions
        matrix[np.diag_indices_from(matrix)] += self.rest
        return matrix

    def first(self, width: int) -> CompactScatter:
        """Of the first `width` coordinates alone."""
        return CompactScatter(self.directions[:, :width], self.energy, self.rest[:width])

    def to_arrays(self) -> Arrays:
        """For a safetensors file."""
        return {"directions": self.directions, "energy": self.energy, "rest": self.rest}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> CompactScatter:
        """The inverse of `to_arrays`."""
        return cls(arrays["directions"], arrays["energy"], arrays["rest"])


Scatter = Matrix | CompactScatter


def dense(scatter: Scatter) -> Matrix:
    """The matrix (d, d) of either kind."""
    return scatter.matrix() if isinstance(scatter, CompactScatter) else scatter
