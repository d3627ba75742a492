"""The support of a task in a space that all tasks share: where its images lie, and how typical a new one is."""

from __future__ import annotations

from dataclasses import dataclass

from components.arrays import Embeddings, Vector
from components.config import Signature as Settings
from components.signatures.conformal import Calibration
from components.signatures.mixture import Mixture


@dataclass(frozen=True)
class Support:
    """The density of a task's images in a space that all tasks share, and its values on held-out images."""

    mixture: Mixture
    calibration: Calibration

    @classmethod
    def fit(cls, train: Embeddings, held_out: Embeddings, settings: Settings, seed: int) -> Support:
        """Fit the mixture on training images, and calibrate it on held-out ones.

        Args:
            train: embeddings, (n, d) float32, n >= 2.
            held_out: embeddings, (m, d) float32; m may be 0.
            settings: of the mixture.
            seed: of the mixture.
        """
        mixture = Mixture.fit(train, settings, seed).rounded()
        return cls(mixture, Calibration.of(mixture.log_density(held_out)))

    def p_values(self, h: Embeddings) -> Vector:
        """Return the conformal p-value of each image, (n, d) -> (n,)."""
        return self.calibration.p_values(self.mixture.log_density(h))
