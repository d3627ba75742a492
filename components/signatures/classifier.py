"""The linear classifier of a task: shrunk discriminant analysis with a calibrated temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from components.arrays import Embeddings, Labels, Matrix, Vector
from components.signatures.statistics import Statistics, pooled_covariance, subsample


@dataclass(frozen=True)
class Classifier:
    """Linear discriminant analysis, shrunk covariance: coef (C, p), intercept (C,), temperature of its softmax.

    It reads the last p coordinates of an embedding: all of it, or only those that a module adapts. Then the frozen
    network may be heard as well: `frozen` (n, C), discriminants of the same classes on h_0, up to a constant per image.
    The two are averaged, which is the even geometric mean of what they say (a logarithmic opinion pool).
    """

    coef: Matrix
    intercept: Vector
    temperature: float

    @classmethod
    def fit(cls, h: Embeddings, labels: Labels, classes: int) -> Classifier:
        """Of embeddings h (n, d) with labels (n,), equal class priors."""
        statistics = Statistics.fit(h, labels, classes)
        return cls.from_covariance(statistics.means, pooled_covariance([statistics]))

    @classmethod
    def from_covariance(cls, means: Matrix, covariance: Matrix) -> Classifier:
        """The discriminant of Gaussians with `means` (C, d) and one `covariance` (d, d)."""
        ridge = 1e-9 * np.trace(covariance) / len(covariance) + 1e-12  # a class of equal images has no spread
        coef = np.linalg.solve(covariance + ridge * np.eye(len(covariance)), means.T).T
        return cls(coef, -0.5 * np.einsum("cd,cd->c", means, coef), 1.0)

    def calibrated(self, h: Embeddings, labels: Labels, frozen: Matrix | None = None) -> Classifier:
        """With the temperature that maximises the likelihood of held-out data (Guo et al., 2017)."""
        if len(h) == 0:
            return self
        some = subsample(len(h))
        scores = pooled(self.discriminants(h[some]), None if frozen is None else frozen[some])
        labels = labels[some]

        def loss(log_temperature: float) -> float:
            chosen = log_softmax(scores / np.exp(log_temperature), axis=1)[np.arange(len(labels)), labels]
            return -float(chosen.mean())

        found = minimize_scalar(loss, bounds=(-3.0, 6.0), method="bounded")
        return Classifier(self.coef, self.intercept, float(np.exp(found.x)))

    def rounded(self, center: Vector) -> Classifier:
        """The same with coefficients as files keep them: float16, a thousandth of the largest one being 1.

        What that adds to a score is nearly the same for all images, as their embeddings have much in common: it is
        taken off the intercept, so that `center` (d,), the mean of the task's images, is scored as before.
        """
        coef = from_float16(*in_float16(self.coef))
        lost = (self.coef - coef) @ center[-coef.shape[1] :].astype(np.float64)
        return Classifier(coef, self.intercept + lost, self.temperature)

    def log_probabilities(self, h: Embeddings, frozen: Matrix | None = None) -> Matrix:
        """log p(c | x, k) of embeddings h (n, d), d >= p, (n, C)."""
        return self.log_probabilities_from(self.discriminants(h), frozen)

    def discriminants(self, h: Embeddings) -> Matrix:
        """Log-likelihood ratios of the classes, up to a constant per image, (n, d) -> (n, C)."""
        return h[:, -self.coef.shape[1] :].astype(np.float64) @ self.coef.T + self.intercept

    def log_probabilities_from(self, discriminants: Matrix, frozen: Matrix | None = None) -> Matrix:
        """log p(c | x, k) from `discriminants` (n, C) of embeddings."""
        return cast(Matrix, log_softmax(pooled(discriminants, frozen) / self.temperature, axis=1))


def in_float16(coef: Matrix) -> tuple[NDArray[np.float16], float]:
    """Coefficients (C, p) as float16 in units of the largest one's thousandth, and the unit.

    Rounded coefficients are rounded to themselves.
    """
    # A power of two changes no digit, however often it is taken in and out.
    unit = float(np.exp2(np.floor(np.log2(max(float(np.abs(coef).max(initial=0)), 1e-30) / 1000))))
    return (coef / unit).astype(np.float16), unit


def from_float16(coef: NDArray[np.float16], unit: float) -> Matrix:
    """The rounded coefficients (C, p) that `in_float16` made."""
    return coef.astype(np.float64) * unit


def pooled(adapted: Matrix, frozen: Matrix | None) -> Matrix:
    """The mean of what two classifiers say of n images, (n, C) each; the first alone where there is no second."""
    return adapted if frozen is None else (adapted + frozen) / 2
