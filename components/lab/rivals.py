"""Baselines that train one module on every task, on all data at once, or compare an image under all modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from components.arrays import Embeddings, Indices, Vector
from components.config import BASE
from components.lab.embedded_images import ImageRows, tail_of
from components.lab.method import TaskAndClass
from components.lab.module_store import ModuleStore, TaskModules, split_of
from components.lab.single_classifier import Scorer, unit_rows
from components.lab.task_sequence import ArrivingTask, Labelled
from components.modules import adapted_linear
from components.training import loop
from components.training.checkpoint import Checkpoints
from components.vision.backbone import Vit


@dataclass
class OneLora:
    """A representation: one LoRA that every task goes on training, so that earlier tasks are forgotten."""

    store: ModuleStore
    seed: int
    _vit: Vit | None = None
    _trained: adapted_linear.Trainable | None = None
    _bytes: int = 0

    def learn(self, task: ArrivingTask) -> None:
        """Go on training the same factors on the next task."""
        settings = self.store.config.finetune
        if self._vit is None or self._trained is None:
            self._vit = self.store.fresh_vit()
            self._trained = adapted_linear.attach(self._vit, {}, settings, self.seed)
        learned, held_out = split_of(task.train, settings.views), split_of(task.val)
        job = loop.TrainingJob(
            task.name, self._vit, self._trained, learned, held_out, task.classes, settings, self.seed
        )
        # What it learns depends on all tasks before, in this order: no other experiment could use a checkpoint of it.
        loop.train(job, Checkpoints(self.store.folder / "never", every=float("inf")))
        self._bytes = 4 * sum(update.a.size + update.b.size for update in self._trained.component().values())

    def embed(self, images: ImageRows) -> Embeddings:
        """Embed images under the LoRA as it is now, (n, d)."""
        assert self._vit is not None  # images are embedded after a task was learned
        tail = tail_of(self._vit, self._vit.tail, images.tokens)
        return np.concatenate([images.h0[:, : images.embedded.trunk_width], tail], axis=1)

    def stored_bytes(self) -> int:
        """Return the size of one pair of factors per layer."""
        return self._bytes


@dataclass
class FirstLora:
    """A representation: the frozen embedding, and beside it the tail under one LoRA that the first task trains.

    The LoRA never changes, so statistics of earlier tasks stay valid. APER (Zhou et al., 2024) embeds images so, and
    `embedding.shared` retrieves so; RanPAC (McDonnell et al., 2023) begins with the LoRA alone.
    """

    store: ModuleStore
    seed: int
    name: str | None = None

    def learn(self, task: ArrivingTask) -> None:
        """Train on the first task; learn nothing of the others."""
        if self.name is None:
            self.name = self.store.module(task, BASE, self.seed)

    def embed(self, images: ImageRows) -> Embeddings:
        """Embed images frozen, and beside it the tail under the LoRA, (n, d)."""
        assert self.name is not None  # images are embedded after a task was learned
        return self.store.shared(self.name, images)

    def stored_bytes(self) -> int:
        """Return the size of one pair of factors per layer."""
        return 0 if self.name is None else self.store.stored_bytes([self.name])


@dataclass
class Joint:
    """One LoRA for all tasks at once, with all their data. No stream allows it; it is a reference."""

    store: ModuleStore
    make_scorer: Callable[[], Scorer]
    seed: int
    _tasks: list[ArrivingTask] = field(default_factory=list)
    _trained: tuple[str, Scorer] | None = None

    def learn(self, task: ArrivingTask) -> None:
        """Keep the data of the next task."""
        self._tasks.append(task)
        self._trained = None

    def predict(self, images: ImageRows) -> TaskAndClass:
        """Predict the class of the largest score among all."""
        best = self._scores(images).argmax(axis=1)
        first = self._first()
        task = np.searchsorted(first, best, side="right") - 1
        return TaskAndClass(task, best - first[task])

    def within(self, images: ImageRows, task: int) -> Indices:
        """Predict the class of the largest score among the task's."""
        first = self._first()[task]
        return cast(Indices, self._scores(images)[:, first : first + self._tasks[task].classes].argmax(axis=1))

    def stored_bytes(self) -> int:
        """Return the size of module and classifier, without that of the data, which is kept too."""
        name, scorer = self._fitted()
        return self.store.stored_bytes([name]) + scorer.stored_bytes()

    def _scores(self, images: ImageRows) -> Vector:
        name, scorer = self._fitted()
        return scorer.scores(self.store.embed(name, images))

    def _fitted(self) -> tuple[str, Scorer]:
        if self._trained is None:
            union, scorer = self._union(), self.make_scorer()
            name = self.store.module(union, BASE, self.seed)
            scorer.add(self.store.embed(name, union.train.images), union.train.labels, union.classes)
            self._trained = name, scorer
        return self._trained

    def _first(self) -> Indices:
        return np.concatenate([[0], np.cumsum([task.classes for task in self._tasks])])[:-1]

    def _union(self) -> ArrivingTask:
        first = self._first()

        def joined(parts: list[Labelled]) -> Labelled:
            rows = np.concatenate([part.images.rows for part in parts])
            labels = np.concatenate([part.labels + start for part, start in zip(parts, first, strict=True)])
            return Labelled(ImageRows(parts[0].images.embedded, rows), labels)

        classes = sum(task.classes for task in self._tasks)
        train_part = joined([task.train for task in self._tasks])
        return ArrivingTask("joint", classes, train_part, joined([task.val for task in self._tasks]))


