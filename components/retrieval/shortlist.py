"""Which tasks an image could belong to, at a cost of one pass over the backbone, whatever their number.

The trunk's output alone decides nearly all images; only the others pay for the frozen tail (docs/method.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from components.arrays import Arrays, Embeddings, Indices, Mask, Matrix, Vector
from components.config import Shortlist as Settings
from components.retrieval.pooled import LinearRetriever, PooledRetriever, log_posterior, mixture_scores
from components.signatures.mixture import Mixture
from components.signatures.signature import Signature
from components.signatures.storage import read_support
from components.signatures.support import Support


@dataclass(frozen=True)
class Supports:
    """The supports of all T tasks in one space, evaluated together."""

    supports: tuple[Support, ...]

    def p_values(self, h: Embeddings) -> Matrix:
        """Conformal p-value in every task, (n, d) -> (n, T)."""
        densities = self.log_densities(h)
        columns = [support.calibration.p_values(densities[:, k]) for k, support in enumerate(self.supports)]
        return np.stack(columns, axis=1)

    def p_values_in(self, tasks: Indices, h: Embeddings) -> Vector:
        """Conformal p-value of each image in a task of its own, tasks (n,), h (n, d) -> (n,)."""
        found = np.empty(len(h))
        for task in np.unique(tasks):
            rows = tasks == task
            found[rows] = self.supports[task].p_values(h[rows])
        return found

    def log_densities(self, h: Embeddings) -> Matrix:
        """Every support's log density, (n, d) -> (n, T)."""
        return self._stack.log_densities(h)

    @cached_property
    def _stack(self) -> _Stack:
        return _Stack.of([support.mixture for support in self.supports])


@dataclass(frozen=True)
class _Stack:
    """T mixtures of up to K components on up to q axes, evaluated in a few products; absent ones weigh nothing.

    Coordinates are counted from `origin` (d,), a point amid all mixtures, so that float32 holds the distances.
    axes (T q, d), shift (T, q) and center (T, d) place each mixture. constant (T, K), linear and precision (T, K, q)
    are its components: log density constant + linear z - precision z^2 / 2 at z on the axes. noise and log_noise (T,)
    are its density outside them.
    """

    origin: Embeddings
    axes: Embeddings
    shift: Embeddings
    center: Embeddings
    constant: Matrix
    linear: Matrix
    precision: Matrix
    noise: Vector
    log_noise: Vector

    @classmethod
    def of(cls, mixtures: Sequence[Mixture]) -> _Stack:
        dims, parts = max(len(m.axes) for m in mixtures), max(len(m.weights) for m in mixtures)
        width, tasks = mixtures[0].axes.shape[1], len(mixtures)
        origin = np.stack([m.center for m in mixtures]).mean(axis=0).astype(np.float32)
        axes, shift = np.zeros((tasks, dims, width), np.float32), np.zeros((tasks, dims), np.float32)
        constant = np.full((tasks, parts), -np.inf)
        linear, precision = np.zeros((tasks, parts, dims)), np.zeros((tasks, parts, dims))
        center = np.stack([m.center - origin for m in mixtures]).astype(np.float32)
        noise = np.array([m.noise for m in mixtures])
        for k, m in enumerate(mixtures):
            count, used = m.means.shape
            axes[k, :used], shift[k, :used] = m.axes, m.axes @ center[k]
            linear[k, :count, :used], precision[k, :count, :used] = m.means / m.variances, 1 / m.variances
            constant[k, :count] = np.log(m.weights) - 0.5 * np.log(2 * np.pi * m.variances).sum(axis=1)
            constant[k, :count] -= 0.5 * (m.means**2 / m.variances).sum(axis=1)
        outside = width - np.array([len(m.axes) for m in mixtures])
        log_noise = -0.5 * outside * np.log(2 * np.pi * noise)
        flat = axes.reshape(tasks * dims, width)
        return cls(origin, flat, shift, center, constant, linear, precision, noise, log_noise)

    def log_densities(self, h: Embeddings) -> Matrix:
        x = (h - self.origin).T  # (d, n); the stored, larger factor stands first: BLAS reads it once, in order
        z = ((self.axes @ x).reshape(*self.shift.shape, -1) - self.shift[:, :, None]).astype(np.float64)
        far = _squared(x) - 2.0 * (self.center @ x) + _squared(self.center.T)[:, None]
        outside = np.maximum(far - _squared(z), 0)
        # The square of a component's distance multiplied out: in float64 nothing is lost.
        inside = logsumexp(self.constant[:, :, None] + self.linear @ z - 0.5 * (self.precision @ z**2), axis=1)
        density = inside - 0.5 * outside / self.noise[:, None] + self.log_noise[:, None]
        return cast(Matrix, np.ascontiguousarray(density.T))


def _squared(x: NDArray[Any]) -> Matrix:
    """Squared length over the last axis but one, in float64."""
    return cast(Matrix, np.square(x, dtype=np.float64).sum(axis=-2))


@dataclass(frozen=True)
class RetrievalStage:
    """What tells tasks apart in one space: task scores, and how typical an image is of each task."""

    retriever: LinearRetriever
    supports: Supports


