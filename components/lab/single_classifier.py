"""Methods without retrieval: one classifier over all classes so far, in one representation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from components.arrays import Embeddings, Indices, Labels, Matrix
from components.lab.embedded_images import ImageRows
from components.lab.method import Representation, TaskAndClass
from components.lab.task_sequence import ArrivingTask
from components.signatures.classifier import Classifier
from components.signatures.statistics import Statistics, pooled_covariance, pooled_scatter


class Scorer(Protocol):
    """A classifier that adds classes task by task, in closed form."""

    def add(self, h: Embeddings, labels: Labels, classes: int) -> None:
        """Add new classes.

        Args:
            h: embeddings of their images, (n, d) float32.
            labels: the class of each image, (n,), from 0.
            classes: their number.
        """

    def scores(self, h: Embeddings) -> Matrix:
        """Score embeddings (n, d) for each of the C classes so far, (n, C); the largest score wins."""

    def stored_bytes(self) -> int:
        """Return the size of what is kept, in float32."""


@dataclass
class Flat:
    """One scorer over all classes; the task of an image is that of its class."""

    scorer: Scorer
    representation: Representation
    _task_of_class: list[int] = field(default_factory=list)  # the task of each class

    def learn(self, task: ArrivingTask) -> None:
        """Learn the next task."""
        self.representation.learn(task)
        number = self._task_of_class[-1] + 1 if self._task_of_class else 0
        self.scorer.add(self.representation.embed(task.train.images), task.train.labels, task.classes)
        self._task_of_class += [number] * task.classes

    def predict(self, images: ImageRows) -> TaskAndClass:
        """Predict the class of the largest score, and its task."""
        best = self.scorer.scores(self.representation.embed(images)).argmax(axis=1)
        task_of_class = np.array(self._task_of_class)
        return TaskAndClass(task_of_class[best], best - np.searchsorted(task_of_class, task_of_class[best]))

    def within(self, images: ImageRows, task: int) -> Indices:
        """Predict the class of the largest score among the task's."""
        scores = self.scorer.scores(self.representation.embed(images))
        return cast(Indices, scores[:, np.array(self._task_of_class) == task].argmax(axis=1))

    def stored_bytes(self) -> int:
        """Return the size of scorer and representation."""
        return self.scorer.stored_bytes() + self.representation.stored_bytes()


@dataclass
class CosineMeans:
    """Nearest class mean by cosine: SimpleCIL (Zhou et al., 2023)."""

    _means: list[NDArray[np.float64]] = field(default_factory=list)

    def add(self, h: Embeddings, labels: Labels, classes: int) -> None:
        """Keep one mean per class."""
        self._means += [h[labels == label].mean(axis=0, dtype=np.float64) for label in range(classes)]

    def scores(self, h: Embeddings) -> Matrix:
        """Return the cosine of each embedding to every mean."""
        return unit_rows(h.astype(np.float64)) @ unit_rows(np.stack(self._means)).T

    def stored_bytes(self) -> int:
        """Return the size of the means."""
        return 4 * sum(mean.size for mean in self._means)


@dataclass
class StreamingLda:
    """Linear discriminant analysis with one covariance for all classes (Hayes and Kanan, 2020), from running sums.

    `shrinkage` towards a multiple of the identity; None: by oracle approximating shrinkage.
    """

    shrinkage: float | None = None
    _tasks: list[Statistics] = field(default_factory=list)
    _fitted: Classifier | None = None

    def add(self, h: Embeddings, labels: Labels, classes: int) -> None:
        """Add the task's counts, means and scatter."""
        self._tasks.append(Statistics.fit(h, labels, classes))
        self._fitted = None

    def scores(self, h: Embeddings) -> Matrix:
        """Return the discriminants, up to a constant per image."""
        if self._fitted is None:
            means = np.concatenate([task.means for task in self._tasks])
            self._fitted = Classifier.from_covariance(means, self._covariance())
        return self._fitted.log_probabilities(h)

    def _covariance(self) -> Matrix:
        if self.shrinkage is None:
            return pooled_covariance(self._tasks)
        scatter, degrees_of_freedom = pooled_scatter(self._tasks)
        covariance = scatter / max(1.0, degrees_of_freedom)
        target = np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        return cast(Matrix, (1 - self.shrinkage) * covariance + self.shrinkage * target)

    def stored_bytes(self) -> int:
        """Return the size of all class means and one triangle of the summed scatter."""
        width = self._tasks[0].means.shape[1] if self._tasks else 0
        return 4 * (sum(task.means.size for task in self._tasks) + width * (width + 1) // 2)


@dataclass
class RandomRidge:
    """Ridge regression to one-hot classes on ReLU(h W), W random and fixed: RanPAC (McDonnell et al., 2023).

    The Gram matrix G (M, M) and the class sums (M, C) add up over tasks, so the result is that of all data at once.
    `ridge` is in units of G's mean diagonal.
    """

    width: int
    ridge: float
    seed: int
    _gram: NDArray[np.float32] | None = None
    _sums: list[NDArray[np.float32]] = field(default_factory=list)
    _fitted: NDArray[np.float32] | None = None

    def add(self, h: Embeddings, labels: Labels, classes: int) -> None:
        """Add the task's products; images of old classes count as negatives of the new ones through G."""
        lifted = self._lift(h)
        gram = lifted.T @ lifted
        self._gram = gram if self._gram is None else self._gram + gram
        self._sums += [lifted[labels == label].sum(axis=0) for label in range(classes)]
        self._fitted = None

    def scores(self, h: Embeddings) -> Matrix:
        """Return the values of the regression."""
        if self._fitted is None:
            self._fitted = self._solve()
        return cast(Matrix, (self._lift(h) @ self._fitted).astype(np.float64))

    def _solve(self) -> NDArray[np.float32]:
        assert self._gram is not None  # scores are asked for after a task was added
        penalty = self.ridge * float(np.trace(self._gram)) / len(self._gram)
        factor = cho_factor(self._gram.astype(np.float64) + penalty * np.eye(len(self._gram)), lower=True)
        return cast(NDArray[np.float32], cho_solve(factor, np.stack(self._sums, axis=1)).astype(np.float32))

    def _lift(self, h: Embeddings) -> NDArray[np.float32]:
        weights = np.random.default_rng(self.seed).standard_normal((h.shape[1], self.width), dtype=np.float32)
        return cast(NDArray[np.float32], np.maximum(h @ weights, 0))

    def stored_bytes(self) -> int:
        """Return the size of one triangle of G and of the class sums; W follows from the seed."""
        return 4 * (self.width * (self.width + 1) // 2 + self.width * len(self._sums))


def unit_rows(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale each row to length one; a zero row stays."""
    return cast(NDArray[np.float64], x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))
