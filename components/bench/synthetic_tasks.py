"""Many tasks out of a few learned ones: what a benchmark at 100 tasks runs on.

A synthetic task is a real one moved by an isometry: its class means and supports move to another place of h_0 with
all distances within the task kept, its module keeps its singular values and acts on other coordinates. Its scatter
stays, so that the covariance pooled over all tasks is the real one.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from components.arrays import Arrays, Matrix, Vector
from components.config import BASE, Config, Task
from components.inference.bundle import write_bundle
from components.io import read_arrays, read_json, sha256_file, write_arrays, write_json
from components.signatures.signature import Signature
from components.signatures.statistics import Statistics, pooled_covariance
from components.signatures.storage import read_signature, read_support, write_support
from components.signatures.support import Support


def stretch(root: Path, config: Config, tasks: int, folder: Path, seed: int = 0) -> Config:
    """Write `folder`/models with `tasks` tasks and their bundle: the project's own, then synthetic ones in turn.

    Args:
        root: a project that has been run.
        config: its configuration.
        tasks: number of tasks in all.
        folder: where to write.
        seed: of the synthetic tasks.

    Returns:
        The configuration of the stretched stream.
    """
    real = [read_signature(root / "models/signatures", task) for task in config.tasks]
    isometry = _Isometry.of([signature.statistics for signature in real], _trunk_width(real[0]))
    models = folder / "models"
    models.mkdir(parents=True)
    (models / "backbone").symlink_to((root / "models/backbone").resolve(), target_is_directory=True)
    stream: dict[str, Task] = {}
    for number in range(tasks):
        source = real[number % len(real)].task
        name = source if number < len(real) else f"synthetic-{number + 1}"
        own = {kind: models / kind / name for kind in ("modules", "signatures")}
        for kind, target in own.items():
            shutil.copytree(root / "models" / kind / source, target)
        if name != source:
            random = np.random.default_rng([seed, number])
            isometry.move(own["signatures"], random)
            _turn_module(own["modules"], random)
        stream[name] = Task(folder=name, previous=next(reversed(stream), BASE))
    stretched = config.model_copy(update={"stream": config.stream.model_copy(update={"tasks": stream})})
    write_bundle(folder, stretched)
    return stretched


def _trunk_width(signature: Signature) -> int:
    return len(signature.trunk_support.mixture.center) if signature.trunk_support else 0


class _Isometry:
    """Mirrors h_0 along random principal axes of the within-class covariance, about the mean of all class means.

    Trunk and tail are mirrored apart, so that the trunk's part of a moved task is the moved part. A mirror leaves
    the covariance as it is: distances in its units are kept too.
    """

    def __init__(self, center: Vector, blocks: Sequence[Matrix]) -> None:
        self.center, self.blocks = center, blocks

    @classmethod
    def of(cls, tasks: Sequence[Statistics], trunk_width: int) -> _Isometry:
        covariance = pooled_covariance(tasks)
        parts = [slice(0, trunk_width), slice(trunk_width, len(covariance))] if trunk_width else [slice(None)]
        blocks = [np.linalg.eigh(covariance[part, part])[1] for part in parts]
        return cls(np.concatenate([task.means for task in tasks]).mean(axis=0), blocks)

    def move(self, signature: Path, random: np.random.Generator) -> None:
        """Move the stored `signature` elsewhere; its held-out scores stay valid, since densities move along."""
        signs = [random.choice([-1.0, 1.0], len(block)) for block in self.blocks]
        shared = read_arrays(signature / "shared.safetensors")
        means = self._mirror(shared["means"] - self.center, signs) + self.center
        write_arrays(signature / "shared.safetensors", shared | {"means": means.astype(np.float16)})
        for path in signature.glob("*support.safetensors"):
            write_support(path, self._moved(read_support(path), signs))
        facts = read_json(signature / "signature.json")
        write_json(signature / "signature.json", facts | {"task": signature.name})

    def _mirror(self, x: Matrix, signs: Sequence[Vector]) -> Matrix:
        """Mirror directions x (n, d), or (n, trunk_width), along the axes whose sign is -1."""
        parts, start = [], 0
        for axes, sign in zip(self.blocks, signs, strict=True):
            if start < x.shape[1]:
                parts.append(x[:, start : start + len(axes)] @ axes * sign @ axes.T)
            start += len(axes)
        return np.concatenate(parts, axis=1)

    def _moved(self, support: Support, signs: Sequence[Vector]) -> Support:
        mixture = support.mixture
        about = self.center[: len(mixture.center)]
        center, *axes = self._mirror(np.vstack([mixture.center - about, mixture.axes]), signs)
        moved = replace(mixture, center=center + about, axes=np.stack(axes))
        return Support(moved.rounded(), support.calibration)


def _turn_module(module: Path, random: np.random.Generator) -> None:
    """Put the stored `module` on permuted coordinates: the same ranks, norms and singular values, another update."""
    weights = module / "adapter" / "adapter_model.safetensors"
    turned: Arrays = {}
    for name, array in read_arrays(weights).items():
        axis = 1 if ".lora_A." in name else 0
        turned[name] = np.ascontiguousarray(np.take(array, random.permutation(array.shape[axis]), axis=axis))
    write_arrays(weights, turned)
    write_json(module / "module.json", read_json(module / "module.json") | {"adapter_sha256": sha256_file(weights)})
