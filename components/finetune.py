"""One task -> one module: the training loop."""

from __future__ import annotations

import csv
import io
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from components.backbone import Vit, choose_device, load_vit
from components.config import Config
from components.config import Finetune as Settings
from components.embed import Progress, pixel_batches, precision
from components.errors import IntaglioError
from components.images import Limits
from components.io import write_json, write_text
from components.manifest import read_manifest, split_of
from components.modules import Trainable, attach, read_past, write_module


@dataclass(frozen=True)
class Split:
    """The trunk's outputs of one split: tokens (n, tokens, width) in float16 on disk, labels (n,) int64."""

    tokens: NDArray[np.float16]
    labels: Tensor

    def __len__(self) -> int:
        """Number of images n."""
        return len(self.labels)


@dataclass(frozen=True)
class Epoch:
    """What one epoch reached."""

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float


def finetune(root: Path, config: Config, task: str) -> None:
    """The `finetune` stage: write models/modules/<task> and the figures of its training.

    Reads the backbone, the modules of earlier tasks and this task's images; nothing else.

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
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="intaglio-") as scratch:
        splits = {
            name: trunk_outputs(vit, folder, split_of(manifest, name), classes, limits, Path(scratch) / name, task)
            for name in ("train", "val")
        }
        trained = attach(vit, past, settings, config.seed)
        history = train(vit, trained, splits["train"], splits["val"], len(classes), settings, config.seed, task)
    seconds = time.monotonic() - start
    facts = write_module(root / "models/modules", task, previous, trained, vit, settings)
    best = min(history, key=_merit)
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


def trunk_outputs(
    vit: Vit, folder: Path, rows: pd.DataFrame, classes: list[str], limits: Limits, store: Path, task: str
) -> Split:
    """Run the frozen trunk once over a split and keep its tokens in the file `store`."""
    paths = [folder / path for path in rows["path"]]
    labels = torch.tensor([classes.index(label) for label in rows["label"]], dtype=torch.int64)
    progress, done = Progress(f"finetune {task}: trunk, {store.name} split", len(paths)), 0
    tokens: NDArray[np.float16] | None = None
    for pixels in pixel_batches(paths, vit.image_size, limits):
        with torch.inference_mode(), precision(vit):
            batch = vit.trunk(pixels)[0].half().cpu().numpy()
        if tokens is None:
            tokens = np.memmap(store, np.float16, "w+", shape=(len(paths), *batch.shape[1:]))
        tokens[done : done + len(batch)] = batch
        done += len(batch)
        progress.at(done)
    if tokens is None:
        raise IntaglioError(f"task {task!r}: its {store.name} split is empty; add images and run again")
    return Split(tokens, labels)


def train(
    vit: Vit, trained: Trainable, train: Split, val: Split, classes: int, settings: Settings, seed: int, task: str
) -> list[Epoch]:
    """Train until the validation split stops improving; `trained` ends with the best epoch's values.

    Cross-entropy with label smoothing on a linear head over the pooled tail, which is thrown away afterwards, plus
    l1 |s|_1 + l2 |s|_2^2 on the reuse of the past.

    Raises:
        IntaglioError: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(2 * vit.width, classes).to(vit.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    parameters = trained.parameters()
    optimizer = torch.optim.AdamW(
        [
            {"params": parameters, "lr": settings.learning_rate},
            {"params": head.parameters(), "lr": settings.head_learning_rate},
        ],
        weight_decay=settings.weight_decay,
    )
    steps = math.ceil(len(train) / settings.batch_size) * settings.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps, settings.warmup_fraction))
    history: list[Epoch] = []
    best: list[Tensor] = []
    progress = Progress(f"finetune {task}: epochs", settings.epochs, every=0)
    for number in range(1, settings.epochs + 1):
        total = 0.0
        for tokens, labels in _batches(train, settings.batch_size, vit.device, generator):
            loss = _loss(vit, trained, head, tokens, labels, settings)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_([*parameters, *head.parameters()], settings.gradient_clip)
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(labels)
        if not math.isfinite(total):
            raise IntaglioError(
                f"task {task!r}: the loss is not finite in epoch {number}; lower finetune.learning_rate"
            )
        epoch = Epoch(number, total / len(train), *_validate(vit, head, val, settings))
        if not history or _merit(epoch) < min(map(_merit, history)):
            best = [parameter.detach().clone() for parameter in parameters]
        history.append(epoch)
        progress.at(number, f"loss {epoch.train_loss:.3f}, val accuracy {epoch.val_accuracy:.3f}")
        if number - min(history, key=_merit).epoch >= settings.patience:
            break
    with torch.no_grad():
        for parameter, value in zip(parameters, best, strict=True):
            parameter.copy_(value)
    return history


def _loss(vit: Vit, trained: Trainable, head: nn.Linear, tokens: Tensor, labels: Tensor, settings: Settings) -> Tensor:
    with parametrize.cached(), precision(vit):
        logits = head(vit.tail(tokens))
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing)
    for s in trained.scales():
        loss = loss + settings.l1 * s.abs().sum() + settings.l2 * s.square().sum()
    return loss


@torch.no_grad()
def _validate(vit: Vit, head: nn.Linear, val: Split, settings: Settings) -> tuple[float, float]:
    loss, right = 0.0, 0
    for tokens, labels in _batches(val, settings.batch_size, vit.device, None):
        with parametrize.cached(), precision(vit):
            logits = head(vit.tail(tokens)).float()
        loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
        right += int((logits.argmax(dim=1) == labels).sum())
    return loss / len(val), right / len(val)


def _batches(
    split: Split, size: int, device: torch.device, generator: torch.Generator | None
) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(split), generator=generator) if generator else torch.arange(len(split))
    for rows in order.split(size):
        tokens = torch.from_numpy(split.tokens[rows.numpy()]).to(device).float()
        yield tokens, split.labels[rows].to(device)


def _rate(step: int, steps: int, warmup_fraction: float) -> float:
    """Linear warm-up, then a cosine to zero (Loshchilov and Hutter, SGDR, 2017)."""
    warmup = max(1, round(steps * warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _merit(epoch: Epoch) -> tuple[float, float]:
    """Smaller is better: accuracy first, loss between equals."""
    return -epoch.val_accuracy, epoch.val_loss


def _table(history: list[Epoch]) -> str:
    text = io.StringIO()
    rows: list[Mapping[str, float]] = [asdict(epoch) for epoch in history]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
