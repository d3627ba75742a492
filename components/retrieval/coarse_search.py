"""Retrieval among very many classes: a coarse pass in few dimensions, then the exact scores of the best candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from components.arrays import Embeddings, Indices
from components.retrieval.pooled import LinearRetriever, PooledRetriever

DIMS = 128  # of the coarse pass
CANDIDATES = 64  # classes whose score is exact


@dataclass(frozen=True)
class CoarseSearch:
    """A LinearRetriever that scores only the classes that a cheaper score finds likely.

    The cheaper score is the exact one with the whitened class means (C, d) projected on their first q principal axes,
    where Mahalanobis distances are Euclidean: axes (d, q) takes an embedding there, coarse (C, q) holds the classes.
    classes (T,): how many each task has.
    """

    exact: LinearRetriever
    axes: NDArray[np.float32]
    coarse: NDArray[np.float32]
    classes: Indices

    @classmethod
    def of(cls, retriever: PooledRetriever, dims: int = DIMS) -> CoarseSearch:
        """For the classes of `retriever`; costs O(C d^2), once."""
        around = retriever.centers - retriever.centers.mean(axis=0)
        basis = np.linalg.eigh(around.T @ around)[1][:, -dims:]
        axes, coarse = retriever.whitener @ basis, around @ basis
        exact = retriever.linear()
        return cls(exact, axes.astype(np.float32), coarse.astype(np.float32), np.bincount(exact.task_of_class))

    def best_task(self, h: Embeddings, candidates: int = CANDIDATES) -> Indices:
        """The task of the largest score, (n, d) -> (n,): LinearRetriever's, but for classes that are no candidates."""
        x = h - self.exact.origin
        rough = (x @ self.axes) @ self.coarse.T - 0.5 * np.square(self.coarse).sum(axis=1)
        count = min(candidates, rough.shape[1])
        likely = np.argpartition(rough, -count, axis=1)[:, -count:]
        scores = np.einsum("nd,nkd->nk", x, self.exact.coef[likely]) + self.exact.offset[likely]
        task_of_class = self.exact.task_of_class[likely]
        together = np.where(task_of_class[:, :, None] == task_of_class[:, None, :], scores[:, None, :], -np.inf)
        task_scores = logsumexp(together, axis=2) - np.log(self.classes[task_of_class])
        return cast(Indices, task_of_class[np.arange(len(h)), task_scores.argmax(axis=1)])
