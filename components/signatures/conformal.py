"""Which tasks an image could belong to, with a guarantee that assumes no distribution (docs/explanation/method.md).

Split conformal prediction, one task at a time (Vovk, Gammerman and Shafer, 2005; the guarantee per task is their
Mondrian variant). With scores s_1 .. s_n of the task's held-out images, the p-value of a new image with score s is

    p = (#{i: s_i <= s} + 1) / (n + 1)

If the image is exchangeable with the held-out ones, the rank of s among all n + 1 scores is uniform, ties apart, so
P(p <= epsilon) <= epsilon for every epsilon. A shortlist of the tasks with p > epsilon then holds the true task with
probability of at least 1 - epsilon, and tasks that arrive later do not change that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from components.arrays import Vector


@dataclass(frozen=True)
class Calibration:
    """Scores (n,) float64 of a task's held-out images, ascending; larger is more typical of the task. n may be 0."""

    scores: Vector

    @classmethod
    def of(cls, scores: Vector) -> Calibration:
        """Sort scores (n,) of any order."""
        return cls(np.sort(scores))

    def p_values(self, scores: Vector) -> Vector:
        """Return the conformal p-value of each new image, (m,) -> (m,), by the formula of this file."""
        no_better = np.searchsorted(self.scores, scores, side="right").astype(np.float64)
        return (no_better + 1) / (len(self.scores) + 1)

    def typicality(self, scores: Vector) -> Vector:
        """Return the distance from the held-out median in interquartile ranges, (m,) -> (m,).

        It orders images whose p-values are equal because they lie beyond all held-out images.
        """
        if len(self.scores) == 0:
            return np.zeros(len(scores))
        low, median, high = np.quantile(self.scores, [0.25, 0.5, 0.75])
        return cast(Vector, (scores - median) / max(high - low, 1e-9))
