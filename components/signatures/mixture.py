"""A Dirichlet-process Gaussian mixture of a task's embeddings (docs/explanation/method.md)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy.special import logsumexp
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture

from components.arrays import Embeddings, Matrix, Vector
from components.config import SignatureSettings as Settings
from components.signatures.scatter import from_int8, in_int8

_MIN_WEIGHT = 1e-3  # components below it were pruned by the Dirichlet process


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