@dataclass
class Ease:
    """Class means in every task's adapted space, compared by cosine in all of them (EASE; Zhou et al., 2024).

    A class has no mean in the space of a later task, since its images are gone by then. That mean is composed of the
    later task's means, weighted by how similar the classes are in the older space. `others` weighs the spaces that
    are not the class's own.
    """

    modules: TaskModules
    others: float
    _means: dict[tuple[int, int], Vector] = field(default_factory=dict)  # (space, task of the classes) -> (C, d)

    def learn(self, task: ArrivingTask) -> None:
        """Train a module, take the classes' means in all spaces, and compose old classes' means in the new space."""
        number = self._tasks()
        self.modules.learn(task)
        for space in range(number + 1):
            h = unit_rows(self.modules.embed(space, task.train.images).astype(np.float64))
            rows = [h[task.train.labels == label].mean(axis=0) for label in range(task.classes)]
            self._means[space, number] = np.stack(rows)
        for old in range(number):
            likeness = unit_rows(self._means[old, old]) @ unit_rows(self._means[old, number]).T
            weight = np.exp(likeness) / np.exp(likeness).sum(axis=1, keepdims=True)
            self._means[number, old] = weight @ self._means[number, number]

    def predict(self, images: ImageRows) -> TaskAndClass:
        """Predict the class of the largest weighted cosine, and its task."""
        scores = self._scores(images, range(self._tasks()))
        first = np.concatenate([[0], np.cumsum([own.shape[1] for own in scores])])[:-1]
        best = np.concatenate(scores, axis=1).argmax(axis=1)
        task = np.searchsorted(first, best, side="right") - 1
        return TaskAndClass(task, best - first[task])

    def within(self, images: ImageRows, task: int) -> Indices:
        """Predict the class of the largest weighted cosine among the task's."""
        return cast(Indices, self._scores(images, [task])[0].argmax(axis=1))

    def stored_bytes(self) -> int:
        """Return the size of all modules, and of every class's mean in every space."""
        return self.modules.stored_bytes() + 4 * sum(means.size for means in self._means.values())

    def _tasks(self) -> int:
        return sum(space == task for space, task in self._means)

    def _scores(self, images: ImageRows, tasks: Sequence[int]) -> list[Vector]:
        """Score the classes of each of some tasks, (n, C)."""
        total: list[Vector] = [np.zeros((len(images), len(self._means[task, task]))) for task in tasks]
        for space in range(self._tasks()):
            h = unit_rows(self.modules.embed(space, images).astype(np.float64))
            for scores, task in zip(total, tasks, strict=True):
                scores += (1.0 if space == task else self.others) * (h @ unit_rows(self._means[space, task]).T)
        return total
