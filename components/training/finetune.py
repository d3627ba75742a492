"""The stage `finetune`: one task -> one module."""

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
from components.modules.adapted_linear import attach
from components.modules.low_rank import read_past, write_module
from components.training.checkpoint import Checkpoints
from components.training.distributed import ProcessGroup, joined
from components.training.loop import Split, TrainingJob, deterministic, train
from components.training.state import Epoch, validation_rank
from components.vision.backbone import Vit, choose_device, load_vit
from components.vision.trunk_cache import Tokens, TrunkCache, trunk_outputs


def finetune(root: Path, config: Config, task: str) -> None:
    """The `finetune` stage: write models/modules/<task> and the figures of its training.

    Reads the backbone, the modules of earlier tasks and this task's images; nothing else. Killed and started again, it
    goes on from its last checkpoint. Where several processes were launched to train together, this is one of them;
    the first one writes.

    Raises:
        IntaglioError: an artefact is missing or damaged, or the loss is no longer finite.
        PeersLostError: another process of the training ended.
    """
    deterministic()
    device = choose_device(config.device)
    with joined(device) as processes:
        vit = load_vit(root / "models/backbone", config.backbone, config.embedding.depths, device)
        _finetune(root, config, task, vit, processes)


def _finetune(root: Path, config: Config, task: str, vit: Vit, processes: ProcessGroup) -> None:
    settings, previous = config.finetune, config.stream.tasks[task].previous
    past = read_past(root / "models/modules", previous, settings.past_budget)
    with processes.first_before_others():  # which also removes what other inputs left
        checkpoints = Checkpoints.open(root, task, _inputs(root, config, task, vit, processes), __name__)
    start = time.monotonic()
    views = {"train": settings.views, "val": 1}
    data = {name: TaskData.read(root, config, task, name) for name in views}
    splits = {name: read_split(root, config, vit, data[name], name, processes, views[name]) for name in views}
    trunk_seconds = time.monotonic() - start
    trained = attach(vit, past, settings, config.seed)
    classes = len(data["train"].classes)
    job = TrainingJob(task, vit, trained, splits["train"], splits["val"], classes, settings, config.seed, processes)
    history, head = train(job, checkpoints)
    if processes.rank > 0:
        return
    seconds = time.monotonic() - start
    component, reuse = trained.component(), trained.reuse(settings.reuse_threshold)
    facts = write_module(root / "models/modules", task, previous, component, reuse, past, head, vit, settings.max_rank)
    best = min(history, key=validation_rank)
    figures = {
        "epochs": len(history),
        "best_epoch": best.epoch,
        "val_accuracy": best.val_accuracy,
        "val_loss": best.val_loss,
        "train_loss": best.train_loss,
        "seconds": round(seconds, 2),
        "trunk_seconds": round(trunk_seconds, 2),
        "images_per_second": round(len(splits["train"]) * len(history) / seconds, 1),
    }
    write_json(root / f"reports/finetune/{task}.json", figures | facts)
    write_text(root / f"reports/finetune/{task}.csv", _table(history))
    checkpoints.clear()


def _inputs(root: Path, config: Config, task: str, vit: Vit, processes: ProcessGroup) -> dict[str, Any]:
    """All that determines a module: what a checkpoint must agree with to be of any use."""
    previous = root / "models/modules" / config.stream.tasks[task].previous
    return {
        "task": task,
        "settings": config.model_dump(mode="json", include={"seed", "data", "backbone", "embedding", "finetune"}),
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
    """The trunk's outputs of a split's images in `views`, and each one's place among the sorted classes of the task.

    What the cache lacks of them is computed by all processes, each its share.

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
    text = io.StringIO()
    rows: list[Mapping[str, float]] = [asdict(epoch) for epoch in history]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
