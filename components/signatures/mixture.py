"""A Dirichlet-process Gaussian mixture of a task's embeddings (docs/explanation/method.md).

    log p(h) = log sum_i pi_i N(z; mu_i, diag v_i) + log N(rest; 0, noise I),   z = A (h - center)

The mixture lives on q principal axes A. The `rest`, what of h - center the axes do not span, has isotropic noise, as
in probabilistic PCA (Tipping and Bishop, 1999). So the densities of all tasks are densities on R^d and comparable.
"""

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

_MIN_WEIGHT = 1e-3  # of a component that the Dirichlet process did not prune


@dataclass(frozen=True)
class Mixture:
    """A diagonal Gaussian mixture on q principal axes, with isotropic noise outside them: a density on R^d.

    Attributes:
        weights: pi of the K components, (K,) float64, of sum 1.
        means: on the axes, (K, q) float64.
        variances: on the axes, (K, q) float64.
        center: mean of the embeddings, (d,) float64.
        axes: principal axes as orthonormal rows, (q, d) float64.
        noise: variance along each direction that the axes do not span.
    """

    weights: Vector
    means: Matrix
    variances: Matrix
    center: Vector
    axes: Matrix
    noise: float

    @classmethod
    def fit(cls, h: Embeddings, settings: Settings, seed: int) -> Mixture:
        """Fit the axes by PCA, and the mixture on them by variational inference (Blei and Jordan, 2006).

        Args:
            h: embeddings, (n, d) float32, n >= 2.
            settings: how many components and axes at most, and the prior concentration of the weights.
            seed: of the k-means that initialises the inference.
        """
        x = h.astype(np.float64)
        dims = min(settings.pca_dims, len(x) - 1, x.shape[1] - 1)
        # On few images the SVD is more exact; on many the covariance costs less.
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
            warnings.simplefilter("ignore", ConvergenceWarning)  # the bound hardly moves any more
            model.fit(pca.transform(x))
        kept = model.weights_ >= _MIN_WEIGHT
        weights = model.weights_[kept] / model.weights_[kept].sum()
        noise = max(float(pca.noise_variance_), 1e-12)
        return cls(weights, model.means_[kept], model.covariances_[kept], pca.mean_, pca.components_, noise)

    @property
    def centroids(self) -> Matrix:
        """Component means in the space of the embeddings, (K, d) float64."""
        return self.means @ self.axes + self.center

    def with_classes(self, means: Matrix, images: Vector, images_before: float) -> Mixture:
        """Add a component for each of m new classes; the density of the others only loses weight.

        A class mean may lie outside the axes. So each class adds the axis that leads there, along which the earlier
        components have the noise's variance, as before. New components have the mean variances of the earlier ones.

        Args:
            means: of the classes, (m, d) float64.
            images: of the classes, (m,).
            images_before: number of images of the earlier components.
        """
        x = means - self.center
        outside = x - (x @ self.axes.T) @ self.axes
        _, energy, directions = np.linalg.svd(outside, full_matrices=False)
        new = directions[energy > 1e-9 * max(float(np.linalg.norm(x)), 1e-12)]
        added = len(new)
        variances = np.pad(self.variances, ((0, 0), (0, added)), constant_values=self.noise)
        axes = np.concatenate([self.axes, new])
        weights = np.concatenate([self.weights * images_before, images]) / (images_before + images.sum())
        places = np.concatenate([np.pad(self.means, ((0, 0), (0, added))), x @ axes.T])
        spread = np.concatenate([variances, np.tile(self.weights @ variances, (len(means), 1))])
        return Mixture(weights, places, spread, self.center, axes, self.noise)

    def rounded(self) -> Mixture:
        """Return the mixture with the digits that files hold: the axes in int8, all else in float32.

        Scores are calibrated on it, so that what is stored is what was calibrated.
        """
        arrays = (self.weights, self.means, self.variances, self.center, np.array(self.noise))
        weights, means, variances, center, noise = (x.astype(np.float32).astype(np.float64) for x in arrays)
        axes = from_int8(*in_int8(self.axes))
        return Mixture(weights, means, variances, center, axes, float(noise))

    def log_density(self, h: Embeddings) -> Vector:
        """Return log p(h) in nats, (n, d) -> (n,), by the formula of this file."""
        x = h.astype(np.float64) - self.center
        z = x @ self.axes.T
        outside = np.maximum((x**2).sum(axis=1) - (z**2).sum(axis=1), 0)
        rest = x.shape[1] - z.shape[1]
        log_noise = -0.5 * (outside / self.noise + rest * np.log(2 * np.pi * self.noise))
        squared = (z[:, None, :] - self.means) ** 2 / self.variances
        log_parts = -0.5 * (squared + np.log(2 * np.pi * self.variances)).sum(axis=2) + np.log(self.weights)
        return cast(Vector, logsumexp(log_parts, axis=1) + log_noise)