@dataclass(frozen=True)
class RetrievalResult:
    """What is known of n images before any module runs.

    task (n,): the best one, whether or not it knows the image. unknown (n,): no task's p-value is above epsilon.
    shortlist (n, T): the tasks in question, at most `cap`, the best one always. log_posterior (n, T). p_value (n,): of
    the task that knows the image best. p_values (n, T): NaN where the trunk decided and nobody asked. early (n,): the
    trunk decided. capped (n,): more tasks were in question than the cap lets through. frozen (n, C): what the frozen
    network says of each class, log-likelihood ratios up to a constant per image, the tasks' classes in order.
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
    """Retrieval as it is served: `trunk` on the trunk's part of h_0 (None where it has none), `full` on all of it."""

    trunk: RetrievalStage | None
    full: RetrievalStage
    settings: Settings

    @classmethod
    def fit(cls, signatures: Sequence[Signature], settings: Settings) -> TaskRetriever:
        """From the signatures of every task so far, in order."""
        statistics = [signature.statistics for signature in signatures]
        supports = Supports(tuple(signature.support for signature in signatures))
        full = RetrievalStage(PooledRetriever.fit(statistics).linear(), supports)
        decided_by_trunk = tuple(signature.trunk_support for signature in signatures if signature.trunk_support)
        if not decided_by_trunk:
            return cls(None, full, settings)
        width = len(decided_by_trunk[0].mixture.center)
        trunk = PooledRetriever.fit([task.first(width) for task in statistics]).linear()
        return cls(RetrievalStage(trunk, Supports(decided_by_trunk)), full, settings)

    @property
    def trunk_width(self) -> int:
        """Width of the trunk's part of h_0."""
        return self.trunk.retriever.coef.shape[1] if self.trunk else 0

    @property
    def task_of_class(self) -> Indices:
        """The task of each class, (C,), in order."""
        return self.full.retriever.task_of_class

    def to_arrays(self) -> Arrays:
        """The retrievers, for a safetensors file; the supports have files of their own."""
        levels = {"full": self.full} | ({"trunk": self.trunk} if self.trunk else {})
        return {
            f"{name}.{key}": array
            for name, level in levels.items()
            for key, array in level.retriever.to_arrays().items()
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays, signatures: Sequence[Path], settings: Settings) -> TaskRetriever:
        """The inverse of `to_arrays`, with the supports in the tasks' folders `signatures`."""
        levels: dict[str, RetrievalStage] = {}
        for name, file in {"full": "support.safetensors", "trunk": "trunk_support.safetensors"}.items():
            if own := {key.removeprefix(f"{name}."): x for key, x in arrays.items() if key.startswith(f"{name}.")}:
                supports = Supports(tuple(read_support(folder / file) for folder in signatures))
                levels[name] = RetrievalStage(LinearRetriever.from_arrays(own), supports)
        return cls(levels.get("trunk"), levels["full"], settings)

    def find(self, trunk: Embeddings, tail: Callable[[Indices], Embeddings]) -> RetrievalResult:
        """The tasks of n images.

        Args:
            trunk: the trunk's part of h_0, (n, trunk_width).
            tail: computes the rest of h_0 for the rows it is given, (m,) -> (m, d - trunk_width).
        """
        found = self._early(trunk)
        if len(rest := np.flatnonzero(~found.decided_by_trunk)):
            others = self._full(np.concatenate([trunk[rest], tail(rest)], axis=1), found.frozen[rest])
            for part in fields(RetrievalResult):
                getattr(found, part.name)[rest] = getattr(others, part.name)
        return found

    def _full(self, h0: Embeddings, frozen: Matrix) -> RetrievalResult:
        """What all of h_0 says, (n, d); of the classes, where there is a trunk, still what that said (n, C)."""
        classes, p_values = self.full.retriever.class_scores(h0), self.full.supports.p_values(h0)
        scores = mixture_scores(classes, self.task_of_class)
        best, in_question = scores.argmax(axis=1), p_values > self.settings.epsilon
        chosen = np.arange(scores.shape[1]) == best[:, None]
        # The best task first, then those that find the image most typical.
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

    def _early(self, trunk: Embeddings) -> RetrievalResult:
        """What the trunk alone says; rows that it does not decide are filled in afterwards."""
        tasks, count = len(self.full.supports.supports), len(trunk)
        scores, frozen = np.zeros((count, tasks)), np.zeros((count, len(self.task_of_class)))
        decided_by_trunk = np.zeros(count, dtype=bool)
        p_value, p_values = np.zeros(count), np.full((count, tasks), np.nan)
        best, each = np.zeros(count, dtype=np.int64), np.arange(count)
        if self.trunk:
            frozen = self.trunk.retriever.class_scores(trunk)
            scores = mixture_scores(frozen, self.task_of_class)
            best = scores.argmax(axis=1)
            p_value = self.trunk.supports.p_values_in(best, trunk)
            p_values[each, best] = p_value
            decided_by_trunk = (p_value > self.settings.early_p) & (lead(scores) >= self.settings.early_margin)
        shortlist, no = np.arange(tasks) == best[:, None], np.zeros(count, dtype=bool)
        log_task = log_posterior(scores / self.settings.temperature)
        return RetrievalResult(
            best, no.copy(), shortlist, log_task, p_value, p_values, decided_by_trunk, no.copy(), frozen
        )


def lead(scores: Matrix) -> Vector:
    """By how much the best task's score (n, T) exceeds the second best's, (n,); infinite where there is no second."""
    if scores.shape[1] == 1:
        return np.full(len(scores), np.inf)
    ordered = np.partition(scores, -2, axis=1)
    return ordered[:, -1] - ordered[:, -2]
