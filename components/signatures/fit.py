"""The stage `signature`: one trained task -> its signature."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from components.config import Config
from components.data.images import Limits
from components.data.task_data import TaskData
from components.errors import IntaglioError
from components.modules.low_rank import Head, read_head
from components.modules.multi_module_vit import MultiModuleViT, embed_images
from components.signatures.class_sums import ClassSums
from components.signatures.classifier import Classifier
from components.signatures.ensemble import LabelledEmbeddings, fit_task_classifier
from components.signatures.mixture import Mixture
from components.signatures.signature import Signature
from components.signatures.statistics import Statistics
from components.signatures.storage import write_signature
from components.signatures.support import Support
from components.signatures.without_module import fit_frozen_classifier, is_right, module_pays
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
    train, val = h["train"][None], h["val"][None]
    adapted = _Splits(*(LabelledEmbeddings(h[name][task], labels[name]) for name in data))
    frozen = _Splits(*(LabelledEmbeddings(h[name][None][:, : vit.embedding_width], labels[name]) for name in data))
    head, width = read_head(root / "models/modules" / task), vit.trunk_width
    kept = len(classes) > 1 and _module_pays(adapted, frozen, head, len(classes), width)
    if not kept:
        print(f"signature {task}: without its module, which does not pay", flush=True)
    every, every_label = np.concatenate([train, val]), np.concatenate([labels["train"], labels["val"]])
    signature = Signature(
        task,
        classes,
        statistics=Statistics.fit(every, every_label, len(classes)),
        mixture=Mixture.fit((adapted if kept else frozen).train.h, config.signature, config.seed).rounded(),
        support=Support.fit(train, val, config.signature, config.seed),
        trunk_support=Support.fit(train[:, :width], val[:, :width], config.signature, config.seed) if width else None,
        classifier=(
            fit_task_classifier(adapted.train, adapted.val, head, len(classes))
            if kept
            else fit_frozen_classifier(frozen.sums(len(classes)), frozen.val, width, learn_val=True)
        ),
        module=kept,
    )
    write_signature(root / "models/signatures", signature, config.signature.scatter_rank)


@dataclass(frozen=True)
class _Splits:
    """The training and validation images of a task in one space."""

    train: LabelledEmbeddings
    val: LabelledEmbeddings

    def sums(self, classes: int) -> ClassSums:
        return ClassSums.fit(self.train.h, self.train.labels, classes)


def _module_pays(adapted: _Splits, frozen: _Splits, head: Head, classes: int, trunk_width: int) -> bool:
    """Compare the classifiers of the training images alone, with and without the module, on the validation images.

    Args:
        adapted: under the module.
        frozen: without it.
        head: that was trained with the module.
        classes: number of classes.
        trunk_width: width of the trunk's part of both.
    """
    sums = frozen.sums(classes)
    trunk = Classifier.from_statistics(sums.statistics(0, trunk_width)) if trunk_width else None
    with_module = fit_task_classifier(adapted.train, adapted.val, head, classes, learn_val=False)
    without = fit_frozen_classifier(sums, frozen.val, trunk_width, learn_val=False)
    return module_pays(
        is_right(with_module, adapted.val, trunk, trunk_width), is_right(without, frozen.val, trunk, trunk_width)
    )
