"""What a task leaves behind: statistics and a mixture that retrieve it, and a classifier (docs/method.md)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_array
from scipy.special import log_softmax, logsumexp
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture

from components.config import Signature as Settings
from components.conformal import Calibration
from components.scatter import CompactScatter, Scatter, dense, from_int8, in_int8, shrunk_covariance

Embeddings = NDArray[np.float32]
Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]

_MIN_WEIGHT = 1e-3  # components below it were pruned by the Dirichlet process
_ENOUGH = 1024  # held-out images that fix a few numbers; beyond them only the cost would grow


def some_of(images: int) -> slice:
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
    def freedom(self) -> float:
        """Degrees of freedom of the scatter."""
        return float(self.counts.sum()) - len(self.counts)


def pooled_scatter(tasks: Sequence[Statistics]) -> tuple[Matrix, float]:
    """The within-class scatter (d, d) of all `tasks` together, and its degrees of freedom."""
    total = dense(tasks[0].scatter).copy()
    for statistics in tasks[1:]:
        total += dense(statistics.scatter)
    return total, sum(statistics.freedom for statistics in tasks)


def pooled_covariance(tasks: Sequence[Statistics]) -> Matrix:
    """The within-class covariance (d, d) of all `tasks` together, shrunk."""
    return shrunk_covariance(*pooled_scatter(tasks))


@dataclass(frozen=True)
class Mixture:
    """A diagonal Gaussian mixture on q principal components, with isotropic noise outside them: a density on R^d.

    weights (K,), means (K, q), variances (K, q), center (d,), axes (q, d) orthonormal rows, noise: a variance.
    Probabilistic PCA (Tipping and Bishop, 1999) gives every task's density the same support.
    """

    weights: Vector
    means: Matrix
    variances: Matrix
    center: Vector
    axes: Matrix
    noise: float

    @classmethod
    def fit(cls, h: Embeddings, settings: Settings, seed: int) -> Mixture:
        """A Dirichlet-process mixture (scikit-learn's variational one) of embeddings h (n, d), n >= 2."""
        x = h.astype(np.float64)
        dims = min(settings.pca_dims, len(x) - 1, x.shape[1] - 1)
        # The second, for many images, costs what they cost to read; on few, the first is more exact.
        pca = PCA(dims, svd_solver="full" if len(x) <= x.shape[1] else "covariance_eigh").fit(x)
        model = BayesianGaussianMixture(
            n_components=min(settings.components, len(x)),
            covariance_type="diag",
            weight_concentration_prior_type="dirichlet_process",
            weight_concentration_prior=settings.weight_concentration,
            reg_covar=1e-6 * float(pca.explained_variance_.mean()) + 1e-12,
            max_iter=300,
            random_state=seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the bound moves by less than a reader would notice
            model.fit(pca.transform(x))
        kept = model.weights_ >= _MIN_WEIGHT
        weights = model.weights_[kept] / model.weights_[kept].sum()
        noise = max(float(pca.noise_variance_), 1e-12)
        return cls(weights, model.means_[kept], model.covariances_[kept], pca.mean_, pca.components_, noise)

    @property
    def centroids(self) -> Matrix:
        """The component means in the space of the embeddings, (K, d)."""
        return self.means @ self.axes + self.center

    def rounded(self) -> Mixture:
        """The same with every number as files keep it, so that what is stored is exactly what was calibrated.

        The axes in int8, all else in float32.
        """
        arrays = (self.weights, self.means, self.variances, self.center, np.array(self.noise))
        weights, means, variances, center, noise = (x.astype(np.float32).astype(np.float64) for x in arrays)
        axes = from_int8(*in_int8(self.axes))
        return Mixture(weights, means, variances, center, axes, float(noise))

    def log_density(self, h: Embeddings) -> Vector:
        """log p_k of embeddings h (n, d), (n,)."""
        x = h.astype(np.float64) - self.center
        z = x @ self.axes.T
        outside = np.maximum((x**2).sum(axis=1) - (z**2).sum(axis=1), 0)
        rest = x.shape[1] - z.shape[1]
        log_noise = -0.5 * (outside / self.noise + rest * np.log(2 * np.pi * self.noise))
        squared = (z[:, None, :] - self.means) ** 2 / self.variances
        log_parts = -0.5 * (squared + np.log(2 * np.pi * self.variances)).sum(axis=2) + np.log(self.weights)
        return cast(Vector, logsumexp(log_parts, axis=1) + log_noise)


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
        some = some_of(len(h))
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
        return self.softened(self.discriminants(h), frozen)

    def discriminants(self, h: Embeddings) -> Matrix:
        """Log-likelihood ratios of the classes, up to a constant per image, (n, d) -> (n, C)."""
        return h[:, -self.coef.shape[1] :].astype(np.float64) @ self.coef.T + self.intercept

    def softened(self, discriminants: Matrix, frozen: Matrix | None = None) -> Matrix:
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


@dataclass(frozen=True)
class Support:
    """Where a task's images lie in a space that all tasks share: a mixture, and its density on held-out images."""

    mixture: Mixture
    calibration: Calibration

    @classmethod
    def fit(cls, train: Embeddings, held_out: Embeddings, settings: Settings, seed: int) -> Support:
        """From embeddings of the training (n, d) and the held-out (m, d) images; m may be 0."""
        mixture = Mixture.fit(train, settings, seed).rounded()
        return cls(mixture, Calibration.of(mixture.log_density(held_out)))

    def p_values(self, h: Embeddings) -> Vector:
        """Conformal p-value of each image, (n, d) -> (n,)."""
        return self.calibration.p_values(self.mixture.log_density(h))


@dataclass(frozen=True)
class Signature:
    """All that retrieval and prediction know of a task; `trunk_support` lies in the trunk's part of h_0, if any."""

    task: str
    classes: tuple[str, ...]
    statistics: Statistics
    mixture: Mixture
    support: Support
    trunk_support: Support | None
    classifier: Classifier
