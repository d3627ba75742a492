"""Every test image of the stream as the signatures see it: what all metrics are computed from.

    records: h_0 and own logits of each test image --> task scores, densities and p-values in all T tasks

No image and no module is opened. A stream that ends after t tasks is evaluated from the same arrays (`with_known`).
The class of an image that went to another task counts as wrong, whatever that task's module would say of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from components.arrays import Embeddings, Indices, Mask, Matrix, Vector
from components.config import Config, Shortlist
from components.errors import IntaglioError
from components.records.card import Card
from components.records.recorded_images import RecordedImages
from components.records.storage import read_cards, read_recorded_images
from components.retrieval.pooled import PooledRetriever
from components.retrieval.shortlist import RetrievalResult, TaskRetriever
from components.signatures.signature import Signature
from components.signatures.statistics import Statistics, pooled_scatter
from components.signatures.storage import read_signature


@dataclass(frozen=True)
class KnownTasks:
    """The images of the first tasks of a stream, where these tasks are known and no other.

    Attributes:
        retrieval: what is known of the n images before any module runs.
        best_class: the class that each image's own task would choose, (n,) int64.
        class_log_probability: of that class, log p(c | x, own task), (n,) float64.
    """

    retrieval: RetrievalResult
    best_class: Indices
    class_log_probability: Vector


@dataclass(frozen=True)
class StreamScores:
    """All n test images, in order of their tasks, and the signatures of all T tasks.

    Attributes:
        signatures: of the tasks, in order.
        images: of each task, in the same order.
        cards: of the tasks, by name.
    """

    signatures: tuple[Signature, ...]
    images: tuple[RecordedImages, ...]
    cards: dict[str, Card]

    @property
    def names(self) -> list[str]:
        """Return the names of the tasks, in order."""
        return [signature.task for signature in self.signatures]

    @property
    def frozen_width(self) -> int:
        """Return how many leading coordinates of h_0 are the frozen backbone's alone."""
        return self.cards[self.names[0]].frozen_width

    @cached_property
    def task(self) -> Indices:
        """Return the number of each image's true task, (n,) int64."""
        return np.repeat(np.arange(len(self.images)), [len(images) for images in self.images])

    @cached_property
    def label(self) -> Indices:
        """Return the true class, an index into its task's classes, (n,) int64."""
        return np.concatenate([images.labels for images in self.images])

    @cached_property
    def h0(self) -> Embeddings:
        """Return h_0 of the images, (n, d) float32."""
        return np.concatenate([images.h0 for images in self.images])

    @property
    def paths(self) -> list[str]:
        """Return the paths of the images, relative to the folders that they came from."""
        return [name for images in self.images for name in images.names]

    @cached_property
    def support_density(self) -> Matrix:
        """Return the log density of each image in each task's support on h_0, (n, T) float64."""
        return np.stack([signature.support.mixture.log_density(self.h0) for signature in self.signatures], axis=1)

    @cached_property
    def p_values(self) -> Matrix:
        """Return the conformal p-value of each image in each task, by all of h_0, (n, T) float64."""
        return self._calibrated("p_values")

    @cached_property
    def typicality(self) -> Matrix:
        """Return the continuous score behind the p-value, (n, T) float64."""
        return self._calibrated("typicality")

    def _calibrated(self, score: str) -> Matrix:
        columns = [
            getattr(signature.support.calibration, score)(self.support_density[:, k])
            for k, signature in enumerate(self.signatures)
        ]
        return np.stack(columns, axis=1)

    @property
    def statistics(self) -> list[Statistics]:
        """Return the statistics of the tasks, in order."""
        return [signature.statistics for signature in self.signatures]

    @cached_property
    def pooled(self) -> tuple[Matrix, float]:
        """Return the scatter (d, d) of all tasks together, and its degrees of freedom."""
        return pooled_scatter(self.statistics)

    @cached_property
    def retriever(self) -> PooledRetriever:
        """Return the retriever of all T tasks."""
        return PooledRetriever.of_scatter(self.statistics, *self.pooled)

    @cached_property
    def pooled_scores(self) -> Matrix:
        """Return the task scores (n, T) of the rule `pooled` with all tasks known and scored in full."""
        return self.retriever.scores(self.h0)

    def with_known(self, settings: Shortlist, known: int) -> KnownTasks:
        """Retrieve and classify the images of the first `known` tasks as it is served where only these are known."""
        fitted = self.retriever if known == len(self.signatures) else None
        task_retriever = TaskRetriever.fit(self.signatures[:known], settings, fitted)
        width, count = task_retriever.trunk_width, sum(len(images) for images in self.images[:known])
        h0 = self.h0[:count]
        found = task_retriever.find(h0[:, :width], lambda rows: h0[rows, width:])
        best, log_probability = [], []
        for k, (signature, images) in enumerate(zip(self.signatures[:known], self.images, strict=False)):
            frozen = found.frozen[np.ix_(self.task[:count] == k, task_retriever.task_of_class == k)]
            log_p = signature.classifier.log_probabilities_from(images.logits, frozen)
            best.append(log_p.argmax(axis=1))
            log_probability.append(log_p.max(axis=1))
        return KnownTasks(found, np.concatenate(best), np.concatenate(log_probability))

    def correct(self, retrieved: Indices, known: KnownTasks) -> Mask:
        """Return whether task and class of each image are right, given the retrieved task (n,) of the first n."""
        count = len(retrieved)
        right_task, right_class = retrieved == self.task[:count], known.best_class == self.label[:count]
        return cast(Mask, right_task & right_class)

    def per_task(self, values: NDArray[Any]) -> list[float]:
        """Return the mean of `values` (n,) over the test images of each task that they cover."""
        task = self.task[: len(values)]
        return [float(values[task == number].mean()) for number in range(int(task.max()) + 1)]


def read_stream_scores(root: Path, config: Config) -> StreamScores:
    """Read the records and the signatures of every task that images are retrieved for.

    Raises:
        IntaglioError: a record or a signature is missing or damaged, or a task has no test image.
    """
    images = tuple(read_recorded_images(root, config, task) for task in config.tasks)
    if empty := [own.task for own in images if not len(own)]:
        raise IntaglioError(f"task {empty[0]!r}: no readable test image; add some and run the stage 'ingest' again")
    signatures = tuple(read_signature(root / "models/signatures", config.generation(task)) for task in config.tasks)
    return StreamScores(signatures, images, read_cards(root, config))
