"""The stage `finetune`: one task -> one module."""

from __future__ import annotations

import csv
import io
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from components.backbone import Vit, autocast, choose_device, load_vit
from components.checkpoint import Checkpoints
from components.config import Config
from components.embed import Progress, pixel_batches
from components.errors import IntaglioError
from components.images import Limits
from components.io import sha256_file, write_json, write_text
from components.manifest import manifest_path, read_manifest, split_of
from components.modules import attach, read_past, write_module
from components.train import Lesson, Split, train
from components.training_state import Epoch, merit


def finetune(root: Path, config: Config, task: str) -> None:
    """The `finetune` stage: write models/modules/<task> and the figures of its training.

    Reads the backbone, the modules of earlier tasks and this task's images; nothing else. Killed and started again, it
    goes on from its last checkpoint.

    Raises:
        IntaglioError: an artefact is missing or damaged, or the loss is no longer finite.
    """
    settings, previous = config.finetune, config.stream.tasks[task].previous
    torch.use_deterministic_algorithms(True, warn_only=True)
    vit = load_vit(root / "models/backbone", config.backbone, config.embedding.depths, choose_device(config.device))
    past = read_past(root / "models/modules", previous, settings.past_budget)
    manifest = read_manifest(root, task)
    folder, limits = root / config.stream.tasks[task].folder, Limits.of(config.data)
    classes = sorted(manifest["label"].unique())
    checkpoints = Checkpoints.open(root, task, _inputs(root, config, task, vit))
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="intaglio-") as scratch:
        splits = {
            name: trunk_outputs(vit, folder, split_of(manifest, name), classes, limits, Path(scratch) / name, task)
            for name in ("train", "val")
        }
        trained = attach(vit, past, settings, config.seed)
        lesson = Lesson(task, vit, trained, splits["train"], splits["val"], len(classes), settings, config.seed)
        history = train(lesson, checkpoints)
    seconds = time.monotonic() - start
    facts = write_module(root / "models/modules", task, previous, trained, vit, settings)
    best = min(history, key=merit)
    figures = {
        "epochs": len(history),
        "best_epoch": best.epoch,
        "val_accuracy": best.val_accuracy,
        "val_loss": best.val_loss,
        "train_loss": best.train_loss,
        "seconds": round(seconds, 2),
        "images_per_second": round(len(splits["train"]) * len(history) / seconds, 1),
    }
    write_json(root / f"reports/finetune/{task}.json", figures | facts)
    write_text(root / f"reports/finetune/{task}.csv", _table(history))
    checkpoints.clear()


def _inputs(root: Path, config: Config, task: str, vit: Vit) -> dict[str, Any]:
    """All that determines a module: what a checkpoint must agree with to be of any use."""
    previous = root / "models/modules" / config.stream.tasks[task].previous
    return {
        "task": task,
        "settings": config.model_dump(mode="json", include={"seed", "data", "backbone", "embedding", "finetune"}),
        "backbone": vit.sha256,
        "device": vit.device.type,
        "torch": torch.__version__,
        "manifest": sha256_file(manifest_path(root, task)),
        "previous": sha256_file(previous / "module.json"),
    }


def trunk_outputs(
    vit: Vit, folder: Path, rows: pd.DataFrame, classes: list[str], limits: Limits, store: Path, task: str
) -> Split:
    """Run the frozen trunk once over a split and keep its tokens in the file `store`."""
    paths = [folder / path for path in rows["path"]]
    labels = torch.tensor([classes.index(label) for label in rows["label"]], dtype=torch.int64)
    progress, done = Progress(f"finetune {task}: trunk, {store.name} split", len(paths)), 0
    tokens: NDArray[np.float16] | None = None
    for pixels in pixel_batches(paths, vit.image_size, limits):
        with torch.inference_mode(), autocast(vit):
            batch = vit.trunk(pixels)[0].half().cpu().numpy()
        if tokens is None:
            tokens = np.memmap(store, np.float16, "w+", shape=(len(paths), *batch.shape[1:]))
        tokens[done : done + len(batch)] = batch
        done += len(batch)
        progress.at(done)
    if tokens is None:
        raise IntaglioError(f"task {task!r}: its {store.name} split is empty; add images and run again")
    return Split(tokens, labels)


def _table(history: list[Epoch]) -> str:
    text = io.StringIO()
    rows: list[Mapping[str, float]] = [asdict(epoch) for epoch in history]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
