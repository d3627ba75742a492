"""One task -> one module: a new component on the tail, trained on the task's splits beside its past, and stored."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from components.config import Finetune as Settings
from components.modules.adapted_linear import attach
from components.modules.low_rank import read_past, write_module
from components.training.checkpoint import Checkpoints
from components.training.distributed import ALONE, ProcessGroup
from components.training.loop import Split, TrainingJob, train
from components.training.state import Epoch
from components.vision.backbone import Vit


@dataclass(frozen=True)
class TaskSplits:
    """What a module is trained on: the splits of a task, and its number of classes C."""

    train: Split
    val: Split
    classes: int


@dataclass(frozen=True)
class TrainedModule:
    """The report of a training, whose module is stored.

    Attributes:
        history: the figures of each epoch.
        facts: adapter_rank, truncation_error and reused_directions, as `write_module` returns them.
        seconds: of the training, without reading the past and storing the module.
    """

    history: list[Epoch]
    facts: dict[str, float]
    seconds: float


def train_module(
    folder: Path,
    task: str,
    previous: str,
    splits: TaskSplits,
    vit: Vit,
    settings: Settings,
    seed: int,
    checkpoints: Checkpoints,
    processes: ProcessGroup = ALONE,
) -> TrainedModule | None:
    """Train the module of a task, which may reuse the modules before it, and write it to `folder`/<task>.

    Args:
        folder: of the chain of modules.
        task: name of the module to write.
        previous: name of the module before it; BASE where there is none.
        splits: of the task's images.
        vit: the backbone; its tail carries the adapted layers afterwards.
        settings: of the module and its training.
        seed: of the component's first values, the shuffles and the dropped patches.
        checkpoints: of this training, from which it resumes; the caller removes them.
        processes: this process among those that train the module together.

    Returns:
        A report; None in all processes but the first, which is the one that writes.

    Raises:
        IntaglioError: a module of the past is missing or damaged, or the loss is not finite or diverged.
        PeersLostError: another process of the training ended.
    """
    past = read_past(folder, previous, settings.past_budget)
    start = time.monotonic()
    trained = attach(vit, past, settings, seed)
    job = TrainingJob(task, vit, trained, splits.train, splits.val, splits.classes, settings, seed, processes)
    history, head = train(job, checkpoints)
    if processes.rank > 0:
        return None
    seconds = time.monotonic() - start
    component, reuse = trained.component(), trained.reuse(settings.reuse_threshold)
    facts = write_module(folder, task, previous, component, reuse, past, head, vit, settings.max_rank)
    return TrainedModule(history, facts, seconds)
