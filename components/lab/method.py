"""What a method of continual learning is to the laboratory: tasks arrive once, then any image may be asked about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from components.arrays import Embeddings, Indices
from components.lab.embedded_images import ImageRows
from components.lab.task_sequence import TaskData


@dataclass(frozen=True)
class TaskAndClass:
    """The retrieved task of n images, and the class in it: both (n,)."""

    task: Indices
    label: Indices


class Method(Protocol):
    """A way to learn tasks one after the other; tasks and classes are numbered in order of arrival.

    An answer may depend on nothing but the image itself: not on the others that are asked about at the same time.
    """

    def learn(self, task: TaskData) -> None:
        """Take in the next task."""

    def predict(self, images: ImageRows) -> TaskAndClass:
        """Task and class of each image, neither being known."""

    def within(self, images: ImageRows, task: int) -> Indices:
        """The class of each image, its task being given, (n,)."""

    def stored_bytes(self) -> int:
        """Size of all that is kept for the tasks so far, matrices in float32."""


class Representation(Protocol):
    """What an image looks like to a classifier over all classes."""

    def learn(self, task: TaskData) -> None:
        """Take in the next task."""

    def embed(self, images: ImageRows) -> Embeddings:
        """(n, d) float32, by what has been learned so far."""

    def stored_bytes(self) -> int:
        """Size of what it keeps, in float32."""


Embed = Callable[[int | None, ImageRows], Embeddings]
"""Embeddings of images (n, d) under the module of a task by its number, or under the frozen backbone (None)."""


@dataclass(frozen=True)
class Frozen:
    """The frozen backbone's embeddings h_0."""

    def learn(self, task: TaskData) -> None:
        """Nothing to learn."""

    def embed(self, images: ImageRows) -> Embeddings:
        """h_0 of images, (n, d)."""
        return images.h0

    def stored_bytes(self) -> int:
        """The backbone is everybody's."""
        return 0
