"""Every test image under every module, once: what all metrics are computed from.

    test images --> trunk, once --> h_0 and h_1 .. h_T --> logits, densities and p-values in all T tasks

A stream that ends after t tasks is evaluated from the first t columns of the same arrays (`with_known`).
"""

from __future__ import annotations

from collections.abc import Mapping
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
    """The test images where only the first tasks of the stream are known.

    Attributes:
        retrieval: what is known of the n images before any module runs.
        best_class: the class that each known task would choose, (n, known) int64.
        class_log_probability: of that class in its task, log p(c | x, k), (n, known) float64.
    """

    retrieval: RetrievalResult
    best_class: Indices
    class_log_probability: Matrix


@dataclass(frozen=True)
class TestScores:
    """All n test images, in order of their tasks, under the modules of all T tasks.

    Attributes:
        signatures: of the tasks, in order.
        task: number of each image's true task, (n,) int64.
        label: true class, an index into its task's classes, (n,) int64.
        paths: of the images, relative to their task's folder.
        h0: (n, d) float32.
        frozen_width: how many of its first coordinates are the frozen backbone's alone.
        log_density: log p_k(h_k), (n, T) float64.
        class_logits: discriminants of each task's classifier on h_k, T times (n, C_k) float64.
        p_values: conformal p-value in each task, by all of h_0, (n, T) float64.
        typicality: the continuous score behind the p-value, (n, T) float64.
    """

    signatures: tuple[Signature, ...]
    task: Indices
    label: Indices
    paths: tuple[str, ...]
    h0: Embeddings
    frozen_width: int
    log_density: Matrix
    class_logits: tuple[Matrix, ...]
    p_values: Matrix
    typicality: Matrix

    @property
    def names(self) -> list[str]:
        """Names of the tasks, in order."""
        return [signature.task for signature in self.signatures]

    def task_scores(self, rule: str, known: int) -> Matrix:
        """Return the task scores (n, known) of a rule where only the first `known` tasks are known."""
        if rule == "dpgmm":
            return self.log_density[:, :known]
        retriever = PooledRetriever.fit([signature.statistics for signature in self.signatures[:known]])
        return retriever.scores(self.h0)

    def with_known(self, settings: Shortlist, known: int) -> KnownTasks:
        """Retrieve and classify as it is served where only the first `known` tasks are known."""
        task_retriever = TaskRetriever.fit(self.signatures[:known], settings)
        width = task_retriever.trunk_width
        found = task_retriever.find(self.h0[:, :width], lambda rows: self.h0[rows, width:])
        log_probabilities = [
            signature.classifier.log_probabilities_from(
                self.class_logits[k], found.frozen[:, task_retriever.task_of_class == k]
            )
            for k, signature in enumerate(self.signatures[:known])
        ]
        best_class = np.stack([log_p.argmax(axis=1) for log_p in log_probabilities], axis=1)
        return KnownTasks(found, best_class, np.stack([log_p.max(axis=1) for log_p in log_probabilities], axis=1))

    def correct(self, retrieved: Indices, known: KnownTasks) -> Mask:
        """Return whether task and class of each image are right, given its retrieved task (n,)."""
        rows = np.arange(len(self.task))
        return cast(Mask, (retrieved == self.task) & (known.best_class[rows, retrieved] == self.label))

    def per_task(self, values: NDArray[Any]) -> list[float]:
        """Return the mean of `values` (n,) over the test images of each task."""
        return [float(values[self.task == task].mean()) for task in range(len(self.signatures))]


def score_test_images(root: Path, config: Config) -> TestScores:
    """Run every test image through the trunk once and through every module.

    Raises:
        IntaglioError: there is no test image, or an artefact is missing or damaged.
    """
    vit = load_vit(root / "models/backbone", config.backbone, config.embedding.depths, choose_device(config.device))
    engine = MultiModuleViT.load(vit, root / "models/modules", config.tasks, shared=config.embedding.shared)
    signatures = tuple(read_signature(root / "models/signatures", task) for task in config.tasks)
    data = [TaskData.read(root, config, task, "test") for task in config.tasks]
    count = sum(map(len, data))
    if not count:
        raise IntaglioError("no task has a readable test image; add some and run the stages 'ingest' again")
    cache, limits, what = TrunkCache.of(root, config.cache), Limits.of(config.data), "evaluate: test images"
    files, digests = [path for images in data for path in images.paths], [d for images in data for d in images.digests]
    tokens, trunk = trunk_outputs(vit, files, digests, limits, cache, what)
    shape = count, len(signatures)
    scores = TestScores(
        signatures,
        task=np.repeat(np.arange(len(data)), [len(images) for images in data]),
        label=np.concatenate([images.labels for images in data]),
        paths=tuple(name for images in data for name in images.names),
        h0=np.empty((count, engine.width(None)), dtype=np.float32),
        frozen_width=vit.embedding_width,
        log_density=np.empty(shape),
        class_logits=tuple(np.empty((count, len(signature.classes))) for signature in signatures),
        p_values=np.empty(shape),
        typicality=np.empty(shape),
    )
    progress = ProgressLine(what, count)
    for start in range(0, count, BATCH):
        rows = slice(start, min(start + BATCH, count))
        _fill(scores, rows, embed_tokens(engine, tokens[rows], trunk[rows], (None, *config.tasks)))
        progress.at(rows.stop)
    return scores


def _fill(scores: TestScores, rows: slice, embedded: Mapping[str | None, Embeddings]) -> None:
    """Compute the scores of some rows from their embeddings under every module (None: h_0)."""
    scores.h0[rows] = embedded[None]
    for k, signature in enumerate(scores.signatures):
        h, calibration = embedded[signature.task], signature.support.calibration
        support_density = signature.support.mixture.log_density(scores.h0[rows])
        scores.class_logits[k][rows] = signature.classifier.discriminants(h)
        scores.log_density[rows, k] = signature.mixture.log_density(h)
        scores.p_values[rows, k] = calibration.p_values(support_density)
        scores.typicality[rows, k] = calibration.typicality(support_density)
