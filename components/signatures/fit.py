"""The stage `signature`: one trained task -> its signature."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from components.config import Config
from components.data.images import Limits
from components.data.manifest import read_manifest, split_of
from components.errors import IntaglioError
from components.modules.low_rank import read_head
from components.modules.multi_module_vit import MultiModuleViT, embed_images
from components.signatures.ensemble import LabelledEmbeddings, fit_task_classifier
from components.signatures.mixture import Mixture
from components.signatures.signature import Signature
from components.signatures.statistics import Statistics
from components.signatures.storage import write_signature
from components.signatures.support import Support
from components.vision.backbone import choose_device, load_vit
from components.vision.trunk_cache import TrunkCache, trunk_outputs


def fit_signature(root: Path, config: Config, task: str) -> None:
    """Fit the signature of a task on its train and val images, and write models/signatures/<task>.

    Args:
        root: folder of the project.
        config: its configuration.
        task: name of the task, whose module is trained.

    Raises:
        IntaglioError: an artefact is missing or damaged, or the task has no readable training image.
    """
    vit = load_vit(root / "models/backbone", config.backbone, config.embedding.depths, choose_device(config.device))
    engine = MultiModuleViT.load(vit, root / "models/modules", [task], shared=config.embedding.shared)
    manifest = read_manifest(root, task)
    rows = {name: split_of(manifest, name) for name in ("train", "val")}
    classes = tuple(sorted(rows["train"]["label"].unique()))
    if not classes:
        raise IntaglioError(f"task {task!r}: no readable training image; run the stage 'ingest' again")
    folder, limits = root / config.stream.tasks[task].folder, Limits.of(config.data)
    cache, number_of = TrunkCache.of(root, config.cache), {label: number for number, label in enumerate(classes)}
    h, labels = {}, {}
    for name, table in rows.items():
        paths, what = [folder / path for path in table["path"]], f"signature {task}: {name} split"
        outputs = trunk_outputs(vit, paths, table["sha256"].tolist(), limits, cache, what)
        h[name] = embed_images(engine, *outputs, (None, task), what)
        labels[name] = np.array([number_of[label] for label in table["label"]], dtype=np.int64)
    train, val, width = h["train"][None], h["val"][None], vit.trunk_width
    own_train, own_val = (LabelledEmbeddings(h[name][task], labels[name]) for name in ("train", "val"))
    every, every_label = np.concatenate([train, val]), np.concatenate([labels["train"], labels["val"]])
    signature = Signature(
        task,
        classes,
        statistics=Statistics.fit(every, every_label, len(classes)),
        mixture=Mixture.fit(own_train.h, config.signature, config.seed).rounded(),
        support=Support.fit(train, val, config.signature, config.seed),
        trunk_support=Support.fit(train[:, :width], val[:, :width], config.signature, config.seed) if width else None,
        classifier=fit_task_classifier(own_train, own_val, read_head(root / "models/modules" / task), len(classes)),
    )
    write_signature(root / "models/signatures", signature, config.signature.scatter_rank)
