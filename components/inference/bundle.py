"""The bundle: one folder with everything that prediction needs, and the sha256 of every file in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from components.config import BASE, Config
from components.errors import IntaglioError
from components.io import atomic_folder, read_json, sha256_file, write_arrays, write_json
from components.retrieval.shortlist import TaskRetriever
from components.signatures.storage import read_signature

INDEX = "bundle.json"
RETRIEVAL = "retrieval.safetensors"
_MODULE = ("module.json", "adapter/adapter_config.json", "adapter/adapter_model.safetensors")
_SIGNATURE = (
    "signature.json",
    "classifier.safetensors",
    "mixture.safetensors",
    "centroids.safetensors",
    "support.safetensors",
    "trunk_support.safetensors",
)


def write_bundle(root: Path, config: Config) -> None:
    """Write models/bundle from the backbone, the modules and the signatures: the stage `bundle`."""
    generations = {task: config.generation(task) for task in config.tasks}
    signatures = [read_signature(root / "models/signatures", name) for name in generations.values()]
    with atomic_folder(root / "models/bundle") as folder:
        shutil.copytree(root / "models/backbone", folder / "backbone")
        frozen = [signature.task for signature in signatures if not signature.module]
        for task, generation in generations.items():
            if task not in frozen:
                _copy(root / "models/modules" / task, folder / "modules" / task, _MODULE)
            _copy(root / "models/signatures" / generation, folder / "signatures" / task, _SIGNATURE)
        if (shared := config.embedding.shared) not in (BASE, *(set(generations) - set(frozen))):  # h_0 is seen under it
            _copy(root / "models/modules" / shared, folder / "modules" / shared, _MODULE)
        write_arrays(folder / RETRIEVAL, TaskRetriever.fit(signatures, config.shortlist).to_arrays())
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sections = ("data", "backbone", "embedding", "retrieval", "shortlist")
        index = {
            "tasks": {signature.task: signature.classes for signature in signatures},
            "order": list(config.tasks),
            "frozen": frozen,
            "labels": {
                signature.task: [config.label(signature.task, name) for name in signature.classes]
                for signature in signatures
            },
            "config": {section: getattr(config, section).model_dump(mode="json") for section in sections},
            "files": {path.relative_to(folder).as_posix(): sha256_file(path) for path in files},
        }
        write_json(folder / INDEX, index)


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in filter(lambda name: (source / name).exists(), names):  # not every trunk has a support
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target / name)


def fingerprint(folder: Path) -> str:
    """Return what tells a bundle from every other: the sha256 of its index, which holds that of every file.

    Raises:
        IntaglioError: it is no bundle.
    """
    return sha256_file(_index(folder))


def verify_bundle(folder: Path, sha256_of: Callable[[Path], str] = sha256_file) -> None:
    """Check that a bundle is whole.

    Args:
        folder: the bundle.
        sha256_of: hashes a file; a loader that hashes files again for its own checks passes one with a memory.

    Raises:
        IntaglioError: it is no bundle, or a listed file is missing or damaged.
    """
    for name, digest in read_json(_index(folder))["files"].items():
        path = folder / name
        if not path.is_file():
            raise IntaglioError(f"{path}: missing from the bundle; run the stage 'bundle' again")
        if sha256_of(path) != digest:
            raise IntaglioError(f"{path}: damaged (its sha256 is not the one in {INDEX}); run the stage 'bundle' again")


def _index(folder: Path) -> Path:
    index = folder / INDEX
    if not index.is_file():
        raise IntaglioError(f"{folder}: not a bundle ({INDEX} is missing); run the stage 'bundle'")
    return index
