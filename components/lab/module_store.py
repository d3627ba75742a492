"""Modules trained once and kept: a module is named by all that determines it, so that experiments share it."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.arrays import Embeddings
from components.config import BASE, Config
from components.fingerprint import code_fingerprint
from components.io import read_json, sha256_bytes, sha256_file, write_json
from components.lab.embedded_images import ImageRows, tail_of
from components.lab.task_sequence import ArrivingTask, Labelled
from components.modules import low_rank
from components.modules.multi_module_vit import MultiModuleViT
from components.signatures.classifier import Classifier
from components.signatures.ensemble import LabelledEmbeddings, fit_task_classifier
from components.signatures.scatter import CompactScatter, dense
from components.signatures.statistics import Statistics
from components.training import loop
from components.training.checkpoint import Checkpoints
from components.training.module import TaskSplits, train_module
from components.vision.backbone import Vit, choose_device, load_vit

_REMEMBERED = 128  # modules whose embeddings stay in memory


@dataclass
class _Memory:
    """The tail's part of h_k of all images under one module, filled in where it was needed."""

    tail: NDArray[np.float32]
    known: NDArray[np.bool_]


@dataclass
class ModuleStore:
    """Modules under `folder`/modules, trained where missing, and embeddings under them; `root` has the backbone."""

    root: Path
    folder: Path
    config: Config
    _memory: OrderedDict[str, _Memory] = field(default_factory=OrderedDict)
    _classifiers: dict[tuple[str | None, str, bool], Classifier] = field(default_factory=dict)
    _statistics: dict[tuple[str | None, str], Statistics] = field(default_factory=dict)

    def classifier(self, name: str | None, task: ArrivingTask, ensemble: bool = False) -> Classifier:
        """Fit a classifier of a task's classes, once.

        Args:
            name: of the module under which images are embedded; None: the frozen backbone.
            task: its classes and images.
            ensemble: fit the whole ensemble (components/signatures/ensemble.py); otherwise discriminants alone.
        """
        key = name, _digest(task), ensemble
        if key not in self._classifiers:
            self._classifiers[key] = self._classify(name, task, ensemble)
        return self._classifiers[key]

    def compact_statistics(self, task: ArrivingTask, shared: str | None = None) -> Statistics:
        """Fit statistics of a task on h_0 (see `shared`), with the compact scatter that the pipeline stores."""
        key = shared, _digest(task)
        if key not in self._statistics:
            h = self.shared(shared, task.train.images)
            found = Statistics.fit(h, task.train.labels, task.classes)
            scatter = CompactScatter.of(dense(found.scatter), self.config.signature.scatter_rank)
            self._statistics[key] = replace(found, scatter=scatter)
        return self._statistics[key]

    def module(self, task: ArrivingTask, previous: str, seed: int) -> str:
        """Train a task's module, unless it exists.

        Args:
            task: what it learns.
            previous: name of the module before it in the chain; BASE: none.
            seed: of the initial factors and the order of images.

        Returns:
            The name of the module.
        """
        name = self._name(task, previous, seed)
        if not (self._modules / name / "module.json").exists():
            self._train(name, task, previous, seed)
        return name

    def embed(self, name: str, images: ImageRows) -> Embeddings:
        """Embed images under a module, (n, d); each image once while the module is in memory."""
        embedded, width = images.embedded, images.embedded.trunk_width
        memory = self._remember(name, len(embedded.h0), embedded.h0.shape[1] - width)
        missing = np.unique(images.rows[~memory.known[images.rows]])
        if len(missing):
            memory.tail[missing] = self._tail(name, ImageRows(embedded, missing))
            memory.known[missing] = True
        return np.concatenate([embedded.h0[images.rows, :width], memory.tail[images.rows]], axis=1)

    def shared(self, name: str | None, images: ImageRows) -> Embeddings:
        """Embed images frozen, and beside it under a module that all tasks share, if any, (n, d)."""
        if name is None:
            return images.h0
        return np.concatenate([images.h0, self.embed(name, images)[:, images.embedded.trunk_width :]], axis=1)

    def stored_bytes(self, names: Sequence[str]) -> int:
        """Return the size of the adapters that prediction needs."""
        files = (self._modules / self._cut(name) / "adapter" / "adapter_model.safetensors" for name in names)
        return sum(file.stat().st_size for file in files)

    def fresh_vit(self) -> Vit:
        """Load a backbone without modules."""
        backbone, depths = self.config.backbone, self.config.embedding.depths
        return load_vit(self.root / "models/backbone", backbone, depths, choose_device(self.config.device))

    @cached_property
    def _modules(self) -> Path:
        """Return the folder of modules, which holds the root of every chain."""
        folder = self.folder / "modules"
        base = folder / BASE / "module.json"
        if not base.exists():
            write_json(base, read_json(self.root / "models/modules" / BASE / "module.json"))
        return folder

    @cached_property
    def _base(self) -> str:
        """Describe the frozen backbone and the code that trains on it."""
        backbone = sha256_file(self.root / "models/backbone/backbone.safetensors")
        return json.dumps(
            [
                code_fingerprint(train_module.__module__),
                backbone,
                self.config.backbone.model_dump(),
                self.config.embedding.depths,
            ]
        )

    def _name(self, task: ArrivingTask, previous: str, seed: int) -> str:
        finetune = self.config.finetune.model_dump(exclude={"max_rank"})
        facts = [self._base, finetune, _digest(task), previous, seed]
        return f"{task.name}-{sha256_bytes(json.dumps(facts).encode())[:20]}"

    def _cut(self, name: str) -> str:
        """Cut a module to `finetune.max_rank` directions: it is trained once for any number of them."""
        cut = f"{name}-{self.config.finetune.max_rank}"
        if not (self._modules / cut / "module.json").exists():
            low_rank.cut_module(self._modules, name, cut, self.fresh_vit(), self.config.finetune.max_rank)
        return cut

    def _train(self, name: str, task: ArrivingTask, previous: str, seed: int) -> None:
        settings = self.config.finetune
        splits = TaskSplits(split_of(task.train, settings.views), split_of(task.val), task.classes)
        whole = settings.model_copy(update={"max_rank": settings.past_budget + settings.rank})  # cut when it is used
        checkpoints = Checkpoints.open(self.folder, name, {}, train_module.__module__)
        train_module(self._modules, name, previous, splits, self.fresh_vit(), whole, seed, checkpoints)
        checkpoints.clear()

    def _classify(self, name: str | None, task: ArrivingTask, ensemble: bool) -> Classifier:
        images, labels = task.train.images, task.train.labels
        if name is None:
            return Classifier.fit(images.h0, labels, task.classes)
        if not ensemble:  # the trunk's part is the same in all tasks
            return Classifier.fit(self.embed(name, images)[:, images.embedded.trunk_width :], labels, task.classes)
        train, val = (LabelledEmbeddings(self.embed(name, part.images), part.labels) for part in (task.train, task.val))
        head = low_rank.read_head(self._modules / name)
        return fit_task_classifier(train, val, head, task.classes, learn_val=False)

    def _remember(self, name: str, images: int, width: int) -> _Memory:
        if name not in self._memory:
            if len(self._memory) == _REMEMBERED:
                self._memory.popitem(last=False)
            tail, known = np.empty((images, width), dtype=np.float32), np.zeros(images, dtype=bool)
            self._memory[name] = _Memory(tail, known)
        self._memory.move_to_end(name)
        return self._memory[name]

    def _tail(self, name: str, images: ImageRows) -> Embeddings:
        cut = self._cut(name)
        engine = MultiModuleViT.load(self.fresh_vit(), self._modules, [cut])
        width = engine.vit.trunk_width

        def tail(tokens: Tensor) -> Tensor:
            return engine.embed(cut, tokens, tokens.new_zeros(len(tokens), width))[:, width:]

        return tail_of(engine.vit, tail, images.tokens)


