"""The linear classifier of one task: linear discriminant analysis with a shrunk covariance, and a temperature.

    logits_c(h) = w_c . h + b_c,   w_c = S^-1 mu_c,   b_c = -1/2 mu_c . S^-1 mu_c,   p(c | x, k) = softmax(logits / t)_c

with class means mu_c, one covariance S for all classes, and equal class priors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from components.arrays import Embeddings, Float16, Labels, Matrix, Vector
from components.signatures.statistics import Statistics, pooled_covariance, subsample


@dataclass(frozen=True)
class Classifier:
    """A linear classifier of C classes on the last p coordinates of an embedding.

    Those are all coordinates, or only the ones that a module adapts. Methods that take `frozen` average its logits
    with those of the frozen network, which classifies the same classes on h_0: a logarithmic opinion pool with equal
    weights.

    Attributes:
        coef: weights, (C, p) float64.
        intercept: (C,) float64.
        temperature: divides the logits in the softmax.
    """

    coef: Matrix
    intercept: Vector
    temperature: float

    @classmethod
    def fit(cls, h: Embeddings, labels: Labels, classes: int) -> Classifier:
        """Fit linear discriminant analysis with equal class priors.

        Args:
            h: embeddings, (n, d) float32.
            labels: (n,) int64 in range(classes).
            classes: number of classes C.
        """
        return cls.from_statistics(Statistics.fit(h, labels, classes))

    @classmethod
    def from_statistics(cls, statistics: Statistics) -> Classifier:
        """Return the discriminants of classes with one covariance, shrunk (`shrunk_covariance`)."""
        return cls.from_covariance(statistics.means, pooled_covariance([statistics]))

    @classmethod
    def from_covariance(cls, means: Matrix, covariance: Matrix) -> Classifier:
        """Return the discriminants of Gaussians with these means (C, d) and one covariance (d, d)."""
        ridge = 1e-9 * np.trace(covariance) / len(covariance) + 1e-12  # classes of equal images have no spread
        coef = np.linalg.solve(covariance + ridge * np.eye(len(covariance)), means.T).T
        return cls(coef, -0.5 * np.einsum("cd,cd->c", means, coef), 1.0)

    def calibrated(self, h: Embeddings, labels: Labels, frozen: Matrix | None = None) -> Classifier:
        """Return the classifier with the temperature of the largest likelihood on held-out images.

        Temperature scaling (Guo, Pleiss, Sun and Weinberger, 2017). Without images the temperature stays as it is.

        Args:
            h: embeddings of held-out images, (n, d) float32.
            labels: (n,) int64.
            frozen: logits of the frozen network, (n, C), if predictions average them in.
        """
        if len(h) == 0:
            return self
        some = subsample(len(h))
        logits = averaged_logits(self.discriminants(h[some]), None if frozen is None else frozen[some])
        labels = labels[some]

        def loss(log_temperature: float) -> float:
            log_p = log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(len(labels)), labels]
            return -float(log_p.mean())

        found = minimize_scalar(loss, bounds=(-3.0, 6.0), method="bounded")
        return Classifier(self.coef, self.intercept, float(np.exp(found.x)))

    def rounded(self, center: Vector) -> Classifier:
        """Return the classifier with the coefficients that a file holds, in float16 (`in_float16`).

        The embeddings of a task have much in common, so rounding shifts the logits of all its images by nearly the
        same amount. The intercept makes up for that shift at `center`.

        Args:
            center: mean embedding of the task's images, (d,), whose logits stay as they are.
        """
        coef = from_float16(*in_float16(self.coef))
        shift = (self.coef - coef) @ center[-coef.shape[1] :].astype(np.float64)
        return Classifier(coef, self.intercept + shift, self.temperature)

    def log_probabilities(self, h: Embeddings, frozen: Matrix | None = None) -> Matrix:
        """Return log p(c | x, k), (n, C), of embeddings h (n, d), d >= p; `frozen` as in `calibrated`."""
        return self.log_probabilities_from(self.discriminants(h), frozen)

    def discriminants(self, h: Embeddings) -> Matrix:
        """Return the logits of embeddings before the temperature, (n, d) -> (n, C).

        They are log-likelihoods of the classes, up to a constant per image.
        """
        return h[:, -self.coef.shape[1] :].astype(np.float64) @ self.coef.T + self.intercept

    def log_probabilities_from(self, discriminants: Matrix, frozen: Matrix | None = None) -> Matrix:
        """Return log p(c | x, k), (n, C), from `discriminants` (n, C); `frozen` as in `calibrated`."""
        return cast(Matrix, log_softmax(averaged_logits(discriminants, frozen) / self.temperature, axis=1))


def in_float16(coef: Matrix) -> tuple[Float16, float]:
    """Return coefficients (C, p) as float16 multiples of a unit, and the unit.

    The unit is a power of two near a thousandth of the largest coefficient. So it changes no digit, and coefficients
    that were rounded once are rounded to themselves.
    """
    unit = float(np.exp2(np.floor(np.log2(max(float(np.abs(coef).max(initial=0)), 1e-30) / 1000))))
    return (coef / unit).astype(np.float16), unit


def from_float16(coef: Float16, unit: float) -> Matrix:
    """Return the rounded coefficients (C, p) that `in_float16` made, in float64."""
    return coef.astype(np.float64) * unit


def averaged_logits(adapted: Matrix, frozen: Matrix | None) -> Matrix:
    """Return the mean of two classifiers' logits, (n, C) each; the first one's where there is no second."""
    return adapted if frozen is None else (adapted + frozen) / 2
