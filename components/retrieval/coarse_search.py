"""Retrieval among very many classes: coarse scores in few dimensions, then exact scores of the best candidates.

h (d,) --axes--> q dimensions --> coarse scores of all C classes --> best candidates --> their exact scores
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy.special import logsumexp

from components.arrays import Embeddings, Float32, Indices
from components.retrieval.pooled import LinearRetriever, PooledRetriever

DIMS = 128  # of the coarse scores
CANDIDATES = 64  # classes with an exact score, for each image


@dataclass(frozen=True)
class CoarseSearch:
    """A LinearRetriever that scores only the classes that a cheaper score finds likely.

    The cheaper score is the exact one with the whitened class means projected on their first q principal axes. In
    whitened coordinates Mahalanobis distances are Euclidean, so the projection keeps most of them.

    Attributes:
        exact: the discriminants of all classes.
        axes: takes an embedding to the q dimensions, (d, q) float32.
        coarse: the class means there, (C, q) float32.
        classes: number of classes of each task, (T,) int64.
    """

    exact: LinearRetriever
    axes: Float32
    coarse: Float32
    classes: Indices

    @classmethod
    def of(cls, retriever: PooledRetriever, dims: int = DIMS) -> CoarseSearch:
        """Project the class means of a retriever on `dims` axes, at most d; costs O(C d^2), once."""
        around = retriever.centers - retriever.centers.mean(axis=0)
        basis = np.linalg.eigh(around.T @ around)[1][:, -dims:]
        axes, coarse = retriever.whitener @ basis, around @ basis
        exact = retriever.linear()
        return cls(exact, axes.astype(np.float32), coarse.astype(np.float32), np.bincount(exact.task_of_class))

    def best_task(self, h: Embeddings, candidates: int = CANDIDATES) -> Indices:
        """Return the task of the largest score among the candidates' tasks, (n, d) -> (n,).

        It is LinearRetriever's best task where that task's likely classes are among the `candidates` best coarse ones.
        """
        x = h - self.exact.origin
        rough = (x @ self.axes) @ self.coarse.T - 0.5 * np.square(self.coarse).sum(axis=1)
        count = min(candidates, rough.shape[1])
        likely = np.argpartition(rough, -count, axis=1)[:, -count:]
        scores = np.einsum("nd,nkd->nk", x, self.exact.coef[likely]) + self.exact.offset[likely]
        task_of_class = self.exact.task_of_class[likely]
        of_same_task = np.where(task_of_class[:, :, None] == task_of_class[:, None, :], scores[:, None, :], -np.inf)
        task_scores = logsumexp(of_same_task, axis=2) - np.log(self.classes[task_of_class])
        return cast(Indices, task_of_class[np.arange(len(h)), task_scores.argmax(axis=1)])
