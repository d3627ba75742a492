"""Which tasks an image could belong to, at the cost of one frozen pass, whatever the number of tasks.

    trunk's part of h_0 --> task scores and p-value of the best task --clear?--> yes: that task alone
                                                                       |
                                                                       no: frozen tail --> all of h_0
                                                                       |
    all of h_0 --> task scores, p-values in all tasks --> the best task, and those with p > epsilon, at most `cap`

Nearly all images are decided by the trunk's output, which every image needs anyway. Only the others pay for the frozen
tail. Where no task's p-value exceeds epsilon, the image is unknown. The p-values give the shortlist its guarantee
(components/signatures/conformal.py); the scores choose the best task (components/retrieval/pooled.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from components.arrays import Arrays, Embeddings, Indices, Mask, Matrix, Vector
from components.config import Shortlist as Settings
from components.retrieval.pooled import LinearRetriever, PooledRetriever, log_posterior, mixture_scores
from components.retrieval.supports import TaskSupports
from components.signatures.signature import Signature
from components.signatures.storage import read_support


@dataclass(frozen=True)
class RetrievalStage:
    """Retrieval in one space: `retriever` scores the tasks, `supports` tell how typical an image is of each."""

    retriever: LinearRetriever
    supports: TaskSupports


@dataclass(frozen=True)
class RetrievalResult:
    """What is known of n images before any module runs, for T tasks with C classes in all.

    Attributes:
        task: number of the best task, also of an unknown image, (n,) int64.
        unknown: whether no task's p-value exceeds epsilon, (n,) bool.
        shortlist: the tasks in question, at most `cap`, always with the best one, (n, T) bool.
        log_posterior: log p(k | x), (n, T) float64.
        p_value: the largest p-value of any task; where the trunk decided, that of the best task, (n,) float64.
        p_values: of all tasks; NaN for the other tasks of an image that the trunk decided, (n, T) float64.
        decided_by_trunk: whether the trunk's output was enough, (n,) bool.
        capped: whether more tasks were in question than the cap lets through, (n,) bool.
        frozen: logits of all classes by the frozen network, up to a constant per image, (n, C) float64.
    """

    task: Indices
    unknown: Mask
    shortlist: Mask
    log_posterior: Matrix
    p_value: Vector
    p_values: Matrix
    decided_by_trunk: Mask
    capped: Mask
    frozen: Matrix


@dataclass(frozen=True)
class TaskRetriever:
    """Retrieval as it is served, in two stages.

    Attributes:
        trunk: on the trunk's part of h_0; None where h_0 has none.
        full: on all of h_0.
        settings: `shortlist` of params.yaml.
    """

    trunk: RetrievalStage | None
    full: RetrievalStage
    settings: Settings

    @classmethod
    def fit(
        cls, signatures: Sequence[Signature], settings: Settings, fitted: PooledRetriever | None = None
    ) -> TaskRetriever:
        """Fit both stages to the signatures of all tasks so far, in order.

        Args:
            signatures: of the tasks.
            settings: `shortlist` of params.yaml.
            fitted: the retriever on all of h_0, where it was fitted before.
        """
        statistics = [signature.statistics for signature in signatures]
        supports = TaskSupports(tuple(signature.support for signature in signatures))
        full = RetrievalStage((fitted or PooledRetriever.fit(statistics)).linear(), supports)
        trunk_supports = tuple(signature.trunk_support for signature in signatures if signature.trunk_support)
        if not trunk_supports:
            return cls(None, full, settings)
        width = len(trunk_supports[0].mixture.center)
        trunk = PooledRetriever.fit([task.first(width) for task in statistics]).linear()
        return cls(RetrievalStage(trunk, TaskSupports(trunk_supports)), full, settings)

    @property
    def trunk_width(self) -> int:
        """Width of the trunk's part of h_0."""
        return self.trunk.retriever.coef.shape[1] if self.trunk else 0

    @property
    def task_of_class(self) -> Indices:
        """Number of each class's task, in order, (C,) int64."""
        return self.full.retriever.task_of_class

    def to_arrays(self) -> Arrays:
        """Return the retrievers as arrays of a safetensors file; the supports have files of their own."""
        stages = {"full": self.full} | ({"trunk": self.trunk} if self.trunk else {})
        return {
            f"{name}.{key}": array
            for name, stage in stages.items()
            for key, array in stage.retriever.to_arrays().items()
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays, signatures: Sequence[Path], settings: Settings) -> TaskRetriever:
        """Read what `to_arrays` returned, and the supports.

        Args:
            arrays: of the retrievers.
            signatures: folder of each task's signature, in order, with the supports.
            settings: `shortlist` of params.yaml.
        """
        stages: dict[str, RetrievalStage] = {}
        for name, file in {"full": "support.safetensors", "trunk": "trunk_support.safetensors"}.items():
            if own := {key.removeprefix(f"{name}."): x for key, x in arrays.items() if key.startswith(f"{name}.")}:
                supports = TaskSupports(tuple(read_support(folder / file) for folder in signatures))
                stages[name] = RetrievalStage(LinearRetriever.from_arrays(own), supports)
        return cls(stages.get("trunk"), stages["full"], settings)

    def find(self, trunk: Embeddings, tail: Callable[[Indices], Embeddings]) -> RetrievalResult:
        """Retrieve the tasks of n images.

        Args:
            trunk: the trunk's part of h_0, (n, trunk_width).
            tail: computes the rest of h_0 for the rows it is given, (m,) -> (m, d - trunk_width).
        """
        found = self._by_trunk(trunk)
        if len(rest := np.flatnonzero(~found.decided_by_trunk)):
            others = self._by_all_of_h0(np.concatenate([trunk[rest], tail(rest)], axis=1), found.frozen[rest])
            for part in fields(RetrievalResult):
                getattr(found, part.name)[rest] = getattr(others, part.name)
        return found

    def _by_all_of_h0(self, h0: Embeddings, frozen: Matrix) -> RetrievalResult:
        """Retrieve by all of h_0 (n, d).

        `frozen` (n, C) are the logits by the trunk's part, which stay those of the result; where h_0 has no such part,
        the logits by all of h_0 take their place.
        """
        classes, p_values = self.full.retriever.class_scores(h0), self.full.supports.p_values(h0)
        scores = mixture_scores(classes, self.task_of_class)
        best, in_question = scores.argmax(axis=1), p_values > self.settings.epsilon
        chosen = np.arange(scores.shape[1]) == best[:, None]
        # The best task first, then the others by their p-values, then by their scores.
        order = np.lexsort((-scores, -p_values, ~chosen), axis=1)
        return RetrievalResult(
            task=best,
            unknown=np.logical_not(in_question.any(axis=1)),
            shortlist=chosen | (in_question & (order.argsort(axis=1) < self.settings.cap)),
            log_posterior=log_posterior(scores / self.settings.temperature),
            p_value=p_values.max(axis=1),
            p_values=p_values,
            decided_by_trunk=np.zeros(len(h0), dtype=bool),
            capped=(chosen | in_question).sum(axis=1) > self.settings.cap,
            frozen=frozen if self.trunk else classes,
        )

    def _by_trunk(self, trunk: Embeddings) -> RetrievalResult:
        """Retrieve by the trunk's part of h_0 (n, trunk_width); rows that it does not decide are placeholders."""
        tasks, count = len(self.full.supports.supports), len(trunk)
        scores, frozen = np.zeros((count, tasks)), np.zeros((count, len(self.task_of_class)))
        p_value, p_values = np.zeros(count), np.full((count, tasks), np.nan)
        best, decided = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=bool)
        if self.trunk:
            frozen = self.trunk.retriever.class_scores(trunk)
            scores = mixture_scores(frozen, self.task_of_class)
            best = scores.argmax(axis=1)
            p_value = self.trunk.supports.p_values_in(best, trunk)
            p_values[np.arange(count), best] = p_value
            decided = (p_value > self.settings.early_p) & (margin(scores) >= self.settings.early_margin)
        return RetrievalResult(
            task=best,
            unknown=np.zeros(count, dtype=bool),
            shortlist=np.arange(tasks) == best[:, None],
            log_posterior=log_posterior(scores / self.settings.temperature),
            p_value=p_value,
            p_values=p_values,
            decided_by_trunk=decided,
            capped=np.zeros(count, dtype=bool),
            frozen=frozen,
        )


def margin(scores: Matrix) -> Vector:
    """Return how far the best score exceeds the second best, (n, T) -> (n,); infinite for a single task."""
    if scores.shape[1] == 1:
        return np.full(len(scores), np.inf)
    ordered = np.partition(scores, -2, axis=1)
    return ordered[:, -1] - ordered[:, -2]
