"""What earlier versions wrote: it opens, and predicts the same."""

from __future__ import annotations

import csv
import tarfile
from pathlib import Path

import numpy as np
import pytest

from components.data.images import open_image, to_square
from components.inference.predictor import Predictor

# A project of two tasks, learned, published and promoted by version 0.1.0, and its answers for 48 images. Nothing of
# it is written anew: a change of format keeps a reader for these files.
STORED = Path(__file__).parents[1] / "golden" / "project-0.1.0.tar.xz"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The stored project, in another place than where it was made."""
    with tarfile.open(STORED) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "old"


def answers_of(bundle: Path, root: Path) -> list[tuple[str, str, str]]:
    """Path, task and label of every image that the stored answers name."""
    predictor = Predictor.load(bundle, "cpu")
    with (root / "answers.csv").open(newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    images = [open_image(root / path, predictor.limits) for path in paths]
    size = predictor.image_size
    found = predictor.predict_pixels(np.stack([to_square(image, size) for image in images]), 1, False)
    return [(path, one.task, one.label or "") for path, one in zip(paths, found, strict=True)]


def stored_answers(root: Path) -> list[tuple[str, str, str]]:
    with (root / "answers.csv").open(newline="") as file:
        return [(row["path"], row["task"], row["label"]) for row in csv.DictReader(file)]


def test_its_bundle_answers_as_before(project: Path) -> None:
    assert answers_of(project / "models/bundle", project) == stored_answers(project)
