"""The ways to train that `bench train` compares: ours, with and without the trunk's cache, and PEFT's loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from components.arrays import Pixels
from components.bench.peft_import import LoraConfig, get_peft_model
from components.config import Backbone, Config, Finetune
from components.data.images import Limits
from components.data.task_data import TaskData
from components.modules.adapted_linear import attach
from components.modules.low_rank import LINEAR_LAYERS
from components.params import load_config, with_settings
from components.training.checkpoint import Checkpoints
from components.training.loop import Split, TrainingJob, deterministic, train_epoch
from components.training.schedule import lr_factor, validated_in
from components.training.state import TrainingState
from components.vision.backbone import Vit, autocast, choose_device, load_vit
from components.vision.pixel_batches import pixel_batches
from components.vision.timm_import import PatchDropout
from components.vision.trunk_cache import HalfTokens, Rows, Tokens, TrunkCache, trunk_outputs

WAYS = ("cached", "uncached", "peft_same_blocks", "peft_patch_dropout", "peft_all_blocks", "frozen_forward")
Epoch = Callable[[], float]  # trains for one epoch; returns the loss on validation, NaN where none was due


@dataclass(frozen=True)
class BenchImages:
    """One split of a task: its files, their sha256, their pixels (n, size, size, 3), and labels (n,) int64."""

    paths: list[Path]
    digests: list[str]
    pixels: Pixels
    labels: Tensor


@dataclass(frozen=True)
class TrainingSetting:
    """What all ways share.

    Attributes:
        root: the project, which has the backbone.
        backbone: its settings, with the number of adapted blocks to measure.
        finetune: settings of training.
        limits: on the size of an image.
        device: on which all ways run.
        train: images to learn.
        val: images of validation.
        classes: their number.
        decoding: seconds that it took to decode both splits.
    """

    root: Path
    backbone: Backbone
    finetune: Finetune
    limits: Limits
    device: torch.device
    train: BenchImages
    val: BenchImages
    classes: int
    decoding: float

    def vit(self) -> Vit:
        """Load a backbone without modules."""
        return load_vit(self.root / "models/backbone", self.backbone, (self.backbone.depth,), self.device)


@dataclass(frozen=True)
class _TrunkEachTime:
    """A stand-in for Tokens: the trunk runs whenever a batch is read."""

    vit: Vit
    pixels: Pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Rows) -> HalfTokens:
        with torch.inference_mode(), autocast(self.vit):
            return cast(HalfTokens, self.vit.trunk(self.pixels[rows])[0].half().cpu().numpy())


def read_setting(root: Path, blocks: int, images: int, epochs: int, settings: Sequence[str]) -> TrainingSetting:
    """Read the largest task of a project.

    Args:
        root: a project whose stage `validate` has run.
        blocks: the last ones, which carry modules.
        images: to train on, at most; of validation the same share.
        epochs: of the longest training.
        settings: other values of params.yaml; `blocks` and `epochs` stand above them.

    Raises:
        IntaglioError: an impossible setting.
    """
    config = with_settings(load_config(root / "params.yaml"), settings)
    train = max((TaskData.read(root, config, task, "train") for task in config.tasks), key=len)
    val = TaskData.read(root, config, train.task, "val")
    backbone = config.backbone.model_copy(update={"adapted_blocks": blocks})
    share = min(1.0, images / len(train))
    start = time.perf_counter()
    learned, held_out = (_read(config, data, share) for data in (train, val))
    return TrainingSetting(
        root,
        backbone,
        config.finetune.model_copy(update={"epochs": epochs, "patience": epochs}),
        Limits.of(config.data),
        choose_device(config.device),
        learned,
        held_out,
        len(train.classes),
        time.perf_counter() - start,
    )


def _read(config: Config, data: TaskData, share: float) -> BenchImages:
    rows = pd.Series(np.arange(len(data))).sample(frac=share, random_state=0)
    drawn = data.take(rows.to_numpy().astype(np.int64))
    pixels = np.concatenate(list(pixel_batches(drawn.paths, config.backbone.image_size, Limits.of(config.data))))
    return BenchImages(list(drawn.paths), list(drawn.digests), pixels, torch.from_numpy(drawn.labels))


def way_of(way: str, setting: TrainingSetting, scratch: Path, seed: int = 0) -> Epoch:
    """Prepare one way, with its own backbone, so that its first epoch can run.

    Args:
        way: one of WAYS.
        setting: images and settings.
        scratch: an empty folder, the same for all ways of a measurement.
        seed: of initial factors and of the order of images.
    """
    if way == "frozen_forward":
        return _forward(setting)
    if way.startswith("peft"):
        blocks = setting.backbone.depth if way == "peft_all_blocks" else setting.backbone.adapted_blocks
        dropout = setting.finetune.patch_dropout if way == "peft_patch_dropout" else 0.0
        return _PeftLoop(setting, blocks, dropout, seed).epoch
    return _ours(setting, scratch, way == "cached", seed)


def training_job(setting: TrainingSetting, scratch: Path, vit: Vit, cached: bool = True, seed: int = 0) -> TrainingJob:
    """Prepare a training of ours.

    Args:
        setting: images and settings.
        scratch: where the trunk's cache lies.
        vit: a backbone without modules.
        cached: compute the trunk of every image now, or read it; otherwise it runs with every batch.
        seed: of initial factors and of the order of images.
    """
    splits = []
    for name, images in (("train", setting.train), ("val", setting.val)):
        tokens: Tokens | _TrunkEachTime = _TrunkEachTime(vit, images.pixels)
        if cached:
            cache = TrunkCache(scratch / "trunk", 10**12)
            tokens, _ = trunk_outputs(vit, images.paths, images.digests, setting.limits, cache, f"bench {name}")
        split = Split(cast(Tokens, tokens), images.labels)
        splits.append(split.moved_to_gpu_if_it_fits(vit.device) if cached else split)
    trained = attach(vit, {}, setting.finetune, seed)
    return TrainingJob("bench", vit, trained, splits[0], splits[1], setting.classes, setting.finetune, seed)


def _ours(setting: TrainingSetting, scratch: Path, cached: bool, seed: int) -> Epoch:
    """Train with the pipeline's own loop. The first epoch begins with what the stage begins with."""
    vit, begun = setting.vit(), list[tuple[TrainingJob, TrainingState]]()
    never = Checkpoints(scratch / "checkpoints", every=math.inf)

    def begin() -> tuple[TrainingJob, TrainingState]:
        job = training_job(setting, scratch, vit, cached, seed)
        parameters, images = job.trained.parameters(), len(job.train)
        return job, TrainingState.begin(parameters, 2 * vit.width, job.classes, images, job.settings, seed)

    def epoch() -> float:
        deterministic()  # as the stage is
        if not begun:
            begun.append(begin())
        loss = train_epoch(*begun[0], never).val_loss
        deterministic(wanted=False)
        return loss

    return epoch


