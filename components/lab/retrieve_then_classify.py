"""Methods that retrieve an image's task first, and then name its class by the task's own module and classifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np

from components.arrays import Embeddings, Indices
from components.lab.embedded_images import ImageRows
from components.lab.method import TaskAndClass
from components.lab.retrieval_signatures import PooledClasses, RetrievalSignature
from components.lab.task_sequence import ArrivingTask
from components.signatures.classifier import Classifier


class PerTask(Protocol):
    """The spaces in which each task classifies its own images."""

    def learn(self, task: ArrivingTask) -> None:
        """Learn the next task's space."""

    def embed(self, number: int | None, images: ImageRows) -> Embeddings:
        """Embed images as the `number`-th task does, or as the frozen backbone does (None), (n, d)."""

    def classifier(self, number: int, task: ArrivingTask) -> Classifier:
        """Return the classifier of the `number`-th task in the space of that task."""

    def stored_bytes(self) -> int:
        """Return the size of what is kept."""


@dataclass
class RetrieveThenClassify:
    """A signature chooses the task; a linear classifier in the task's own space chooses the class.

    With `pooled_trunk`, its scores of the classes are averaged with those of the task's own classifier.
    """

    signature: RetrievalSignature
    modules: PerTask
    pooled_trunk: PooledClasses | None = None
    _classifiers: list[Classifier] = field(default_factory=list)

    def learn(self, task: ArrivingTask) -> None:
        """Learn module, signature and classifier of the next task."""
        number = len(self._classifiers)
        self.modules.learn(task)
        self.signature.add(task, self.modules.embed)
        if self.pooled_trunk is not None:
            self.pooled_trunk.add(task, self.modules.embed)
        self._classifiers.append(self.modules.classifier(number, task))

    def predict(self, images: ImageRows) -> TaskAndClass:
        """Retrieve the task of each image, then predict its class under that task's module alone."""
        task = self.signature.scores(images, self.modules.embed).argmax(axis=1)
        label = np.empty(len(images), dtype=np.int64)
        for number in np.unique(task):
            own = task == number
            label[own] = self.within(images.take(own), int(number))
        return TaskAndClass(task, label)

    def within(self, images: ImageRows, task: int) -> Indices:
        """Predict the class by the task's own classifier."""
        h = self.modules.embed(task, images)
        pooled = None if self.pooled_trunk is None else self.pooled_trunk.class_scores(images, task)
        return cast(Indices, self._classifiers[task].log_probabilities(h, pooled).argmax(axis=1))

    def stored_bytes(self) -> int:
        """Return the size of signatures, modules and classifiers; `pooled_trunk` is a part of the signature."""
        classifiers = sum(2 * own.coef.size + 4 * own.intercept.size for own in self._classifiers)
        return self.signature.stored_bytes() + self.modules.stored_bytes() + classifiers
