"""The images of one task under its module and in h_0: all that a record holds of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from components.arrays import Embeddings
from components.config import Config
from components.data.images import Limits
from components.modules.multi_module_vit import MultiModuleViT, embed_images
from components.signatures.signature import Signature
from components.vision.backbone import choose_device, load_vit
from components.vision.trunk_cache import TrunkCache, trunk_outputs


@dataclass(frozen=True)
class TaskEmbedder:
    """The backbone with the module of one task.

    Attributes:
        engine: backbone and module.
        root: the project's folder.
        config: of the project.
        task: whose module it is.
    """

    engine: MultiModuleViT
    root: Path
    config: Config
    task: str

    @classmethod
    def load(cls, root: Path, config: Config, signature: Signature) -> TaskEmbedder:
        """Read the backbone, the task's module if it has one, and the shared one.

        Args:
            root: the project's folder.
            config: of the project.
            signature: of the task.

        Raises:
            IntaglioError: an artefact is missing or damaged.
        """
        vit = load_vit(root / "models/backbone", config.backbone, config.embedding.depths, choose_device(config.device))
        task, modules, shared = signature.task, root / "models/modules", config.embedding.shared
        frozen = () if signature.module else (task,)
        return cls(MultiModuleViT.load(vit, modules, [task], shared=shared, frozen=frozen), root, config, task)

    @property
    def trunk_width(self) -> int:
        """Return the width of the part of an embedding that no module changes."""
        return self.engine.vit.trunk_width

    @property
    def frozen_width(self) -> int:
        """Return the width of the frozen backbone's part of h_0."""
        return self.engine.vit.embedding_width

    def embed(self, paths: Sequence[Path], digests: Sequence[str], what: str) -> Embeddings:
        """Return z of components/records/update_basis.py of each image, (n, d + p) float32.

        Args:
            paths: of the images.
            digests: their hex sha256.
            what: name of the work, for its progress.

        Raises:
            IntaglioError: an image is gone or cannot be read.
        """
        vit, cache = self.engine.vit, TrunkCache.of(self.root, self.config.cache)
        outputs = trunk_outputs(vit, paths, digests, Limits.of(self.config.data), cache, what)
        h = embed_images(self.engine, *outputs, (None, self.task), what)
        return np.concatenate([h[None], h[self.task][:, vit.trunk_width :]], axis=1)