def _digest(task: ArrivingTask) -> str:
    """Hash a task's images and their classes."""
    images = [
        [[part.images.embedded.sha256[row] for row in part.images.rows], part.labels.tolist()]
        for part in (task.train, task.val)
    ]
    return sha256_bytes(json.dumps(images).encode())


def split_of(part: Labelled, views: int = 1) -> loop.Split:
    """Convert labelled images to a split of the training loop, in `views` views."""
    return loop.Split(part.images.views(views), torch.from_numpy(part.labels), views)


@dataclass
class TaskModules:
    """One module per task.

    Attributes:
        store: trains and keeps the modules.
        seed: of every training.
        composed: whether a module may reuse the ones before it; otherwise each stands alone.
        ensemble: whether the whole ensemble names the class; otherwise the discriminants of the adapted part.
    """

    store: ModuleStore
    seed: int
    composed: bool
    ensemble: bool = False
    _names: list[str] = field(default_factory=list)

    def learn(self, task: ArrivingTask) -> None:
        """Train the next task's module."""
        previous = self._names[-1] if self.composed and self._names else BASE
        self._names.append(self.store.module(task, previous, self.seed))

    def embed(self, number: int | None, images: ImageRows) -> Embeddings:
        """Embed images under the module of the `number`-th task, or under the frozen backbone (None), (n, d)."""
        return images.h0 if number is None else self.store.embed(self._names[number], images)

    def classifier(self, number: int, task: ArrivingTask) -> Classifier:
        """Return the task's classifier under its own module."""
        return self.store.classifier(self._names[number], task, self.ensemble)

    def stored_bytes(self) -> int:
        """Return the size of all adapters."""
        return self.store.stored_bytes(self._names)


@dataclass(frozen=True)
class NoModules:
    """The frozen backbone in place of every task's module."""

    store: ModuleStore

    def learn(self, task: ArrivingTask) -> None:
        """Learn nothing."""

    def embed(self, number: int | None, images: ImageRows) -> Embeddings:
        """Return h_0 of images, whatever the task."""
        return images.h0

    def classifier(self, number: int, task: ArrivingTask) -> Classifier:
        """Return the task's discriminants on h_0."""
        return self.store.classifier(None, task)

    def stored_bytes(self) -> int:
        """Return 0: nothing is kept."""
        return 0
