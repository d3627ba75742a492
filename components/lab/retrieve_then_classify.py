"""Methods that retrieve an image's task first, and then name its class by the task's own module and classifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np

from components.arrays import Embeddings, Indices
from components.lab.embedded_images import ImageRows
from components.lab.method import TaskAndClass
from components.lab.retrieval_signatures import PooledClasses, RetrievalSignature
from components.lab.task_sequence import TaskData
from components.signatures.classifier import Classifier


class PerTask(Protocol):
    """What an image looks like to each task."""

    def learn(self, task: TaskData) -> None:
        """Take in the next task."""

    def embed(self, number: int | None, images: ImageRows) -> Embeddings:
        """(n, d) as the `number`-th task sees them, or as the frozen backbone does (None)."""

    def classifier(self, number: int, task: TaskData) -> Classifier:
        """Linear discriminant analysis of the `number`-th task's classes, as that task sees its training images."""

    def stored_bytes(self) -> int:
        """Size of what it keeps."""


@dataclass
class RetrieveThenClassify:
    """A signature chooses the task; linear discriminant analysis in the task's representation chooses the class.

    With a `witness`, what it says of the classes is averaged with what the task's own discriminants say.
    """

    signature: RetrievalSignature
    modules: PerTask
    witness: PooledClasses | None = None
    _classifiers: list[Classifier] = field(default_factory=list)

    def learn(self, task: TaskData) -> None:
        """Module, signature and classifier of the next task."""
        number = len(self._classifiers)
        self.modules.learn(task)
        self.signature.add(task, number, self.modules.embed)
        if self.witness is not None:
            self.witness.add(task, number, self.modules.embed)
        self._classifiers.append(self.modules.classifier(number, task))

    def predict(self, images: ImageRows) -> TaskAndClass:
        """Only the retrieved task's module runs for an image, unless the signature itself asks for others."""
        task = self.signature.scores(images, self.modules.embed).argmax(axis=1)
        label = np.empty(len(images), dtype=np.int64)
        for number in np.unique(task):
            own = task == number
            label[own] = self.within(images.take(own), int(number))
        return TaskAndClass(task, label)

    def within(self, images: ImageRows, task: int) -> Indices:
        """The class by the task's own classifier."""
        h = self.modules.embed(task, images)
        said = None if self.witness is None else self.witness.class_scores(images, task)
        return cast(Indices, self._classifiers[task].log_probabilities(h, said).argmax(axis=1))

    def stored_bytes(self) -> int:
        """Signatures, modules and classifiers; a witness knows nothing that the signature does not."""
        classifiers = sum(2 * own.coef.size + 4 * own.intercept.size for own in self._classifiers)
        return self.signature.stored_bytes() + self.modules.stored_bytes() + classifiers
