"""What an epoch of fine-tuning costs: ours with and without the trunk's cache, and the PEFT loop a user would write.

Every way learns the same images in the same batches with the same optimizer, schedule, head and loss, and validates
after the same epochs on whole images. All begin with image files: the rivals keep the decoded images in memory, and
decoding them is part of their first epoch. The ways take turns, an epoch each, so that a busy machine slows all of them
alike. Memory is measured in a fresh process each.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from components.arrays import Pixels
from components.bench import gpu
from components.bench.machine import peak_memory_of, print_peak_memory
from components.bench.peft_import import LoraConfig, get_peft_model
from components.bench.task_growth import task_cost
from components.config import Backbone, Config, Finetune
from components.data.images import Limits
from components.data.task_data import TaskData
from components.modules.adapted_linear import attach
from components.modules.low_rank import LINEAR_LAYERS
from components.params import load_config, with_settings
from components.training.checkpoint import Checkpoints
from components.training.loop import (
    Split,
    TrainingJob,
    deterministic,
    kept_tokens,
    lr_factor,
    train_epoch,
    validated_in,
)
from components.training.state import TrainingState
from components.vision.backbone import Vit, autocast, choose_device, load_vit
from components.vision.pixel_batches import pixel_batches
from components.vision.timm_import import PatchDropout
from components.vision.trunk_cache import HalfTokens, Rows, Tokens, TrunkCache, trunk_outputs

WAYS = ("cached", "uncached", "peft_same_blocks", "peft_patch_dropout", "peft_all_blocks", "frozen_forward")
COMPARED = ("cached", "peft_same_blocks")  # ours and the loop that a user would write
Row = dict[str, Any]
Epoch = Callable[[], float]  # trains for one epoch; returns the loss on validation, NaN where none was due


@dataclass(frozen=True)
class BenchImages:
    """One split of a task: its files, their sha256, their pixels (n, size, size, 3), and labels (n,) int64."""

    paths: list[Path]
    digests: list[str]
    pixels: Pixels
    labels: Tensor


@dataclass(frozen=True)
class Setting:
    """What all ways share; `decoding` is how many seconds it took to decode both splits."""

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
        """A backbone of one's own."""
        return load_vit(self.root / "models/backbone", self.backbone, (self.backbone.depth,), self.device)


@dataclass(frozen=True)
class _Fresh:
    """Stands for Tokens: the trunk runs whenever a batch is read."""

    vit: Vit
    pixels: Pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Rows) -> HalfTokens:
        with torch.inference_mode(), autocast(self.vit):
            return cast(HalfTokens, self.vit.trunk(self.pixels[rows])[0].half().cpu().numpy())


def bench_train(
    root: Path,
    blocks: int = 4,
    images: int = 512,
    epochs: int = 4,
    tasks: int = 50,
    memory: bool = True,
    lengths: Sequence[int] = (),
    seeds: int = 1,
    ways: Sequence[str] = WAYS,
    settings: Sequence[str] = (),
) -> Row:
    """Measure every way on the largest task of the project at `root`, whose stage `validate` has run.

    Args:
        root: a project with models/backbone, data/ and params.yaml.
        blocks: the last ones, m, which carry modules.
        images: to train on, at most.
        epochs: of every way; the figures are of those after the first.
        tasks: t of the last task whose cost is measured; 0: none.
        memory: whether to measure peak memory, one fresh process for each way.
        lengths: other numbers of epochs, below `epochs`, that ours and PEFT's loop train for as well.
        seeds: of initial factors and orders of the images, over which the losses of those two are averaged.
        ways: those of WAYS to measure; those two are always among them.
        settings: other values of params.yaml, as finetune.patch_dropout=0.68; what a rival has no use for, it ignores.
            `blocks` and `epochs` stand above them.

    Raises:
        IntaglioError: an impossible setting.
    """
    setting = _setting(root, blocks, images, epochs, settings)
    with tempfile.TemporaryDirectory(prefix="intaglio-bench-") as scratch:
        rows, curve = _measure(setting, Path(scratch), lengths, seeds, ways)
        ways_on_gpu = [row["method"] for row in rows] if setting.device.type == "cuda" else []
        usage = _gpu(setting, Path(scratch), ways_on_gpu) if ways_on_gpu else {}
        cost = task_cost(_lesson(setting, Path(scratch), setting.vit()), setting.vit, Path(scratch) / "modules", tasks)
    by_method = {row["method"]: row for row in rows}
    slow = by_method["peft_same_blocks"]
    for row in rows:
        row["speedup_over_peft_same_blocks"] = round(slow["epoch_seconds"] / row["epoch_seconds"], 3)
        row["peak_memory_mb"] = peak_memory_of(__name__, root, blocks, row["method"], *settings) if memory else None
        print(_line(row), flush=True)
    return {
        "device": gpu.device_name(setting.device),
        "backbone": setting.backbone.model_dump(include={"model", "image_size", "depth", "adapted_blocks"}),
        "images": len(setting.train.labels),
        "val_images": len(setting.val.labels),
        "batch_size": setting.finetune.batch_size,
        "patch_dropout": setting.finetune.patch_dropout,
        "epochs": epochs,
        "rows": rows,
        "seeds": seeds,
        **({"curve": curve, "equal_loss_speedup": _at_equal_loss(curve)} if lengths else {}),
        "first_epoch_speedup": round(slow["first_epoch_seconds"] / by_method["cached"]["first_epoch_seconds"], 3),
        **cost,
        **usage,
    }


