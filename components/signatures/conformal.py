"""Which tasks an image could belong to, with a guarantee that needs no Gaussian (docs/method.md).

Split conformal prediction, one task at a time (Vovk, Gammerman and Shafer, 2005; Mondrian: a guarantee per task).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from components.arrays import Vector


@dataclass(frozen=True)
class Calibration:
    """Scores (n,) of a task's own held-out images, ascending; larger is more typical of the task. n may be 0."""

    scores: Vector

    @classmethod
    def of(cls, scores: Vector) -> Calibration:
        """From scores in any order."""
        return cls(np.sort(scores))

    def p_values(self, scores: Vector) -> Vector:
        """Share of held-out images, and the new one itself, that are no more typical than the new one: (m,) -> (m,).

        If an image of the task is exchangeable with the held-out ones, P(p <= epsilon) <= epsilon for every epsilon,
        whatever the distribution.
        """
        no_better = np.searchsorted(self.scores, scores, side="right").astype(np.float64)
        return (no_better + 1) / (len(self.scores) + 1)

    def typicality(self, scores: Vector) -> Vector:
        """Distance from the held-out median in units of their spread (m,): orders images beyond the last p-value."""
        if len(self.scores) == 0:
            return np.zeros(len(scores))
        low, median, high = np.quantile(self.scores, [0.25, 0.5, 0.75])
        return cast(Vector, (scores - median) / max(high - low, 1e-9))
