"""Many tasks out of a few learned ones: what a benchmark at 100 tasks runs on.

A synthetic task is a real one seen through an isometry: its statistics and supports move to another place of h_0 with
all distances within the task kept, its module keeps its singular values and acts on other coordinates.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from components.bundle import write_bundle
from components.config import Config, Task
from components.io import Arrays, read_arrays, read_json, sha256_file, write_arrays, write_json
from components.scatter import shrunk_covariance
from components.signature import Mixture, Signature, Statistics, Support
from components.signature_files import read_signature, write_signature

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]


def stretch(root: Path, config: Config, tasks: int, folder: Path, seed: int = 0) -> Config:
    """Write `folder`/models with `tasks` tasks and their bundle: the project's own, then synthetic ones in turn.

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
        source = real[number % len(real)]
        random = np.random.default_rng([seed, number])
        if number < len(real):
            name = source.task
            for kind in ("modules", "signatures"):
                shutil.copytree(root / "models" / kind / name, models / kind / name)
        else:
            name = f"synthetic-{number + 1}"
            write_signature(models / "signatures", isometry.move(source, name, random), config.signature.scatter_rank)
            _turn_module(root / "models/modules" / source.task, models / "modules" / name, random)
        stream[name] = Task(folder=name, previous="base")
    stretched = config.model_copy(update={"stream": config.stream.model_copy(update={"tasks": stream})})
    write_bundle(folder, stretched)
    return stretched


def _trunk_width(signature: Signature) -> int:
    return len(signature.trunk_support.mixture.center) if signature.trunk_support else 0


class _Isometry:
    """Mirrors h_0 along random principal axes of the within-class covariance, about the mean of all class means.

    Trunk and tail are mirrored apart, so that what the trunk sees of a moved task is the moved trunk.
    """

    def __init__(self, center: Vector, blocks: Sequence[Matrix]) -> None:
        self.center, self.blocks = center, blocks

    @classmethod
    def of(cls, tasks: Sequence[Statistics], trunk_width: int) -> _Isometry:
        scatter = cast(Matrix, sum(task.scatter for task in tasks))
        freedom = sum(float(task.counts.sum()) - len(task.counts) for task in tasks)
        covariance = shrunk_covariance(scatter, freedom)
        parts = [slice(0, trunk_width), slice(trunk_width, len(covariance))] if trunk_width else [slice(None)]
        blocks = [np.linalg.eigh(covariance[part, part])[1] for part in parts]
        return cls(np.concatenate([task.means for task in tasks]).mean(axis=0), blocks)

    def move(self, signature: Signature, name: str, random: np.random.Generator) -> Signature:
        """The same task elsewhere: held-out scores stay valid, since densities move along."""
        mirrors = [(v * random.choice([-1.0, 1.0], len(v))) @ v.T for v in self.blocks]
        width = sum(len(mirror) for mirror in mirrors)
        mirror = np.zeros((width, width))
        start = 0
        for part in mirrors:
            mirror[start : start + len(part), start : start + len(part)] = part
            start += len(part)
        statistics = signature.statistics
        means = (statistics.means - self.center) @ mirror + self.center
        scatter = mirror @ statistics.scatter @ mirror
        trunk = signature.trunk_support
        return replace(
            signature,
            task=name,
            statistics=Statistics(statistics.counts, means, scatter),
            support=_moved(signature.support, mirror, self.center),
            trunk_support=trunk and _moved(trunk, mirrors[0], self.center[: len(mirrors[0])]),
        )


def _moved(support: Support, mirror: Matrix, about: Vector) -> Support:
    mixture = support.mixture
    place = (mixture.center - about) @ mirror + about
    moved = Mixture(mixture.weights, mixture.means, mixture.variances, place, mixture.axes @ mirror, mixture.noise)
    return Support(moved.rounded(), support.calibration)


def _turn_module(source: Path, target: Path, random: np.random.Generator) -> None:
    """A module on permuted coordinates: the same ranks, norms and singular values, another update."""
    shutil.copytree(source, target)
    weights = target / "adapter" / "adapter_model.safetensors"
    turned: Arrays = {}
    for name, array in read_arrays(weights).items():
        axis = 1 if ".lora_A." in name else 0
        turned[name] = np.ascontiguousarray(np.take(array, random.permutation(array.shape[axis]), axis=axis))
    write_arrays(weights, turned)
    write_json(target / "module.json", read_json(target / "module.json") | {"adapter_sha256": sha256_file(weights)})
