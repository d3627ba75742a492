"""The supports of all tasks in one space, evaluated together: conformal p-values at the cost of a few products.

T mixtures of up to K components on up to q axes are stacked into arrays of one shape, in which absent components have
weight 0 and absent axes have precision 0. With z the coordinates of an image on a task's axes, the squared distance to
a component is multiplied out, so that all tasks and components share two products:

    log N(z; mu, v) = constant + (mu / v) . z - 1/2 (1 / v) . z^2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from components.arrays import Embeddings, Float32, Indices, Matrix, Vector
from components.signatures.mixture import Mixture
from components.signatures.support import Support


@dataclass(frozen=True)
class TaskSupports:
    """The supports of all T tasks in one space, in order."""

    supports: tuple[Support, ...]

    def p_values(self, h: Embeddings) -> Matrix:
        """Return the conformal p-value of each image in every task, (n, d) -> (n, T)."""
        densities = self.log_densities(h)
        columns = [support.calibration.p_values(densities[:, k]) for k, support in enumerate(self.supports)]
        return np.stack(columns, axis=1)

    def p_values_in(self, tasks: Indices, h: Embeddings) -> Vector:
        """Return the conformal p-value of each image in one task of its own, tasks (n,), h (n, d) -> (n,)."""
        found = np.empty(len(h))
        for task in np.unique(tasks):
            rows = tasks == task
            found[rows] = self.supports[task].p_values(h[rows])
        return found

    def log_densities(self, h: Embeddings) -> Matrix:
        """Return the log density of each image in every task, in nats, (n, d) -> (n, T)."""
        return self._stacked.log_densities(h)

    @cached_property
    def _stacked(self) -> _StackedMixtures:
        return _StackedMixtures.of([support.mixture for support in self.supports])


@dataclass(frozen=True)
class _StackedMixtures:
    """T mixtures in arrays of one shape.

    Attributes:
        origin: a point amid all mixtures, (d,) float32. Relative to it float32 holds the distances.
        axes: of all mixtures, (T q, d) float32.
        shift: each center on its axes, (T, q) float32.
        center: of each mixture, relative to the origin, (T, d) float32.
        constant: of each component's log density, its weight included, (T, K) float64.
        linear: factor of z, (T, K, q) float64.
        precision: factor of -z^2 / 2, (T, K, q) float64.
        noise: variance outside the axes, (T,) float64.
        log_noise: constant of the log density outside the axes, (T,) float64.
    """

    origin: Float32
    axes: Float32
    shift: Float32
    center: Float32
    constant: Matrix
    linear: Matrix
    precision: Matrix
    noise: Vector
    log_noise: Vector

    @classmethod
    def of(cls, mixtures: Sequence[Mixture]) -> _StackedMixtures:
        """Stack mixtures of one space."""
        dims, parts = max(len(m.axes) for m in mixtures), max(len(m.weights) for m in mixtures)
        width, tasks = mixtures[0].axes.shape[1], len(mixtures)
        origin = np.stack([m.center for m in mixtures]).mean(axis=0).astype(np.float32)
        axes, shift = np.zeros((tasks, dims, width), np.float32), np.zeros((tasks, dims), np.float32)
        constant = np.full((tasks, parts), -np.inf)
        linear, precision = np.zeros((tasks, parts, dims)), np.zeros((tasks, parts, dims))
        center = np.stack([m.center - origin for m in mixtures]).astype(np.float32)
        noise = np.array([m.noise for m in mixtures])
        for k, m in enumerate(mixtures):
            count, used = m.means.shape
            axes[k, :used], shift[k, :used] = m.axes, m.axes @ center[k]
            linear[k, :count, :used], precision[k, :count, :used] = m.means / m.variances, 1 / m.variances
            constant[k, :count] = np.log(m.weights) - 0.5 * np.log(2 * np.pi * m.variances).sum(axis=1)
            constant[k, :count] -= 0.5 * (m.means**2 / m.variances).sum(axis=1)
        outside = width - np.array([len(m.axes) for m in mixtures])
        log_noise = -0.5 * outside * np.log(2 * np.pi * noise)
        flat = axes.reshape(tasks * dims, width)
        return cls(origin, flat, shift, center, constant, linear, precision, noise, log_noise)

    def log_densities(self, h: Embeddings) -> Matrix:
        """Return the log density of each image in every mixture, (n, d) -> (n, T)."""
        x = (h - self.origin).T  # (d, n): with the stored, larger factor on the left, BLAS reads it once and in order
        z = ((self.axes @ x).reshape(*self.shift.shape, -1) - self.shift[:, :, None]).astype(np.float64)
        squared = _squared_length(x) - 2.0 * (self.center @ x) + _squared_length(self.center.T)[:, None]
        outside = np.maximum(squared - _squared_length(z), 0)
        # Multiplied out, the terms cancel; float64 has digits enough for that.
        inside = logsumexp(self.constant[:, :, None] + self.linear @ z - 0.5 * (self.precision @ z**2), axis=1)
        density = inside - 0.5 * outside / self.noise[:, None] + self.log_noise[:, None]
        return cast(Matrix, np.ascontiguousarray(density.T))


def _squared_length(x: NDArray[Any]) -> Matrix:
    """Return the squared length over the last axis but one, in float64."""
    return cast(Matrix, np.square(x, dtype=np.float64).sum(axis=-2))
