"""Test images under every module: what the paper's retrieval and the prediction `soft` need, and nothing else.

It is the one part of evaluation that opens images, and its cost grows with the square of the number of tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from components.arrays import Matrix
from components.config import BASE, Config
from components.data.images import Limits
from components.data.task_data import image_folders
from components.errors import IntaglioError
from components.evaluation.stream_scores import KnownTasks, StreamScores
from components.modules.multi_module_vit import MultiModuleViT, embed_tokens
from components.vision.backbone import choose_device, load_vit
from components.vision.pixel_batches import BATCH, ProgressLine
from components.vision.trunk_cache import TrunkCache, trunk_outputs


@dataclass(frozen=True)
class AllModules:
    """The n test images under the modules of all T tasks.

    Attributes:
        log_density: log p_k(h_k), (n, T) float64.
        logits: discriminants of each task's classifier on h_k, T times (n, C_k) float64.
    """

    log_density: Matrix
    logits: tuple[Matrix, ...]

    def class_log_probability(self, scores: StreamScores, known: KnownTasks) -> Matrix:
        """Return log p(c | x, k) of the best class of each known task, (n, known)."""
        columns, first = [], 0
        for k, signature in enumerate(scores.signatures[: known.retrieval.shortlist.shape[1]]):
            count, last = len(known.best_class), first + len(signature.classes)
            frozen = known.retrieval.frozen[:, first:last]
            columns.append(signature.classifier.log_probabilities_from(self.logits[k][:count], frozen).max(axis=1))
            first = last
        return np.stack(columns, axis=1)


def find_images(root: Path, config: Config, scores: StreamScores) -> list[Path]:
    """Return the file of each test image.

    Raises:
        IntaglioError: an image is gone.
    """
    files = []
    for images in scores.images:
        folders = image_folders(root, config, images.task)
        for name in images.names:
            there = [folder / name for folder in folders if (folder / name).is_file()]
            if not there:
                raise IntaglioError(
                    f"{folders[0] / name}: is gone, but retrieval.rule 'dpgmm' and retrieval.prediction 'soft' are "
                    "evaluated on every test image; use 'pooled' and 'hard', or put the images back"
                )
            files.append(there[0])
    return files


def embed_under_all_modules(root: Path, config: Config, scores: StreamScores) -> AllModules:
    """Run every test image through every module.

    Args:
        root: the project's folder.
        config: of the project.
        scores: of the test images.

    Raises:
        IntaglioError: an image is gone, or an artefact is missing or damaged.
    """
    files = find_images(root, config, scores)
    digests = [digest for images in scores.images for digest in images.digests]
    vit = load_vit(root / "models/backbone", config.backbone, config.embedding.depths, choose_device(config.device))
    frozen = [signature.task for signature in scores.signatures if not signature.module]
    engine = MultiModuleViT.load(vit, root / "models/modules", scores.names, shared=BASE, frozen=frozen)
    what = "every module"
    tokens, trunk = trunk_outputs(vit, files, digests, Limits.of(config.data), TrunkCache.of(root, config.cache), what)
    density = np.empty((len(files), len(scores.names)))
    logits = tuple(np.empty((len(files), len(signature.classes))) for signature in scores.signatures)
    progress = ProgressLine(what, len(files))
    for start in range(0, len(files), BATCH):
        rows = slice(start, min(start + BATCH, len(files)))
        embedded = embed_tokens(engine, tokens[rows], trunk[rows], scores.names)
        for k, signature in enumerate(scores.signatures):
            density[rows, k] = signature.mixture.log_density(embedded[signature.task])
            logits[k][rows] = signature.classifier.discriminants(embedded[signature.task])
        progress.at(rows.stop)
    return AllModules(density, cast(tuple[Matrix, ...], logits))
