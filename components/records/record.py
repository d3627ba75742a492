"""The stage `record`: what evaluation and updates need of a task from now on, so that its images may go."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from components.arrays import Embeddings, Labels, Mask
from components.config import Config
from components.data.task_data import SPLITS, TaskData, manifest_path, read_manifest
from components.errors import IntaglioError
from components.io import read_json, sha256_file
from components.records.card import Card, software
from components.records.embed import TaskEmbedder
from components.records.recorded_images import RecordedImages
from components.records.storage import write_record
from components.records.update_basis import UpdateBasis
from components.signatures.class_sums import ClassSums
from components.signatures.classifier import Classifier
from components.signatures.signature import Signature
from components.signatures.storage import read_signature

_FIGURES = (
    "epochs", "best_epoch", "val_accuracy", "val_loss", "train_loss",
    "adapter_rank", "reused_directions", "truncation_error",
)  # fmt: skip
_CURVE = ("epoch", "train_loss", "val_loss", "val_accuracy")


def record(root: Path, config: Config, task: str) -> None:
    """Write models/records/<task> from the task's images, module and signature.

    Args:
        root: the project's folder.
        config: of the project.
        task: its name.

    Raises:
        IntaglioError: an artefact is missing or damaged, or an image is gone.
    """
    signature = read_signature(root / "models/signatures", task)
    embedder = TaskEmbedder.load(root, config, signature)
    data = {split: TaskData.read(root, config, task, split) for split in SPLITS}
    z = {split: embedder.embed(own.paths, own.digests, f"record {task}: {split}") for split, own in data.items()}
    width, classes = embedder.engine.width(None), len(signature.classes)
    basis = UpdateBasis(
        ClassSums.fit(z["train"], data["train"].labels, classes),
        z["val"],
        data["val"].labels,
        z["test"][:, width:],
    )
    test = judged(data["test"], z["test"], signature, embedder)
    write_record(root, task, _card(root, config, task, embedder), test, basis)


def judged(data: TaskData, z: Embeddings, signature: Signature, embedder: TaskEmbedder) -> RecordedImages:
    """Return test images with the logits of their task's classifier, and what the frozen network makes of them.

    Args:
        data: the images.
        z: of components/records/update_basis.py, (n, d + p).
        signature: of their task.
        embedder: knows the widths.
    """
    width = signature.statistics.means.shape[1]
    logits = signature.classifier.discriminants(own_embedding(z, embedder.trunk_width, width))
    correct = frozen_correct(signature, z[:, : embedder.frozen_width], data.labels)
    return RecordedImages(data.task, data.names, data.digests, data.labels, z[:, :width], logits, correct)


def frozen_correct(signature: Signature, h: Embeddings, labels: Labels) -> Mask:
    """Return whether linear discriminant analysis without any module is right, (n,).

    Args:
        signature: of the images' task.
        h: the frozen part of h_0, (n, frozen width) float32.
        labels: (n,) int64.
    """
    classifier = Classifier.from_statistics(signature.statistics.first(h.shape[1]))
    return cast(Mask, classifier.discriminants(h).argmax(axis=1) == labels)


def own_embedding(z: Embeddings, trunk_width: int, width: int) -> Embeddings:
    """Return h_k (n, trunk_width + p) from z (n, width + p), where h_0 is `width` wide."""
    return np.concatenate([z[:, :trunk_width], z[:, width:]], axis=1)


def image_counts(manifest: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Count the readable images of a manifest: split -> class -> number."""
    readable = manifest[manifest["readable"].astype(bool)]
    return {
        split: {str(label): int(count) for label, count in rows["label"].value_counts().sort_index().items()}
        for split in SPLITS
        if len(rows := readable[readable["split"] == split])
    }


def _card(root: Path, config: Config, task: str, embedder: TaskEmbedder) -> Card:
    manifest, settings = read_manifest(root, task), config.task(task)
    readable = manifest[manifest["readable"].astype(bool)]
    sizes = sorted({(int(w), int(h)) for w, h in zip(readable["width"], readable["height"], strict=True)})
    module = read_json(root / "models/modules" / task / "module.json")
    return Card(
        task=task,
        classes=tuple(sorted(str(label) for label in manifest["label"].unique())),
        images=image_counts(manifest),
        unreadable=len(manifest) - len(readable),
        sizes=[list(size) for size in sizes[:1] + sizes[-1:]],
        frozen_width=embedder.frozen_width,
        trunk_width=embedder.trunk_width,
        validation=_validation(root, task),
        training=_training(root, task),
        digests={
            "manifest": sha256_file(manifest_path(root, task)),
            "adapter": module["adapter_sha256"],
            "backbone": module["backbone_sha256"],
        },
        updates=(),
        note=settings.note,
        licence=settings.licence,
        software=software(),
    )


def _validation(root: Path, task: str) -> dict[str, Any]:
    verdict = read_json(root / "reports/validation" / task / "result.json")
    names = ("success", "critical_failures", "warnings")
    return {name: verdict.get(name) for name in names} | {"expectations": len(verdict.get("expectations") or [])}


def _training(root: Path, task: str) -> dict[str, Any]:
    """Return the figures of the training without its seconds, which differ from run to run."""
    figures, curve = read_json(root / f"reports/finetune/{task}.json"), root / f"reports/finetune/{task}.csv"
    try:
        rows = pd.read_csv(curve).reindex(columns=_CURVE).astype("float64")
    except FileNotFoundError:
        raise IntaglioError(f"{curve}: file not found; run the stage 'finetune' that writes it") from None
    except (OSError, ValueError) as error:
        raise IntaglioError(f"{curve}: not a table of numbers ({' '.join(str(error).split())})") from None
    return {name: figures.get(name) for name in _FIGURES} | {"curve": rows.to_dict("records")}
