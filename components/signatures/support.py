"""Where a task's images lie in a shared space, and how typical a new image is of them."""

from __future__ import annotations

from dataclasses import dataclass

from components.arrays import Embeddings, Vector
from components.config import SignatureSettings as Settings
from components.signatures.conformal import Calibration
from components.signatures.mixture import Mixture


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
