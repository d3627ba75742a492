"""Signatures behind one interface: what a task may leave behind by which it is retrieved later.

All but `Density(adapted=True)` and `Entropy` use h_0, the one space that all tasks share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from components.arrays import Embeddings, Matrix
from components.config import SignatureSettings as Settings
from components.lab.embedded_images import ImageRows
from components.lab.method import Embed
from components.lab.task_sequence import ArrivingTask
from components.retrieval.pooled import LinearRetriever, PooledRetriever
from components.signatures.classifier import Classifier
from components.signatures.mixture import Mixture
from components.signatures.scatter import CompactScatter
from components.signatures.statistics import Statistics


class RetrievalSignature(Protocol):
    """What is kept of every task for retrieval; nothing is learned that could forget."""

    def add(self, task: ArrivingTask, embed: Embed) -> None:
        """Add the next task, whose module `embed` knows already."""

    def scores(self, images: ImageRows, embed: Embed) -> Matrix:
        """Score images for each of the T tasks so far, (n, T); the largest score wins."""

    def stored_bytes(self) -> int:
        """Return the size of what is kept, in float32."""


Space = Callable[[ImageRows], Embeddings]


def whole(images: ImageRows) -> Embeddings:
    """Return all of h_0: every depth."""
    return images.h0


def trunk_part(images: ImageRows) -> Embeddings:
    """Return the part of h_0 that the trunk's output gives."""
    return images.h0[:, : images.embedded.trunk_width]


def last_part(images: ImageRows) -> Embeddings:
    """Return the part of h_0 after the last block."""
    return images.h0[:, images.embedded.trunk_width :]


