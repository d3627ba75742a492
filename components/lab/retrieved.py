"""Methods that retrieve an image's task first, and then name its class by the task's own module and classifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np

from components.lab.corpus import Images, Indices
from components.lab.episode import TaskData
from components.lab.method import Answer
from components.lab.signatures import Signature
from components.signature import Classifier, Embeddings


class PerTask(Protocol):
    """What an image looks like to each task."""

    def learn(self, task: TaskData) -> None:
        """Take in the next task."""

    def embed(self, number: int | None, images: Images) -> Embeddings:
        """(n, d) as the `number`-th task sees them, or as the frozen backbone does (None)."""

    def stored_bytes(self) -> int:
        """Size of what it keeps."""


@dataclass
class RetrieveThenClassify:
    """A signature chooses the task; linear discriminant analysis in the task's representation chooses the class."""

    signature: Signature
    modules: PerTask
    adapted_part_only: bool = False  # what the trunk sees is the same to all tasks, and only adds to what LDA must fit
    _classifiers: list[Classifier] = field(default_factory=list)

    def learn(self, task: TaskData) -> None:
        """Module, signature and classifier of the next task."""
        number = len(self._classifiers)
        self.modules.learn(task)
        self.signature.add(task, number, self.modules.embed)
        start = task.train.images.corpus.trunk_width if self.adapted_part_only else 0
        h = self.modules.embed(number, task.train.images)[:, start:]
        self._classifiers.append(Classifier.fit(h, task.train.labels, task.classes))

    def predict(self, images: Images) -> Answer:
        """Only the retrieved task's module runs for an image, unless the signature itself asks for others."""
        task = self.signature.scores(images, self.modules.embed).argmax(axis=1)
        label = np.empty(len(images), dtype=np.int64)
        for number in np.unique(task):
            own = task == number
            label[own] = self.within(images.take(own), int(number))
        return Answer(task, label)

    def within(self, images: Images, task: int) -> Indices:
        """The class by the task's own classifier."""
        h = self.modules.embed(task, images)
        return cast(Indices, self._classifiers[task].log_probabilities(h).argmax(axis=1))

    def stored_bytes(self) -> int:
        """Signatures, modules and classifiers."""
        classifiers = 4 * sum(own.coef.size + own.intercept.size for own in self._classifiers)
        return self.signature.stored_bytes() + self.modules.stored_bytes() + classifiers
