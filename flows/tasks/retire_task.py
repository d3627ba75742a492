"""`intaglio task retire` and `restore`: whether a task is retrieved. No module changes, and nothing is deleted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from components.arrays import Arrays
from components.config import Config
from components.errors import IntaglioError
from components.io import read_arrays
from components.params import load_config
from flows.tasks.dvc_files import present_generation
from flows.tasks.params_file import ParamsText, change_params


@dataclass(frozen=True)
class Reuse:
    """What a later module reuses of a task.

    Attributes:
        task: the later one.
        directions: of the task, over all layers; None where the past was truncated, so that its directions are mixtures
            of all earlier tasks.
    """

    task: str
    directions: int | None

    @property
    def words(self) -> str:
        """Return the number in words."""
        return "mixtures of its directions" if self.directions is None else f"{self.directions} of its directions"


@dataclass(frozen=True)
class Retirement:
    """What a change of `retired` did.

    Attributes:
        task: its name.
        changed: whether params.yaml changed; it may have been so before.
        reused_by: later modules that go on using its directions.
        instead: the earlier generation that is retrieved in its place again; "" where there is none.
    """

    task: str
    changed: bool
    reused_by: tuple[Reuse, ...] = ()
    instead: str = ""


def retire_task(root: Path, task: str) -> Retirement:
    """Take a task out of retrieval.

    Args:
        root: the project's folder.
        task: its name.

    Raises:
        IntaglioError: there is no such task, or it is the last one that is retrieved.
    """
    config = _config_with(root, task)
    changed = not config.task(task).retired
    after = _as_retired(config, task)
    if not after.tasks:
        raise IntaglioError(f"task {task!r}: is the last one that answers; add or restore another one first")
    if changed:
        change_params(root / "params.yaml", lambda text: _entry(text, task).update(retired=True))
    back = sorted(set(after.tasks) & config.replaced_by(task)) if changed else []
    return Retirement(task, changed, tuple(reused_by(root, config, task)), "".join(back))


def restore_task(root: Path, task: str) -> Retirement:
    """Put a retired task back into retrieval.

    Args:
        root: the project's folder.
        task: its name.

    Raises:
        IntaglioError: there is no such task.
    """
    config = _config_with(root, task)
    if config.task(task).retired:
        change_params(root / "params.yaml", lambda text: _entry(text, task).pop("retired"))
    newer = present_generation(config, task)
    return Retirement(task, config.task(task).retired, instead=newer if newer != task else "")


def reused_by(root: Path, config: Config, task: str) -> Iterator[Reuse]:
    """Yield the later modules that reuse directions of a task.

    A module's reuse.safetensors has for each layer the scales of all earlier components, one after the other. Where
    they were more than finetune.past_budget, they were truncated together.

    Args:
        root: the project's folder.
        config: of the project.
        task: its name.
    """
    place, modules = config.chain.index(task), root / "models" / "modules"
    component = modules / task / "component.safetensors"
    if not component.is_file():
        return
    ranks = {name: _ranks(modules / name) for name in config.chain[: place + 1]}
    for position, later in enumerate(config.chain[place + 1 :], start=place + 1):
        path = modules / later / "reuse.safetensors"
        scales = read_arrays(path) if path.is_file() else {}
        if any(scale.any() for scale in scales.values()):
            directions = _directions(scales, [ranks[name] for name in config.chain[:position]], place)
            if directions != 0:
                yield Reuse(later, directions)
        ranks[later] = _ranks(modules / later)


def _ranks(module: Path) -> dict[str, int]:
    """Return the number of directions of a component, layer by layer."""
    path = module / "component.safetensors"
    arrays = read_arrays(path) if path.is_file() else {}
    return {name.removesuffix(".A"): len(array) for name, array in arrays.items() if name.endswith(".A")}


def _directions(scales: Arrays, past: list[dict[str, int]], place: int) -> int | None:
    """Count the reused directions of one task; None where the past was truncated.

    Args:
        scales: layer -> scale of each direction of the past.
        past: layer -> number of directions, for every earlier task.
        place: of the task among them.
    """
    total = 0
    for layer, scale in scales.items():
        ranks = [own.get(layer, 0) for own in past]
        if sum(ranks) != len(scale):
            return None
        start = sum(ranks[:place])
        total += int(np.count_nonzero(scale[start : start + ranks[place]]))
    return total


def _config_with(root: Path, task: str) -> Config:
    config = load_config(root / "params.yaml")
    if task not in config.chain:
        raise IntaglioError(f"task {task!r}: not in {root / 'params.yaml'}; it has {', '.join(config.chain)}")
    return config


def _as_retired(config: Config, task: str) -> Config:
    kind = "tasks" if task in config.stream.tasks else "archived"
    known = dict(getattr(config.stream, kind))
    known[task] = known[task].model_copy(update={"retired": True})
    return config.model_copy(update={"stream": config.stream.model_copy(update={kind: known})})


def _entry(text: ParamsText, task: str) -> dict[str, object]:
    stream = text.section("stream")
    kind = "tasks" if task in stream["tasks"] else "archived"
    entry: dict[str, object] = stream[kind][task]
    return entry
