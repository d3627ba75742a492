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
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from components.bench import gpu
from components.bench.machine import peak_memory_of, print_peak_memory
from components.bench.task_growth import task_cost
from components.bench.training_ways import WAYS, TrainingSetting, read_setting, training_job, way_of
from components.params import load_config, with_settings
from components.training.schedule import kept_tokens

COMPARED = ("cached", "peft_same_blocks")  # ours and the loop that a user would write
Row = dict[str, Any]


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
    setting = read_setting(root, blocks, images, epochs, settings)
    with tempfile.TemporaryDirectory(prefix="intaglio-bench-") as folder:
        scratch = Path(folder)
        rows, curve = _measure(setting, scratch, lengths, seeds, [way for way in WAYS if way in {*ways, *COMPARED}])
        ways_on_gpu = [row["method"] for row in rows] if setting.device.type == "cuda" else []
        usage = _gpu(setting, scratch, ways_on_gpu) if ways_on_gpu else {}
        cost = task_cost(training_job(setting, scratch, setting.vit()), setting.vit, scratch / "modules", tasks)
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


@dataclass
class _Run:
    """One training of one way.

    Attributes:
        way: one of WAYS.
        setting: images and settings.
        seed: of initial factors and of the order of images.
        seconds: of each epoch so far.
        losses: on validation after each epoch so far; NaN where none was due.
    """

    way: str
    setting: TrainingSetting
    seed: int = 0
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        return self.setting.finetune.epochs


def _measure(
    setting: TrainingSetting, scratch: Path, lengths: Sequence[int], seeds: int, ways: Sequence[str]
) -> tuple[list[Row], list[Row]]:
    """Train every way; all take turns, an epoch each.

    Returns:
        A row for every way, and one for every length of ours and of PEFT's.
    """
    runs = _runs(setting, lengths, seeds, ways)
    _take_turns(runs, scratch)
    alike: dict[tuple[str, int], list[_Run]] = {}
    for run in runs:
        alike.setdefault((run.way, run.epochs), []).append(run)
    whole = [_row(alike[way, setting.finetune.epochs]) for way in ways]
    return whole, [_point(own) for (way, _), own in sorted(alike.items()) if way in COMPARED]


def _runs(setting: TrainingSetting, lengths: Sequence[int], seeds: int, ways: Sequence[str]) -> list[_Run]:
    runs = [_Run(way, setting) for way in ways if way not in COMPARED]
    for length in sorted({*lengths, setting.finetune.epochs}):
        runs += [_Run(way, _of_length(setting, length), seed) for seed in range(seeds) for way in COMPARED]
    # The first one to ask for the trunk pays for it in its first epoch: the first seed of the longest training.
    return sorted(runs, key=lambda run: (WAYS.index(run.way), -run.epochs, run.seed))


def _take_turns(runs: Sequence[_Run], scratch: Path) -> None:
    epochs = [way_of(run.way, run.setting, scratch, run.seed) for run in runs]
    for number in range(max(run.epochs for run in runs)):
        for run, epoch in zip(runs, epochs, strict=True):
            if number < run.epochs:
                start = time.perf_counter()
                run.losses.append(epoch())
                gpu.wait_for(run.setting.device)
                run.seconds.append(time.perf_counter() - start)


def _of_length(setting: TrainingSetting, epochs: int) -> TrainingSetting:
    return replace(setting, finetune=setting.finetune.model_copy(update={"epochs": epochs, "patience": epochs}))


def _row(runs: Sequence[_Run]) -> Row:
    """Summarise trainings that differ in their seed: the median of their epochs, the mean of their losses."""
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
    row, epochs = _row(runs), runs[0].epochs
    after = round((epochs - 1) * row["epoch_seconds"], 3)
    return {"method": row["method"], "epochs": epochs, "seconds_after_first": after, "loss": row["loss"]}


def _at_equal_loss(curve: Sequence[Row]) -> float | None:
    """Divide the time of PEFT's longest training by that of our shortest one that ends at no higher loss.

    First epochs are left out.
    """
    ours, rival = ([row for row in curve if row["method"] == way] for way in COMPARED)
    longest = max(rival, key=lambda row: row["epochs"])
    as_good = [row["seconds_after_first"] for row in ours if row["loss"] <= longest["loss"]]
    return round(longest["seconds_after_first"] / min(as_good), 3) if as_good else None


def _gpu(setting: TrainingSetting, scratch: Path, ways: Sequence[str]) -> Row:
    """Measure how well every way uses the GPU, in epochs that end without a validation."""
    endless = {"epochs": gpu.EPOCHS + 10, "validate_every": gpu.EPOCHS + 10}
    setting = replace(setting, finetune=setting.finetune.model_copy(update=endless))
    train, val = len(setting.train.labels), len(setting.val.labels)
    images = dict.fromkeys(WAYS, train) | {"frozen_forward": train + val}
    flop = _flop_of_an_image(setting)
    works = {
        way: gpu.Work(partial(way_of, way, setting, scratch), images[way], images[way] * flop[way]) for way in ways
    }
    return gpu.gpu_rows(works, setting.device)


def _flop_of_an_image(setting: TrainingSetting) -> dict[str, int]:
    """Count what an image costs in each way: a forward pass, and as much again for each block with a gradient."""
    vit = setting.vit()
    prefix, dropout = vit.model.num_prefix_tokens, setting.finetune.patch_dropout
    tokens = (setting.backbone.image_size // vit.model.patch_embed.patch_size[0]) ** 2 + prefix
    few = kept_tokens(1, tokens, prefix, dropout, (0,)).shape[1]
    trunk, tail = vit.blocks[: vit.trunk_depth], vit.blocks[vit.trunk_depth :]

    def flop(blocks: Sequence[nn.Module], count: int) -> int:
        return gpu.forward_flop(blocks, count, vit.width, setting.device)

    whole = flop(trunk, tokens) + flop(tail, tokens)
    return {
        "cached": 2 * flop(tail, few),
        "uncached": flop(trunk, tokens) + 2 * flop(tail, few),
        "peft_same_blocks": whole + flop(tail, tokens),
        "peft_patch_dropout": flop(trunk, few) + 2 * flop(tail, few),
        "peft_all_blocks": 2 * whole,
        "frozen_forward": whole,
    }


def _typical(seconds: list[float], every: int) -> float:
    """Average over epochs: the mean of the medians of those with a validation, every `every`-th, and of the others."""
    return statistics.mean(statistics.median(seconds[turn::every]) for turn in range(min(every, len(seconds))))


def _two_steps(root: Path, blocks: int, way: str, *settings: str) -> None:
    batch = with_settings(load_config(root / "params.yaml"), settings).finetune.batch_size
    setting = read_setting(root, blocks, 2 * batch, 1, settings)
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
