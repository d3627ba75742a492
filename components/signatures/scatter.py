"""Within-class scatter: the covariance that it makes, and how it is kept in few bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from components.arrays import Arrays, Matrix

SHRINK = 5.0  # times the odds that OAS gives to the target
_DISPLACED = 0.1  # energy that rounding may displace, as a share of what a direction that is not kept has
_NONE = 1e-9  # of the strongest direction's energy: rounding errors of the decomposition
_SHRUNK = 0.005  # of the mean energy: shrinkage gives every direction more than that, or S is of very many images


def shrunk_covariance(scatter: Matrix, degrees_of_freedom: float) -> Matrix:
    """Covariance (d, d) of a scatter matrix with `degrees_of_freedom` degrees, shrunk to a multiple of the identity.

    Oracle approximating shrinkage (Chen, Wiesel, Eldar and Hero, 2010), which needs nothing but the scatter, with its
    odds multiplied by `SHRINK`: it minimises the error of a Gaussian's covariance, while classification uses the
    inverse, and embeddings have heavy tails. Held-out likelihood asks for two to four times as much on every set,
    validation accuracy for up to ten (docs/results/50-ablations.md).
    """
    covariance = scatter / max(degrees_of_freedom, 1.0)
    width = len(covariance)
    mu = np.trace(covariance) / width
    alpha = np.mean(covariance**2)
    oas, rest = alpha + mu**2, (degrees_of_freedom + 1) * (alpha - mu**2 / width) - (alpha + mu**2)
    shrinkage = 1.0 if rest <= 0 else SHRINK * oas / (SHRINK * oas + rest)
    return cast(Matrix, (1 - shrinkage) * covariance + (shrinkage * mu + 1e-12) * np.eye(width))


def in_int8(rows: Matrix) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rows (n, d) in 255 steps of each one's own: int8 (n, d) and the steps (n,).

    Rounded rows are rounded to themselves.
    """
    step = (np.abs(rows).max(axis=1, initial=0) / 127).astype(np.float32)
    whole = np.rint(rows / np.where(step > 0, step, 1).astype(np.float64)[:, None])
    return whole.astype(np.int8), step


def from_int8(whole: NDArray[np.int8], step: NDArray[np.float32]) -> Matrix:
    """The rounded rows (n, d) that `in_int8` made."""
    return whole.astype(np.float64) * step.astype(np.float64)[:, None]


@dataclass(frozen=True)
class CompactScatter:
    """S (d, d) as a factor model: sum over r of energy_r v_r v_r^T, plus a diagonal.

    The v_r, strongest first, each up to a factor: major (s, d) float16, minor (r - s, d) int8; energy (r,) and rest
    (d,) float32, not negative. Such scatters add up over tasks as full ones do, and their diagonal, hence their trace,
    is that of S.

    Rounding turns a direction a little, and some of its energy then stands where S has next to none, which the inverse
    of a covariance notices. So the strong ones, for which that would count, are kept in float16: with all of them in
    int8, classes are told apart 2 points worse, with these few in float16 as well as before
    (docs/results/50-ablations.md).
    """

    major: NDArray[np.float16]
    minor: NDArray[np.int8]
    energy: NDArray[np.float32]
    rest: NDArray[np.float32]

    @classmethod
    def of(cls, scatter: Matrix, rank: int) -> CompactScatter:
        """With the `rank` leading eigenvectors of a positive semi-definite scatter (d, d) that have any energy."""
        width = len(scatter)
        energy, vectors = eigh(scatter, subset_by_index=[max(0, width - rank), width - 1])
        kept = energy > _NONE * max(float(energy[-1]), 0.0)
        energy, directions = energy[kept][::-1].copy(), vectors.T[kept][::-1]
        whole, step = in_int8(directions)
        displaced = energy * ((from_int8(whole, step) - directions) ** 2).sum(axis=1)
        mean, left_out = np.trace(scatter) / width, (np.trace(scatter) - energy.sum()) / width
        strong = np.flatnonzero(displaced > _DISPLACED * max(left_out, _SHRUNK * mean))
        count = int(strong[-1]) + 1 if len(strong) else 0
        major, minor = np.ascontiguousarray(directions[:count]).astype(np.float16), whole[count:]
        energy[count:] *= step[count:].astype(np.float64) ** 2
        rounded = cls(major, minor, energy.astype(np.float32), np.zeros(width, np.float32))
        # What rounding takes from the diagonal, or adds to it, is made good here.
        rest = np.maximum(np.diag(scatter) - np.diag(rounded.matrix()), 0)
        return cls(major, minor, rounded.energy, rest.astype(np.float32))

    def matrix(self) -> Matrix:
        """The scatter (d, d) that it stands for."""
        directions = np.concatenate([self.major.astype(np.float64), self.minor.astype(np.float64)])
        matrix: Matrix = (directions.T * self.energy) @ directions
        matrix[np.diag_indices_from(matrix)] += self.rest
        return matrix

    def first(self, width: int) -> CompactScatter:
        """Of the first `width` coordinates alone."""
        return CompactScatter(self.major[:, :width], self.minor[:, :width], self.energy, self.rest[:width])

    def to_arrays(self) -> Arrays:
        """For a safetensors file."""
        return {"major": self.major, "minor": self.minor, "energy": self.energy, "rest": self.rest}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> CompactScatter:
        """The inverse of `to_arrays`."""
        return cls(arrays["major"], arrays["minor"], arrays["energy"], arrays["rest"])


Scatter = Matrix | CompactScatter


def dense(scatter: Scatter) -> Matrix:
    """The matrix (d, d) of either kind."""
    return scatter.matrix() if isinstance(scatter, CompactScatter) else scatter
