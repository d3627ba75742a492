"""Predictions for any number of image files: in constant memory, and with an error where there is none."""

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
class FileAnswer:
    """One file's prediction, or why there is none."""

    path: str
    prediction: Prediction | None
    error: str = ""


def answers(
    predictor: Predictor, batches: Iterable[Decoded], top: int = 1, force: bool = False
) -> Iterator[FileAnswer]:
    """An answer for every file of every batch, in order."""
    for batch in batches:
        found = iter(predictor.predict_pixels(batch.pixels, top, force) if len(batch.pixels) else [])
        for path, error in zip(batch.paths, batch.errors, strict=True):
            yield FileAnswer(path, None, error) if error else FileAnswer(path, next(found))


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to know, besides the paths. They are relative to `folder`, the bundle is absolute."""

    bundle: Path
    fingerprint: str
    folder: Path
    device: str
    precision: str
    top: int
    force: bool


def answer_chunk(recipe: WorkerSettings, paths: Sequence[str]) -> list[FileAnswer]:
    """Answers in order, by a bundle that this process keeps loaded: what a worker of a cluster runs.

    Raises:
        IntaglioError: the bundle is not there, or is not the one that was meant.
    """
    with _one_at_a_time:
        predictor = _predictor(recipe)
        batches = (paths[at : at + BATCH] for at in range(0, len(paths), BATCH))
        files = ([str(recipe.folder / path) for path in batch] for batch in batches)
        decoded = (decode(batch, predictor.image_size, predictor.limits) for batch in files)
        found = answers(predictor, decoded, recipe.top, recipe.force)
        return [replace(answer, path=path) for answer, path in zip(found, paths, strict=True)]


def _predictor(recipe: WorkerSettings) -> Predictor:
    if fingerprint(recipe.bundle) != recipe.fingerprint:
        raise IntaglioError(f"{recipe.bundle} on {platform.node()}: another bundle than the one on the client's disk")
    return _loaded(recipe.bundle, recipe.fingerprint, recipe.device, recipe.precision)


@lru_cache(maxsize=1)
def _loaded(bundle: Path, _fingerprint: str, device: str, precision: str) -> Predictor:
    return Predictor.load(bundle, device, precision)


def row_of(answer: FileAnswer, fields: Sequence[Field] = FILE) -> dict[str, Any]:
    """Return the answer's path and its values of `fields`, as JSON has them."""
    return {PATH.name: as_text(answer.path)} | as_object(fields, answer.prediction or answer.error)