class _PeftLoop:
    """LoRA of PEFT on the last `blocks` blocks, and the loop of its examples: the whole network in every step.

    With `dropout`, a share of the patches is left out of the whole network, by timm's own layer.
    """

    def __init__(self, setting: TrainingSetting, blocks: int, dropout: float, seed: int) -> None:
        self.setting, self.vit, self.epochs = setting, setting.vit(), 0
        self.random = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        prefix = self.vit.model.num_prefix_tokens
        self.patch_drop: nn.Module = PatchDropout(dropout, prefix) if dropout else nn.Identity()
        self.vit.model.set_submodule("patch_drop", self.patch_drop)
        model = get_peft_model(self.vit.model, _lora(setting, blocks))
        self.head = nn.Linear(2 * self.vit.width, setting.classes).to(self.vit.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.learned = [*factors, *self.head.parameters()]
        self.optimizer, self.schedule = _optimizer(setting, factors, self.head)

    def epoch(self) -> float:
        """Train for one epoch, then validate where that is due."""
        self.epochs += 1
        self._train()
        return self._validate() if validated_in(self.epochs, self.setting.finetune) else math.nan

    def _train(self) -> None:
        settings = self.setting.finetune
        self.patch_drop.train()
        for batch in torch.randperm(len(self.setting.train.labels), generator=self.random).split(settings.batch_size):
            loss = self._loss(batch.numpy(), self.setting.train, settings.label_smoothing)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.learned, settings.gradient_clip)
            self.optimizer.step()
            self.schedule.step()
        self.patch_drop.eval()

    def _validate(self) -> float:
        images, total = self.setting.val, 0.0
        with torch.no_grad():
            for batch in torch.arange(len(images.labels)).split(self.setting.finetune.batch_size):
                total += self._loss(batch.numpy(), images, 0.0).item() * len(batch)
        return total / len(images.labels)

    def _loss(self, rows: NDArray[np.int64], images: BenchImages, smoothing: float) -> Tensor:
        with autocast(self.vit):
            logits = self.head(self.vit.tail(self.vit.trunk(images.pixels[rows])[0])).float()
        return functional.cross_entropy(logits, images.labels[rows].to(self.vit.device), label_smoothing=smoothing)


def _lora(setting: TrainingSetting, blocks: int) -> LoraConfig:
    depth, rank = setting.backbone.depth, setting.finetune.rank
    numbers = "|".join(str(number) for number in range(depth - blocks, depth))
    layers = "|".join(layer.replace(".", r"\.") for layer in LINEAR_LAYERS)
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=rf"blocks\.({numbers})\.({layers})")


def _optimizer(
    setting: TrainingSetting, factors: list[nn.Parameter], head: nn.Linear
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    settings = setting.finetune
    groups = [
        {"params": factors, "lr": settings.learning_rate},
        {"params": list(head.parameters()), "lr": settings.head_learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    steps = math.ceil(len(setting.train.labels) / settings.batch_size) * settings.epochs
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, steps, settings.warmup_fraction)
    )


def _forward(setting: TrainingSetting) -> Epoch:
    """Run the frozen network once over both splits: the limit of any way that runs it on every image."""
    vit = setting.vit()

    def epoch() -> float:
        with torch.inference_mode(), autocast(vit):
            for images in (setting.train, setting.val):
                for batch in torch.arange(len(images.labels)).split(setting.finetune.batch_size):
                    vit.tail(vit.trunk(images.pixels[batch.numpy()])[0]).cpu()
        return math.nan

    return epoch
