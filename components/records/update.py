"""The stage `update`: more images of a learned task. Nothing is trained, and no earlier image is read.

    new images --> the task's module --> sums, held-out embeddings     (added to those of the record)
                                             |
    statistics on h_0, shortlist calibration, classifier  <-- closed form, as a fit on all images at once

The densities of the mixtures stay as they were fitted, but for a component for each new class. So the shortlist's
calibration is of one density, on the held-out images of all batches.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from components.arrays import Embeddings
from components.config import Config
from components.data.manifest import manifest_of
from components.data.task_data import SPLITS, TaskData, manifest_path
from components.data.validate import validate_update
from components.errors import IntaglioError
from components.io import sha256_file, write_table
from components.modules.low_rank import Head, read_head
from components.records.card import Card, software
from components.records.embed import TaskEmbedder
from components.records.record import frozen_correct, image_counts, judged, own_embedding
from components.records.recorded_images import RecordedImages
from components.records.storage import read_card, read_record_of, read_update_basis, write_record
from components.records.update_basis import UpdateBasis
from components.signatures.class_sums import ClassSums
from components.signatures.conformal import Calibration
from components.signatures.ensemble import LabelledEmbeddings, fit_classifier_from_sums
from components.signatures.mixture import Mixture
from components.signatures.signature import Signature
from components.signatures.storage import read_signature, write_signature
from components.signatures.support import Support
from components.signatures.without_module import fit_frozen_classifier


def update(root: Path, config: Config, name: str) -> None:
    """Write the manifest, signature and record of an update.

    Args:
        root: the project's folder.
        config: of the project.
        name: of the update in params.yaml, as digits.1.

    Raises:
        IntaglioError: the folder or an image of it cannot be used, or an artefact is missing or damaged.
    """
    settings = config.updates[name]
    task, before = settings.task, settings.previous
    card, signature = read_card(root, before), read_signature(root / "models/signatures", before)
    manifest = manifest_of(root / settings.folder, config, f"update {name}")
    warnings = validate_update(root, config, name, manifest, signature.classes)
    for warning in warnings:
        print(f"warning: {warning}", flush=True)
    new_classes = sorted(set(manifest["label"]) - set(signature.classes))
    classes = (*signature.classes, *new_classes)
    embedder = TaskEmbedder.load(root, config, signature)
    data = {
        split: TaskData.of_manifest(manifest, task, root / settings.folder, split, classes=classes) for split in SPLITS
    }
    z = {split: embedder.embed(own.paths, own.digests, f"update {name}: {split}") for split, own in data.items()}
    width = embedder.engine.width(None)
    basis = _added(read_update_basis(root, before), data, z, len(classes), width)
    head = read_head(root / "models/modules" / task) if signature.module else None
    changed = updated_signature(signature, basis, classes, head, embedder.trunk_width)
    old, new = read_record_of(root, before, task), judged(data["test"], z["test"], changed, embedder)
    write_table(manifest_path(root, name), manifest)
    write_signature(root / "models/signatures", changed, config.signature.scatter_rank, name)
    write_record(
        root,
        name,
        _card(card, name, manifest, classes, warnings, sha256_file(manifest_path(root, name))),
        _joined(old, new, basis, changed, embedder),
        basis,
    )
    images = ", ".join(f"{len(own)} {split}" for split, own in data.items())
    print(f"update {name}: {images}; new classes: {', '.join(new_classes) or 'none'}", flush=True)


def updated_signature(
    signature: Signature, basis: UpdateBasis, classes: tuple[str, ...], head: Head | None, trunk_width: int
) -> Signature:
    """Fit a signature anew from sums and held-out embeddings: equal to the fit on all images at once.

    Args:
        signature: before the update; its mixtures stay, but for a component for each new class.
        basis: of all images together.
        classes: of the task, the known ones first.
        head: that was trained with the module; None where the task has none.
        trunk_width: width of the part of an embedding that no module changes.

    Raises:
        IntaglioError: there is no validation image.
    """
    if not len(basis.val):
        raise IntaglioError(f"task {signature.task!r}: no validation image; add some to the update and run again")
    width, known = signature.statistics.means.shape[1], len(signature.classes)
    every = basis.sums.add(basis.val, basis.val_labels, len(classes))
    own = _columns(basis.sums, trunk_width, width)
    val = LabelledEmbeddings(own_embedding(basis.val, trunk_width, width), basis.val_labels)

    def extended(mixture: Mixture, sums: ClassSums) -> Mixture:
        if known == len(classes):
            return mixture
        counts = sums.counts
        return mixture.with_classes(sums.means[known:], counts[known:], float(counts[:known].sum())).rounded()

    def support(before: Support, stop: int) -> Support:
        mixture = extended(before.mixture, ClassSums(every.counts, every.means[:, :stop], every.factor[:, :stop]))
        return Support(mixture, Calibration.of(mixture.log_density(basis.val[:, :stop])))

    return replace(
        signature,
        classes=classes,
        statistics=every.statistics(0, width),
        mixture=extended(signature.mixture, own),
        support=support(signature.support, width),
        trunk_support=support(signature.trunk_support, trunk_width) if signature.trunk_support else None,
        classifier=(
            fit_classifier_from_sums(own, val, head, trunk_width)
            if head
            else fit_frozen_classifier(own, val, trunk_width, learn_val=True)
        ),
    )


def _columns(sums: ClassSums, trunk_width: int, width: int) -> ClassSums:
    """Return the sums on h_k, of those on z."""
    columns = np.r_[0:trunk_width, width : sums.means.shape[1]]
    return ClassSums(sums.counts, sums.means[:, columns], sums.factor[:, columns])


def _added(
    before: UpdateBasis, data: dict[str, TaskData], z: dict[str, Embeddings], classes: int, width: int
) -> UpdateBasis:
    """Add the images of an update to a basis.

    Args:
        before: of the images so far.
        data: the new images, by split.
        z: their embeddings, by split.
        classes: number of classes of both together.
        width: of h_0.
    """
    return UpdateBasis(
        before.sums.add(z["train"], data["train"].labels, classes),
        np.concatenate([before.val, z["val"]]),
        np.concatenate([before.val_labels, data["val"].labels]),
        np.concatenate([before.test_adapted, z["test"][:, width:]]),
    )


def _joined(
    old: RecordedImages, new: RecordedImages, basis: UpdateBasis, signature: Signature, embedder: TaskEmbedder
) -> RecordedImages:
    """Return old and new test images with the logits of the updated classifier.

    Args:
        old: with h_0 as it was recorded.
        new: of the update.
        basis: has the adapted part of all of them.
        signature: the updated one.
        embedder: knows the widths.
    """
    own = np.concatenate([old.h0[:, : embedder.trunk_width], basis.test_adapted[: len(old)]], axis=1)
    frozen = frozen_correct(signature, old.h0[:, : embedder.frozen_width], old.labels)
    return RecordedImages(
        old.task,
        old.names + new.names,
        old.digests + new.digests,
        np.concatenate([old.labels, new.labels]),
        np.concatenate([old.h0, new.h0]),
        np.concatenate([signature.classifier.discriminants(own), new.logits]),
        np.concatenate([frozen, new.frozen_correct]),
    )


def _card(
    before: Card, name: str, manifest: pd.DataFrame, classes: tuple[str, ...], warnings: list[str], digest: str
) -> Card:
    """Return the card after an update.

    Args:
        before: the card so far.
        name: of the update.
        manifest: of its images.
        classes: of the task, with the new ones.
        warnings: of the validation.
        digest: sha256 of the manifest's file.
    """
    counts = image_counts(manifest)
    images = {
        split: {
            label: number
            for label in classes
            if (number := before.images.get(split, {}).get(label, 0) + counts.get(split, {}).get(label, 0))
        }
        for split in SPLITS
    }
    entry = {
        "name": name,
        "images": counts,
        "new_classes": list(classes[len(before.classes) :]),
        "manifest": digest,
        "warnings": warnings,
    }
    unreadable = before.unreadable + int((~manifest["readable"].astype(bool)).sum())
    return replace(
        before,
        classes=classes,
        images=images,
        unreadable=unreadable,
        updates=(*before.updates, entry),
        software=software(),
    )
