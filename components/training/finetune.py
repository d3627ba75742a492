"""The stage `finetune`: the images of a task -> its module, and the figures of its training."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from components.config import Config
from components.data.images import Limits
from components.data.task_data import TaskData, manifest_path
from components.errors import IntaglioError
from components.io import sha256_file, write_json, write_text
from components.training.checkpoint import Checkpoints
from components.training.distributed import ProcessGroup, joined
from components.training.loop import Split, deterministic
from components.training.module import TaskSplits, train_module
from components.training.state import Epoch, validation_rank
from components.vision.backbone import Vit, choose_device, load_vit
from components.vision.trunk_cache import Tokens, TrunkCache, trunk_outputs


def finetune(root: Path, config: Config, task: str) -> None:
    """Train the module of a task, and write models/modules/<task> and the figures of its training.

    Reads the backbone, the modules of earlier tasks and this task's images, and nothing else. After a kill it resumes
    from its last checkpoint. Where several processes were launched to train together, this is one of them, and the
    first one writes.

    Args:
        root: folder of the project.
        config: its configuration.
        task: name of the task.

    Raises:
        IntaglioError: an artefact is missing or damaged, a split is empty, or the loss is not finite or diverged.
        PeersLostError: another process of the training ended.
    """
    deterministic()
    device = choose_device(config.device)
    with joined(device) as processes:
        vit = load_vit(root / "models/backbone", config.backbone, config.embedding.depths, device)
        _finetune(root, config, task, vit, processes)


def _finetune(root: Path, config: Config, task: str, vit: Vit, processes: ProcessGroup) -> None:
    with processes.first_before_others():  # the first one also removes checkpoints of other inputs
        checkpoints = Checkpoints.open(root, task, _inputs(root, config, task, vit, processes), __name__)
    settings, previous = config.finetune, config.task(task).previous
    data = {name: TaskData.read(root, config, task, name) for name in ("train", "val")}
    if len(data["train"].classes) == 1:  # nothing to tell apart: a link of the chain alone
        settings = settings.model_copy(update={"epochs": 1, "views": 1})
    start = time.monotonic()
    views = {"train": settings.views, "val": 1}
    train, val = (read_split(root, config, vit, data[name], name, processes, views[name]) for name in views)
    trunk_seconds = time.monotonic() - start
    splits = TaskSplits(train, val, len(data["train"].classes))
    folder = root / "models/modules"
    trained = train_module(folder, task, previous, splits, vit, settings, config.seed, checkpoints, processes)
    if trained is None:
        return
    history, seconds = trained.history, trunk_seconds + trained.seconds
    best = min(history, key=validation_rank)
    figures = {
        "epochs": len(history),
        "best_epoch": best.epoch,
        "val_accuracy": best.val_accuracy,
        "val_loss": best.val_loss,
        "train_loss": best.train_loss,
        "seconds": round(seconds, 2),
        "trunk_seconds": round(trunk_seconds, 2),
        "images_per_second": round(len(train) * len(history) / seconds, 1),
    }
    write_json(root / f"reports/finetune/{task}.json", figures | trained.facts)
    write_text(root / f"reports/finetune/{task}.csv", _table(history))
    checkpoints.clear()


def _inputs(root: Path, config: Config, task: str, vit: Vit, processes: ProcessGroup) -> dict[str, Any]:
    """Return all that determines a module: a checkpoint with other inputs would lead to another one."""
    previous = root / "models/modules" / config.task(task).previous
    return {
        "task": task,
        "settings": config.model_dump(mode="json", include={"seed", "backbone", "embedding", "finetune"}),
        "backbone": vit.sha256,
        "device": vit.device.type,
        "processes": processes.count,
        "torch": torch.__version__,
        "manifest": sha256_file(manifest_path(root, task)),
        "previous": sha256_file(previous / "module.json"),
    }


def read_split(
    root: Path, config: Config, vit: Vit, data: TaskData, name: str, processes: ProcessGroup, views: int
) -> Split:
    """Read the trunk's outputs and the labels of a split; a label is an index into the sorted classes of the task.

    What the cache lacks is computed by all processes, a share each.

    Args:
        root: folder of the project.
        config: its configuration.
        vit: the backbone.
        data: the images of the split.
        name: of the split, "train" or "val".
        processes: this process among those that train together.
        views: how many views of each image.

    Raises:
        IntaglioError: the split is empty, or an image cannot be read.
        PeersLostError: another process of the training ended.
    """
    if not len(data):
        raise IntaglioError(f"task {data.task!r}: its {name} split is empty; add images and run again")
    cache, limits, what = (
        TrunkCache.of(root, config.cache),
        Limits.of(config.data),
        f"finetune {data.task}: {name} split",
    )

    def outputs(images: TaskData, view: int) -> Tokens:
        return trunk_outputs(vit, images.paths, images.digests, limits, cache, what, view)[0]

    if processes.count > 1 and len(share := processes.share(torch.arange(len(data)))):
        for view in range(views):
            outputs(data.take(share.numpy()), view)
    processes.wait()
    return Split(Tokens.joined([outputs(data, view) for view in range(views)]), torch.from_numpy(data.labels), views)


def _table(history: list[Epoch]) -> str:
    """Return the history as CSV, a line for each epoch."""
    text = io.StringIO()
    rows: list[Mapping[str, float]] = [asdict(epoch) for epoch in history]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