def _setting(root: Path, blocks: int, images: int, epochs: int, settings: Sequence[str]) -> Setting:
    config = with_settings(load_config(root / "params.yaml"), settings)
    train = max((TaskData.read(root, config, task, "train") for task in config.tasks), key=len)
    val = TaskData.read(root, config, train.task, "val")
    backbone = config.backbone.model_copy(update={"adapted_blocks": blocks})
    share = min(1.0, images / len(train))
    start = time.perf_counter()
    learned, held_out = (_read(config, data, share) for data in (train, val))
    return Setting(
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
    rows = pd.Series(range(len(data))).sample(frac=share, random_state=0)
    drawn = data.take(np.asarray(rows, dtype=np.int64))
    pixels = np.concatenate(list(pixel_batches(drawn.paths, config.backbone.image_size, Limits.of(config.data))))
    return BenchImages(list(drawn.paths), list(drawn.digests), pixels, torch.from_numpy(drawn.labels))


@dataclass
class _Run:
    """One training of one way: the seconds of its epochs so far, and the validation losses."""

    way: str
    setting: Setting
    seed: int = 0
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def _measure(
    setting: Setting, scratch: Path, lengths: Sequence[int], seeds: int, ways: Sequence[str]
) -> tuple[list[Row], list[Row]]:
    """A row for every way, and one for every length of ours and of PEFT's; all take turns, an epoch each."""
    ways = [way for way in WAYS if way in {*ways, *COMPARED}]
    runs = [_Run(way, setting) for way in ways if way not in COMPARED]
    for length in sorted({*lengths, setting.finetune.epochs}):
        runs += [_Run(way, _of_length(setting, length), seed) for seed in range(seeds) for way in COMPARED]
    # The first one to ask for the trunk pays for it in its first epoch: the first seed of the longest training.
    runs.sort(key=lambda run: (WAYS.index(run.way), -run.setting.finetune.epochs, run.seed))
    epochs = [way_of(run.way, run.setting, scratch, run.seed) for run in runs]
    for number in range(setting.finetune.epochs):
        for run, epoch in zip(runs, epochs, strict=True):
            if number < run.setting.finetune.epochs:
                start = time.perf_counter()
                run.losses.append(epoch())
                gpu.wait_for(setting.device)
                run.seconds.append(time.perf_counter() - start)
    alike: dict[tuple[str, int], list[_Run]] = {}
    for run in runs:
        alike.setdefault((run.way, run.setting.finetune.epochs), []).append(run)
    whole = [_row(alike[way, setting.finetune.epochs]) for way in ways]
    return whole, [_point(own) for (way, _), own in sorted(alike.items()) if way in COMPARED]


def _of_length(setting: Setting, epochs: int) -> Setting:
    return replace(setting, finetune=setting.finetune.model_copy(update={"epochs": epochs, "patience": epochs}))


def _row(runs: Sequence[_Run]) -> Row:
    """Of trainings that differ in their seed: the median of their epochs, the mean of their losses."""
    setting, last = runs[0].setting, [run.losses[-1] for run in runs]
    decoding = 0.0 if runs[0].way == "cached" else setting.decoding  # ours decodes files as it goes
    seconds = statistics.median(
        _typical(run.seconds[1:] or run.seconds, setting.finetune.validate_every) for run in runs
    )
    return {
        "method": runs[0].way,
        "images_per_second": round(len(setting.train.labels) / seconds, 2),
        "epoch_seconds": round(seconds, 4),
        "first_epoch_seconds": round(runs[0].seconds[0] + decoding, 4),
        "loss": None if math.isnan(last[0]) else round(statistics.mean(last), 4),
        **({"loss_std": round(statistics.stdev(last), 4)} if len(last) > 1 else {}),
    }


def _point(runs: Sequence[_Run]) -> Row:
    epochs = runs[0].setting.finetune.epochs
    row = _row(runs)
    after = round((epochs - 1) * row["epoch_seconds"], 3)
    return {"method": row["method"], "epochs": epochs, "seconds_after_first": after, "loss": row["loss"]}


def _at_equal_loss(curve: Sequence[Row]) -> float | None:
    """Time of PEFT's longest training over that of our shortest one that ends at no higher loss, first epochs apart."""
    ours, rival = ([row for row in curve if row["method"] == way] for way in COMPARED)
    longest = max(rival, key=lambda row: row["epochs"])
    as_good = [row["seconds_after_first"] for row in ours if row["loss"] <= longest["loss"]]
    return round(longest["seconds_after_first"] / min(as_good), 3) if as_good else None


def _gpu(setting: Setting, scratch: Path, ways: Sequence[str]) -> Row:
    """How well every way uses the GPU in epochs that end without a validation."""
    endless = {"epochs": gpu.EPOCHS + 10, "validate_every": gpu.EPOCHS + 10}
    setting = replace(setting, finetune=setting.finetune.model_copy(update=endless))
    vit = setting.vit()
    tokens = (setting.backbone.image_size // vit.model.patch_embed.patch_size[0]) ** 2 + vit.model.num_prefix_tokens
    prefix, dropout = vit.model.num_prefix_tokens, setting.finetune.patch_dropout
    few = kept_tokens(1, tokens, prefix, dropout, (0,)).shape[1]
    trunk, tail = vit.blocks[: vit.trunk_depth], vit.blocks[vit.trunk_depth :]

    def flop(blocks: Sequence[nn.Module], count: int) -> int:
        return gpu.forward_flop(blocks, count, vit.width, setting.device)

    train, val = len(setting.train.labels), len(setting.val.labels)
    images = dict.fromkeys(WAYS, train) | {"frozen_forward": train + val}
    whole = flop(trunk, tokens) + flop(tail, tokens)
    each = {
        "cached": 2 * flop(tail, few),
        "uncached": flop(trunk, tokens) + 2 * flop(tail, few),
        "peft_same_blocks": whole + flop(tail, tokens),
        "peft_patch_dropout": flop(trunk, few) + 2 * flop(tail, few),
        "peft_all_blocks": 2 * whole,
        "frozen_forward": whole,
    }
    works = {
        way: gpu.Work(partial(way_of, way, setting, scratch), images[way], images[way] * each[way]) for way in ways
    }
    return gpu.gpu_rows(works, setting.device)


def _typical(seconds: list[float], every: int) -> float:
    """Of an epoch: the mean of the medians of those with a validation, every `every`-th, and of the others."""
    return statistics.mean(statistics.median(seconds[turn::every]) for turn in range(min(every, len(seconds))))


def way_of(way: str, setting: Setting, scratch: Path, seed: int = 0) -> Epoch:
    """One of WAYS, ready to run its first epoch, with a backbone of its own."""
    if way == "frozen_forward":
        return _forward(setting)
    if way.startswith("peft"):
        blocks = setting.backbone.depth if way == "peft_all_blocks" else setting.backbone.adapted_blocks
        return _peft(setting, blocks, setting.finetune.patch_dropout if way == "peft_patch_dropout" else 0.0, seed)
    return _ours(setting, scratch, way == "cached", seed)


def _lesson(setting: Setting, scratch: Path, vit: Vit, cached: bool = True, seed: int = 0) -> TrainingJob:
    """Everything ready to be learned from; cached: the trunk of every image is computed, or was."""
    splits = []
    for name, images in (("train", setting.train), ("val", setting.val)):
        tokens: Tokens | _Fresh = _Fresh(vit, images.pixels)
        if cached:
            cache = TrunkCache(scratch / "trunk", 10**12)
            tokens, _ = trunk_outputs(vit, images.paths, images.digests, setting.limits, cache, f"bench {name}")
        split = Split(cast(Tokens, tokens), images.labels)
        splits.append(split.moved_to_gpu_if_it_fits(vit.device) if cached else split)
    trained = attach(vit, {}, setting.finetune, seed)
    return TrainingJob("bench", vit, trained, splits[0], splits[1], setting.classes, setting.finetune, seed)


def _ours(setting: Setting, scratch: Path, cached: bool, seed: int) -> Epoch:
    """The product's own loop. Its first epoch begins with what the stage begins with."""
    vit, begun = setting.vit(), list[tuple[TrainingJob, TrainingState]]()
    never = Checkpoints(scratch / "checkpoints", every=math.inf)

    def begin() -> tuple[TrainingJob, TrainingState]:
        job = _lesson(setting, scratch, vit, cached, seed)
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


def _peft(setting: Setting, blocks: int, dropout: float = 0.0, seed: int = 0) -> Epoch:
    """LoRA of PEFT on the last `blocks` blocks, and the loop of its examples: the whole network in every step.

    With `dropout`, a share of the patches is left out of the whole network, by timm's own layer.
    """
    vit, settings, random = setting.vit(), setting.finetune, torch.Generator().manual_seed(seed)
    numbers = "|".join(str(number) for number in range(setting.backbone.depth - blocks, setting.backbone.depth))
    layers = "|".join(layer.replace(".", r"\.") for layer in LINEAR_LAYERS)
    torch.manual_seed(seed)
    patch_drop: nn.Module = PatchDropout(dropout, vit.model.num_prefix_tokens) if dropout else nn.Identity()
    vit.model.set_submodule("patch_drop", patch_drop)
    rank = settings.rank
    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=rf"blocks\.({numbers})\.({layers})")
    model = get_peft_model(vit.model, lora)
    head = nn.Linear(2 * vit.width, setting.classes).to(vit.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": learned, "lr": settings.learning_rate},
        {"params": list(head.parameters()), "lr": settings.head_learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    count = len(setting.train.labels)
    steps = math.ceil(count / settings.batch_size) * settings.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, steps, settings.warmup_fraction)
    )
    number = 0

    def loss_of(rows: NDArray[np.int64], images: BenchImages, smoothing: float) -> Tensor:
        with autocast(vit):
            logits = head(vit.tail(vit.trunk(images.pixels[rows])[0])).float()
        return functional.cross_entropy(logits, images.labels[rows].to(vit.device), label_smoothing=smoothing)

    def epoch() -> float:
        nonlocal number
        number += 1
        patch_drop.train()
        for batch in torch.randperm(count, generator=random).split(settings.batch_size):
            loss = loss_of(batch.numpy(), setting.train, settings.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([*learned, *head.parameters()], settings.gradient_clip)
            optimizer.step()
            schedule.step()
        patch_drop.eval()
        if not validated_in(number, settings):
            return math.nan
        total = 0.0
        with torch.no_grad():
            for batch in torch.arange(len(setting.val.labels)).split(settings.batch_size):
                total += loss_of(batch.numpy(), setting.val, 0.0).item() * len(batch)
        return total / len(setting.val.labels)

    return epoch


def _forward(setting: Setting) -> Epoch:
    """The limit of anything that looks at every image: the frozen network, once over both splits."""
    vit = setting.vit()

    def epoch() -> float:
        with torch.inference_mode(), autocast(vit):
            for images in (setting.train, setting.val):
                for batch in torch.arange(len(images.labels)).split(setting.finetune.batch_size):
                    vit.tail(vit.trunk(images.pixels[batch.numpy()])[0]).cpu()
        return math.nan

    return epoch


def _two_steps(root: Path, blocks: int, way: str, *settings: str) -> None:
    batch = with_settings(load_config(root / "params.yaml"), settings).finetune.batch_size
    setting = _setting(root, blocks, 2 * batch, 1, settings)
    with tempfile.TemporaryDirectory(prefix="intaglio-bench-") as scratch:
        way_of(way, setting, Path(scratch))()
    print_peak_memory()


def _line(row: Row) -> str:
    memory = "" if row["peak_memory_mb"] is None else f", {row['peak_memory_mb']:.0f} MB"
    loss = "" if row["loss"] is None else f", loss {row['loss']:.4f}"
    ratio = f"{row['speedup_over_peft_same_blocks']:.2f} times peft_same_blocks"
    return f"{row['method']:<19}{row['images_per_second']:8.1f} images/s, {ratio}{loss}{memory}"


if __name__ == "__main__":
    _two_steps(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