@dataclass
class PooledClasses:
    """Class means with one within-class covariance pooled over all tasks (components/retrieval/pooled.py).

    `compact` gives a task's statistics with a compact scatter, as they are stored for use; None: all of it is kept.
    """

    space: Space = whole
    compact: Callable[[ArrivingTask], Statistics] | None = None
    _tasks: list[Statistics] = field(default_factory=list)
    _fitted: LinearRetriever | None = None

    def add(self, task: ArrivingTask, embed: Embed) -> None:
        """Add the task's counts, means and scatter."""
        self._tasks.append(self.statistics(task))
        self._fitted = None

    def statistics(self, task: ArrivingTask) -> Statistics:
        """Return what is added of a task."""
        if self.compact is not None:
            return self.compact(task)
        return Statistics.fit(self.space(task.train.images), task.train.labels, task.classes)

    def scores(self, images: ImageRows, embed: Embed) -> Matrix:
        """Return log p_k(h_0) up to a constant."""
        return self._retriever().scores(self.space(images))

    def class_scores(self, images: ImageRows, task: int) -> Matrix:
        """Score the classes of one task, up to a constant per image, (n, C_k)."""
        retriever = self._retriever()
        return retriever.class_scores(self.space(images))[:, retriever.task_of_class == task]

    def _retriever(self) -> LinearRetriever:
        if self._fitted is None:
            self._fitted = PooledRetriever.fit(self._tasks).linear()
        return self._fitted

    def stored_bytes(self) -> int:
        """Return the size of all class means and of one triangle of the pooled scatter, or of all compact scatters."""
        means = sum(task.means.size for task in self._tasks)
        compact = [task.scatter for task in self._tasks if isinstance(task.scatter, CompactScatter)]
        if compact:
            return 2 * means + sum(array.nbytes for scatter in compact for array in scatter.to_arrays().values())
        width = self._tasks[0].means.shape[1] if self._tasks else 0
        return 4 * (means + width * (width + 1) // 2)


@dataclass
class PooledComponents:
    """The same, with the components of a Dirichlet-process mixture in place of the classes: no label is used."""

    settings: Settings
    seed: int
    _tasks: list[Statistics] = field(default_factory=list)
    _fitted: LinearRetriever | None = None

    def add(self, task: ArrivingTask, embed: Embed) -> None:
        """Fit the mixture, and give every image to its nearest component."""
        h = task.train.images.h0
        nearest = _nearest(h, Mixture.fit(h, self.settings, self.seed).centroids)
        _, labels = np.unique(nearest, return_inverse=True)
        self._tasks.append(Statistics.fit(h, labels.astype(np.int64), int(labels.max()) + 1))
        self._fitted = None

    def scores(self, images: ImageRows, embed: Embed) -> Matrix:
        """Return log p_k(h_0) up to a constant."""
        if self._fitted is None:
            self._fitted = PooledRetriever.fit(self._tasks).linear()
        return self._fitted.scores(images.h0)

    def stored_bytes(self) -> int:
        """Return the size of all component means and one triangle of the scatter."""
        width = self._tasks[0].means.shape[1] if self._tasks else 0
        return 4 * (sum(task.means.size for task in self._tasks) + width * (width + 1) // 2)


@dataclass
class Centroids:
    """`count` k-means centroids of a task; the task of the nearest one wins. One: the task's mean.

    S-Prompts (Wang et al., 2022) retrieve so.
    """

    count: int
    seed: int
    _centroids: list[Matrix] = field(default_factory=list)

    def add(self, task: ArrivingTask, embed: Embed) -> None:
        """Cluster the task's images."""
        h = task.train.images.h0.astype(np.float64)
        self._centroids.append(
            KMeans(min(self.count, len(h)), n_init=3, random_state=self.seed).fit(h).cluster_centers_
        )

    def scores(self, images: ImageRows, embed: Embed) -> Matrix:
        """Return minus the squared distance to the nearest centroid."""
        return np.stack([-_squared(images.h0, own).min(axis=1) for own in self._centroids], axis=1)

    def stored_bytes(self) -> int:
        """Return the size of the centroids."""
        return 4 * sum(own.size for own in self._centroids)


@dataclass
class Density:
    """A Dirichlet-process mixture per task, in h_0; or in the task's own h_k where `adapted`: the paper's rule.

    With settings of one component it is one Gaussian per task, with a covariance of its own.
    """

    settings: Settings
    seed: int
    adapted: bool
    _mixtures: list[Mixture] = field(default_factory=list)

    def add(self, task: ArrivingTask, embed: Embed) -> None:
        """Fit the task's mixture."""
        h = embed(len(self._mixtures) if self.adapted else None, task.train.images)
        self._mixtures.append(Mixture.fit(h, self.settings, self.seed))

    def scores(self, images: ImageRows, embed: Embed) -> Matrix:
        """Return log p_k."""
        columns = [
            mixture.log_density(embed(number if self.adapted else None, images))
            for number, mixture in enumerate(self._mixtures)
        ]
        return np.stack(columns, axis=1)

    def stored_bytes(self) -> int:
        """Return the size of weights, means and variances on the axes, of the axes and of the centre."""
        return 4 * sum(m.weights.size + 2 * m.means.size + m.axes.size + m.center.size for m in self._mixtures)


@dataclass
class TwoStage:
    """The `kept` best tasks by `first`, ordered anew by `second`."""

    first: RetrievalSignature
    second: RetrievalSignature
    kept: int = 2

    def add(self, task: ArrivingTask, embed: Embed) -> None:
        """Add the task to both."""
        self.first.add(task, embed)
        self.second.add(task, embed)

    def scores(self, images: ImageRows, embed: Embed) -> Matrix:
        """Return the second's scores, and minus infinity off the shortlist."""
        first = self.first.scores(images, embed)
        rank = (-first).argsort(axis=1).argsort(axis=1)
        return np.where(rank < self.kept, self.second.scores(images, embed), -np.inf)

    def stored_bytes(self) -> int:
        """Return the size of both."""
        return self.first.stored_bytes() + self.second.stored_bytes()


@dataclass
class Entropy:
    """The task whose classifier has the lowest entropy of p(c | x, k), as in TUNA (Wang et al., 2025)."""

    _classifiers: list[Classifier] = field(default_factory=list)

    def add(self, task: ArrivingTask, embed: Embed) -> None:
        """Fit the task's classifier, its temperature on validation."""
        number, train, val = len(self._classifiers), task.train, task.val
        classifier = Classifier.fit(embed(number, train.images), train.labels, task.classes)
        self._classifiers.append(classifier.calibrated(embed(number, val.images), val.labels))

    def scores(self, images: ImageRows, embed: Embed) -> Matrix:
        """Return minus the entropy, relative to that of a uniform guess."""
        columns = []
        for number, classifier in enumerate(self._classifiers):
            log_p = classifier.log_probabilities(embed(number, images))
            columns.append((np.exp(log_p) * log_p).sum(axis=1) / max(np.log(log_p.shape[1]), 1e-12))
        return np.stack(columns, axis=1)

    def stored_bytes(self) -> int:
        """Return 0: nothing is kept beside the classifiers that predict."""
        return 0


def _squared(h: Embeddings, points: Matrix) -> Matrix:
    x = h.astype(np.float64)
    return cast(Matrix, (x**2).sum(axis=1)[:, None] - 2 * x @ points.T + (points**2).sum(axis=1))


def _nearest(h: Embeddings, points: Matrix) -> NDArray[np.int64]:
    return cast(NDArray[np.int64], _squared(h, points).argmin(axis=1))
