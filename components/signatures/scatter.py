"""Within-class scatter: the covariance that follows from it, and a compact form of it as a factor model.

    S = sum over images of (h - mu_class)(h - mu_class)^T   ~   sum_i energy_i v_i v_i^T + diag(rest)

A (d, d) matrix of a thousand dimensions is megabytes for each task; its leading directions v_i and a diagonal are not.
Both forms add up over tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy.linalg import eigh

from components.arrays import Arrays, Float16, Float32, Int8, Matrix

SHRINK = 5.0  # factor on the odds that OAS gives to the identity
_DISPLACED = 0.1  # energy that int8 may displace, as a share of the energy of a direction that is left out
_NO_ENERGY = 1e-9  # of the strongest direction's energy: below it are the decomposition's rounding errors
_SHRUNK = 0.005  # of the mean energy: shrinkage gives every direction more than that, unless S has very many images


def shrunk_covariance(scatter: Matrix, degrees_of_freedom: float) -> Matrix:
    """Return the covariance (d, d) of a scatter matrix, shrunk towards a multiple of the identity.

        (1 - rho) C + rho mu I,   C = scatter / degrees_of_freedom,   mu = tr(C) / d

    rho / (1 - rho) is SHRINK times the odds of oracle approximating shrinkage (Chen, Wiesel, Eldar and Hero, 2010),
    which follow from the scatter alone. OAS minimises the error of a Gaussian's covariance; classification uses the
    inverse, and embeddings have heavy tails. Held-out likelihood is best at two to four times its odds on every data
    set, validation accuracy at up to ten times (docs/results).

    Args:
        scatter: (d, d) float64.
        degrees_of_freedom: number of images minus number of classes.
    """
    covariance = scatter / max(degrees_of_freedom, 1.0)
    width = len(covariance)
    mu = np.trace(covariance) / width
    alpha = np.mean(covariance**2)
    oas, rest = alpha + mu**2, (degrees_of_freedom + 1) * (alpha - mu**2 / width) - (alpha + mu**2)
    shrinkage = 1.0 if rest <= 0 else SHRINK * oas / (SHRINK * oas + rest)
    return cast(Matrix, (1 - shrinkage) * covariance + (shrinkage * mu + 1e-12) * np.eye(width))


def in_int8(rows: Matrix) -> tuple[Int8, Float32]:
    """Return rows (n, d) as int8 multiples of a step for each row, and the steps (n,).

    Rows that were rounded once are rounded to themselves.
    """
    step = (np.abs(rows).max(axis=1, initial=0) / 127).astype(np.float32)
    whole = np.rint(rows / np.where(step > 0, step, 1).astype(np.float64)[:, None])
    return whole.astype(np.int8), step


def from_int8(whole: Int8, step: Float32) -> Matrix:
    """Return the rounded rows (n, d) that `in_int8` made, in float64."""
    return whole.astype(np.float64) * step.astype(np.float64)[:, None]


@dataclass(frozen=True)
class CompactScatter:
    """A scatter S (d, d) as a factor model of r directions plus a diagonal, with the diagonal of S.

    Rounding turns a direction a little. Some of its energy then lies where S has next to none, and the inverse of a
    covariance magnifies that. So the strongest directions, for which it would matter, are kept in float16. With all of
    them in int8, accuracy falls by 2 points; with these few in float16 it stays (docs/results).

    Attributes:
        major: the s strongest directions, strongest first, (s, d) float16.
        minor: the other directions, (r - s, d) int8; the square of their step is a part of `energy`.
        energy: factor of each direction's outer product, (r,) float32, not negative.
        rest: the diagonal, (d,) float32, not negative.
    """

    major: Float16
    minor: Int8
    energy: Float32
    rest: Float32

    @classmethod
    def of(cls, scatter: Matrix, rank: int) -> CompactScatter:
        """Keep the `rank` leading eigenvectors, or those that have energy, of a positive semi-definite (d, d)."""
        width = len(scatter)
        energy, vectors = eigh(scatter, subset_by_index=[max(0, width - rank), width - 1])
        kept = energy > _NO_ENERGY * max(float(energy[-1]), 0.0)
        energy, directions = energy[kept][::-1].copy(), vectors.T[kept][::-1]
        whole, step = in_int8(directions)
        displaced = energy * ((from_int8(whole, step) - directions) ** 2).sum(axis=1)
        mean, left_out = np.trace(scatter) / width, (np.trace(scatter) - energy.sum()) / width
        strong = np.flatnonzero(displaced > _DISPLACED * max(left_out, _SHRUNK * mean))
        count = int(strong[-1]) + 1 if len(strong) else 0
        major, minor = np.ascontiguousarray(directions[:count]).astype(np.float16), whole[count:]
        energy[count:] *= step[count:].astype(np.float64) ** 2
        rounded = cls(major, minor, energy.astype(np.float32), np.zeros(width, np.float32))
        # What rounding took from the diagonal is returned to it here.
        rest = np.maximum(np.diag(scatter) - np.diag(rounded.matrix()), 0)
        return cls(major, minor, rounded.energy, rest.astype(np.float32))

    def matrix(self) -> Matrix:
        """Return the scatter (d, d) in float64."""
        directions = np.concatenate([self.major.astype(np.float64), self.minor.astype(np.float64)])
        matrix: Matrix = (directions.T * self.energy) @ directions
        matrix[np.diag_indices_from(matrix)] += self.rest
        return matrix

    def first(self, width: int) -> CompactScatter:
        """Return the scatter of the first `width` coordinates alone."""
        return CompactScatter(self.major[:, :width], self.minor[:, :width], self.energy, self.rest[:width])

    def to_arrays(self) -> Arrays:
        """Return the arrays of a safetensors file."""
        return {"major": self.major, "minor": self.minor, "energy": self.energy, "rest": self.rest}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> CompactScatter:
        """Read what `to_arrays` returned."""
        return cls(arrays["major"], arrays["minor"], arrays["energy"], arrays["rest"])


Scatter = Matrix | CompactScatter


def dense(scatter: Scatter) -> Matrix:
    """Return the matrix (d, d) in float64, of either form."""
    return scatter.matrix() if isinstance(scatter, CompactScatter) else scatter
