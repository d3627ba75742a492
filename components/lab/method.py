"""What a method of continual learning is to the laboratory: tasks arrive once, then any image may be asked about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from components.arrays import Embeddings, Indices
from components.lab.embedded_images import ImageRows
from components.lab.task_sequence import ArrivingTask


@dataclass(frozen=True)
class TaskAndClass:
    """The retrieved task of n images, (n,), and the class within it, (n,)."""

    task: Indices
    label: Indices


class Method(Protocol):
    """A way to learn tasks one after the other; tasks and classes are numbered in order of arrival.

    An answer depends on the image alone, not on the other images of the same call.
    """

    def learn(self, task: ArrivingTask) -> None:
        """Learn the next task."""

    def predict(self, images: ImageRows) -> TaskAndClass:
        """Predict the task and the class of each image, neither being known."""

    def within(self, images: ImageRows, task: int) -> Indices:
        """Predict the class of each image, (n,), its task being given."""

    def stored_bytes(self) -> int:
        """Return the size of all that is kept for the tasks so far, matrices in float32."""


class Representation(Protocol):
    """The space in which one classifier over all classes works."""

    def learn(self, task: ArrivingTask) -> None:
        """Learn the next task."""

    def embed(self, images: ImageRows) -> Embeddings:
        """Embed images by what has been learned so far, (n, d) float32."""

    def stored_bytes(self) -> int:
        """Return the size of what is kept, in float32."""


Embed = Callable[[int | None, ImageRows], Embeddings]
"""Embeddings of images (n, d) under the module of a task by its number, or under the frozen backbone (None)."""


@dataclass(frozen=True)
class Frozen:
    """The frozen backbone's embeddings h_0."""

    def learn(self, task: ArrivingTask) -> None:
        """Learn nothing."""

    def embed(self, images: ImageRows) -> Embeddings:
        """Return h_0 of images, (n, d)."""
        return images.h0

    def stored_bytes(self) -> int:
        """Return 0: every method has the backbone."""
        return 0
