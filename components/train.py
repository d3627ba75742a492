"""The training loop: trunk outputs of one task in, a trained module and its history out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from components.backbone import Vit, autocast
from components.config import Finetune as Settings
from components.embed import Progress
from components.errors import IntaglioError
from components.modules import Trainable


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
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps, settings.warmup_fraction))
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
        if not history or merit(epoch) < min(map(merit, history)):
            best = [parameter.detach().clone() for parameter in parameters]
        history.append(epoch)
        progress.at(number, f"loss {epoch.train_loss:.3f}, val accuracy {epoch.val_accuracy:.3f}")
        if number - min(history, key=merit).epoch >= settings.patience:
            break
    with torch.no_grad():
        for parameter, value in zip(parameters, best, strict=True):
            parameter.copy_(value)
    return history


def _loss(vit: Vit, trained: Trainable, head: nn.Linear, tokens: Tensor, labels: Tensor, settings: Settings) -> Tensor:
    with parametrize.cached(), autocast(vit):
        logits = head(vit.tail(tokens))
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing)
    for s in trained.scales():
        loss = loss + settings.l1 * s.abs().sum() + settings.l2 * s.square().sum()
    return loss


@torch.no_grad()
def _validate(vit: Vit, head: nn.Linear, val: Split, settings: Settings) -> tuple[float, float]:
    loss, right = 0.0, 0
    for tokens, labels in _batches(val, settings.batch_size, vit.device, None):
        with parametrize.cached(), autocast(vit):
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


def rate(step: int, steps: int, warmup_fraction: float) -> float:
    """Linear warm-up, then a cosine to zero (Loshchilov and Hutter, SGDR, 2017)."""
    warmup = max(1, round(steps * warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def merit(epoch: Epoch) -> tuple[float, float]:
    """Smaller is better: accuracy first, loss between equals."""
    return -epoch.val_accuracy, epoch.val_loss
