"""Predictions for any number of image files, in constant memory; a file that cannot be read has an error instead."""

from __future__ import annotations

import platform
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from components.errors import IntaglioError
from components.inference.bundle import fingerprint
from components.inference.decoding import BATCH, Decoded, decode
from components.inference.image_paths import as_text
from components.inference.prediction_schema import FILE, PATH, Field, as_object
from components.inference.predictor import Prediction, Predictor

_one_at_a_time = threading.Lock()  # a Predictor serves one thread, a worker may have several


@dataclass(frozen=True)
class FileResult:
    """One file's prediction, or why there is none."""

    path: str
    prediction: Prediction | None
    error: str = ""


def predict_batches(
    predictor: Predictor, batches: Iterable[Decoded], top: int = 1, force: bool = False
) -> Iterator[FileResult]:
    """Predict every file of every batch, in order.

    Args:
        predictor: the loaded bundle.
        batches: files that are decoded already, or have an error.
        top: guesses for each image.
        force: whether an image of no known task gets the best guess.
    """
    for batch in batches:
        found = iter(predictor.predict_pixels(batch.pixels, top, force) if len(batch.pixels) else [])
        for path, error in zip(batch.paths, batch.errors, strict=True):
            yield FileResult(path, None, error) if error else FileResult(path, next(found))


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker process needs besides the paths of its images.

    Attributes:
        bundle: The bundle's folder, absolute.
        fingerprint: Of the bundle that is meant; a worker may see another one there.
        folder: The folder that the images' paths are relative to.
        device: auto, cpu, cuda or mps.
        precision: auto, fp32 or bf16.
        top: Guesses for each image.
        force: Whether an image of no known task gets the best guess.
    """

    bundle: Path
    fingerprint: str
    folder: Path
    device: str
    precision: str
    top: int
    force: bool


def predict_chunk(settings: WorkerSettings, paths: Sequence[str]) -> list[FileResult]:
    """Predict files in order, by a bundle that this process keeps loaded: the work of a cluster's worker.

    Raises:
        IntaglioError: the bundle is not there, or is not the one that was meant.
    """
    with _one_at_a_time:
        predictor = _predictor(settings)
        batches = (paths[at : at + BATCH] for at in range(0, len(paths), BATCH))
        files = ([str(settings.folder / path) for path in batch] for batch in batches)
        decoded = (decode(batch, predictor.image_size, predictor.limits) for batch in files)
        results = predict_batches(predictor, decoded, settings.top, settings.force)
        return [replace(result, path=path) for result, path in zip(results, paths, strict=True)]


def _predictor(settings: WorkerSettings) -> Predictor:
    if fingerprint(settings.bundle) != settings.fingerprint:
        raise IntaglioError(f"{settings.bundle} on {platform.node()}: another bundle than the one on the client's disk")
    return _loaded(settings.bundle, settings.fingerprint, settings.device, settings.precision)


@lru_cache(maxsize=1)
def _loaded(bundle: Path, _fingerprint: str, device: str, precision: str) -> Predictor:
    return Predictor.load(bundle, device, precision)


def row_of(result: FileResult, fields: Sequence[Field] = FILE) -> dict[str, Any]:
    """Return the file's path and its values of `fields`, as JSON has them."""
    return {PATH.name: as_text(result.path)} | as_object(fields, result.prediction or result.error)
