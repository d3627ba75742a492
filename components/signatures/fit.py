"""One learned task -> its signature: the `signature` stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from components.arrays import Embeddings, Labels
from components.config import Config
from components.data.images import Limits
from components.data.task_data import TaskData
from components.errors import IntaglioError
from components.modules.low_rank import Head, read_head
from components.modules.multi_module_vit import MultiModuleViT, embed_images
from components.signatures.classifier import Classifier
from components.signatures.ensemble import fit_ensemble, fit_ensemble_weights, fold_ensemble
from components.signatures.mixture import Mixture
from components.signatures.signature import Signature
from components.signatures.statistics import Statistics
from components.signatures.storage import write_signature
from components.signatures.support import Support
from components.vision.backbone import choose_device, load_vit
from components.vision.trunk_cache import TrunkCache, trunk_outputs


def fit_signature(root: Path, config: Config, task: str) -> None:
    """The `signature` stage: write models/signatures/<task> from the task's train and val images."""
    vit = load_vit(root / "models/backbone", config.backbone, config.embedding.depths, choose_device(config.device))
    engine = MultiModuleViT.load(vit, root / "models/modules", [task], shared=config.embedding.shared)
    data = {name: TaskData.read(root, config, task, name) for name in ("train", "val")}
    if not len(data["train"]):
        raise IntaglioError(f"task {task!r}: no readable training image; run the stage 'ingest' again")
    cache, limits = TrunkCache.of(root, config.cache), Limits.of(config.data)
    classes, labels = data["train"].classes, {name: images.labels for name, images in data.items()}
    h = {}
    for name, images in data.items():
        what = f"signature {task}: {name} split"
        outputs = trunk_outputs(vit, images.paths, images.digests, limits, cache, what)
        h[name] = embed_images(engine, *outputs, (None, task), what)
    train, val, width, count = h["train"][None], h["val"][None], vit.trunk_width, len(classes)
    statistics = Statistics.fit(np.concatenate([train, val]), np.concatenate([labels["train"], labels["val"]]), count)
    signature = Signature(
        task,
        classes,
        statistics,
        Mixture.fit(h["train"][task], config.signature, config.seed).rounded(),
        Support.fit(train, val, config.signature, config.seed),
        Support.fit(train[:, :width], val[:, :width], config.signature, config.seed) if width else None,
        _classifier({name: h[name][task] for name in h}, labels, read_head(root / "models/modules" / task), count),
    )
    write_signature(root / "models/signatures", signature, config.signature.scatter_rank)


def _classifier(h: Mapping[str, Embeddings], labels: Mapping[str, Labels], head: Head, classes: int) -> Classifier:
    """Of the train and the val split together, as val weighs and calibrates a classifier of train alone.

    In use, the pooled discriminants of the trunk are heard beside it. Of them, weights and temperature know those of
    this task alone, which other tasks sharpen later.
    """
    train, val = h["train"], h["val"]
    found = fit_ensemble(train, labels["train"], classes, head)
    has_trunk = train.shape[1] > head.weight.shape[1]
    said = found[-1].discriminants(val) if has_trunk else None
    factors = fit_ensemble_weights(found, val, labels["val"]) if len(val) else fit_ensemble_weights(found, train, None)
    temperature = fold_ensemble(found, factors).calibrated(val, labels["val"], said).temperature
    every, all_labels = (np.concatenate([part["train"], part["val"]]) for part in (h, labels))
    found = fit_ensemble(every, all_labels, classes, head)
    return replace(fold_ensemble(found, factors), temperature=temperature).rounded(every.mean(axis=0))
