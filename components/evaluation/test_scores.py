"""Every test image under every module, once: what all metrics are computed from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from components.arrays import Embeddings, Indices, Mask, Matrix
from components.config import Config, Shortlist
from components.data.images import Limits
from components.data.task_data import TaskData
from components.errors import IntaglioError
from components.modules.multi_module_vit import MultiModuleViT, embed_tokens
from components.retrieval.pooled import PooledRetriever
from components.retrieval.shortlist import RetrievalResult, TaskRetriever
from components.signatures.signature import Signature
from components.signatures.storage import read_signature
from components.vision.backbone import choose_device, load_vit
from components.vision.pixel_batches import BATCH, ProgressLine
from components.vision.trunk_cache import TrunkCache, trunk_outputs


@dataclass(frozen=True)
class KnownTasks:
    """What n images look like with the first tasks known.

    found: what retrieval says before any module runs. best (n, known): the class that each task would choose;
    confidence (n, known): log of that class's probability in the task.
    """

    found: RetrievalResult
    best: Indices
    confidence: Matrix


@dataclass(frozen=True)
class TestScores:
    """Every test image (n of them, ordered by task) under every module: what all metrics are computed from.

    task (n,), label (n,): the truth, label an index into its task's classes. h0 (n, d), of which the first
    `frozen_width` coordinates are the frozen backbone's alone. density (n, T): log p_k(h_k).
    adapted, T of (n, C_k): the discriminants of task k's classifier. p_values, typicality (n, T): conformal p-value of
    the image in task k, and the continuous score behind it.
    """

    signatures: tuple[Signature, ...]
    task: Indices
    label: Indices
    paths: tuple[str, ...]
    h0: Embeddings
    frozen_width: int
    density: Matrix
    adapted: tuple[Matrix, ...]
    p_values: Matrix
    typicality: Matrix

    def scores(self, rule: str, known: int) -> Matrix:
        """Task scores (n, known) with only the first `known` tasks known."""
        if rule == "dpgmm":
            return self.density[:, :known]
        retriever = PooledRetriever.fit([signature.statistics for signature in self.signatures[:known]])
        return retriever.scores(self.h0)

    def view(self, settings: Shortlist, known: int) -> KnownTasks:
        """As it is served, with only the first `known` tasks known."""
        task_retriever = TaskRetriever.fit(self.signatures[:known], settings)
        width = task_retriever.trunk_width
        found = task_retriever.find(self.h0[:, :width], lambda rows: self.h0[rows, width:])
        answers = [
            signature.classifier.log_probabilities_from(
                self.adapted[k], found.frozen[:, task_retriever.task_of_class == k]
            )
            for k, signature in enumerate(self.signatures[:known])
        ]
        best = np.stack([log_probability.argmax(axis=1) for log_probability in answers], axis=1)
        return KnownTasks(found, best, np.stack([log_probability.max(axis=1) for log_probability in answers], axis=1))

    def correct(self, retrieved: Indices, view: KnownTasks) -> Mask:
        """Whether task and class are right, (n,)."""
        rows = np.arange(len(self.task))
        return cast(Mask, (retrieved == self.task) & (view.best[rows, retrieved] == self.label))

    def per_task(self, values: NDArray[Any]) -> list[float]:
        """Mean of `values` (n,) over the test images of each task."""
        return [float(values[self.task == task].mean()) for task in range(len(self.signatures))]


def score_test_images(root: Path, config: Config) -> TestScores:
    """Run every test image through the trunk once and through every module."""
    vit = load_vit(root / "models/backbone", config.backbone, config.embedding.depths, choose_device(config.device))
    engine = MultiModuleViT.load(vit, root / "models/modules", config.tasks, shared=config.embedding.shared)
    signatures = tuple(read_signature(root / "models/signatures", task) for task in config.tasks)
    data = [TaskData.read(root, config, task, "test") for task in config.tasks]
    paths, digests = [path for images in data for path in images.paths], [d for images in data for d in images.digests]
    count = len(paths)
    if count == 0:
        raise IntaglioError("no task has a readable test image; add some and run the stages 'ingest' again")
    cache = TrunkCache.of(root, config.cache)
    tokens, trunk = trunk_outputs(vit, paths, digests, Limits.of(config.data), cache, "evaluate: test images")
    h0 = np.empty((count, engine.width(None)), dtype=np.float32)
    density, adapted = np.empty((count, len(signatures))), tuple(np.empty((count, len(s.classes))) for s in signatures)
    p_values, typicality = np.empty_like(density), np.empty_like(density)
    progress = ProgressLine("evaluate: test images", count)
    for start in range(0, count, BATCH):
        rows = slice(start, min(start + BATCH, count))
        embedded = embed_tokens(engine, tokens[rows], trunk[rows], (None, *config.tasks))
        h0[rows] = embedded[None]
        for column, signature in enumerate(signatures):
            h = embedded[signature.task]
            adapted[column][rows] = signature.classifier.discriminants(h)
            support = signature.support
            lies = support.mixture.log_density(h0[rows])
            p_values[rows, column] = support.calibration.p_values(lies)
            typicality[rows, column] = support.calibration.typicality(lies)
            density[rows, column] = signature.mixture.log_density(h)
        progress.at(rows.stop)
    task = np.repeat(np.arange(len(signatures)), [len(images) for images in data])
    label = np.concatenate([images.labels for images in data])
    names = tuple(name for images in data for name in images.names)
    return TestScores(signatures, task, label, names, h0, vit.embedding_width, density, adapted, p_values, typicality)
