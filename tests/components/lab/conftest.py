"""A small real stream (8x8 digits as a zip) and a tiny backbone: the laboratory in miniature."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from components.config import Config
from components.io import write_arrays, write_text
from components.lab.grid import Laboratory, PreparedStream
from components.lab.stream import load_stream
from components.lab.task_sequence import Caps, TaskSequence, make_task_sequence
from components.params import load_config
from components.vision.pretrained import convert
from components.vision.timm_import import create_model

PARAMS = """
seed: 0
cache: {max_gb: 1.0}
device: cpu
fetch: {tasks: [], images_per_class: 10}
data: {val_fraction: 0.2, test_fraction: 0.25, max_pixels: 1000000, max_bytes: 1000000, min_side: 8,
       min_images_per_class: 8, max_class_ratio: 20.0}
backbone: {model: test_vit, weights: tiny.safetensors, sha256: null, image_size: 32, depth: 4, adapted_blocks: 2}
embedding: {depths: [2, 4], shared: base}
finetune: {rank: 3, past_budget: 12, max_rank: 12, l1: 0.0001, l2: 0.0001, reuse_threshold: 0.001, epochs: 2,
           batch_size: 16, learning_rate: 0.01, head_learning_rate: 0.01, weight_decay: 0.01, warmup_fraction: 0.1,
           label_smoothing: 0.1, gradient_clip: 1.0, patience: 2}
signature: {components: 4, pca_dims: 8, weight_concentration: 0.1, scatter_rank: 16}
retrieval: {rule: pooled, prediction: hard}
shortlist: {epsilon: 0.1, cap: 2, early_margin: 5.0, early_p: 0.2, temperature: 1.0}
gates: {min_accuracy_final: 0.0, min_retrieval_accuracy: 0.0, max_forgetting: 1.0, max_accuracy_drop: 1.0,
        max_retrieval_drop: 1.0}
stream:
  tasks:
    digits: {folder: images, previous: base}
"""
STREAM = """
description: Nine digits in three tasks, and one task in another style.
train_images: 200
tasks:
  digits: {source: digits, parts: 3, half: 1}
  negative: {source: digits, half: 2, style: negative}
"""


def digits_zip(path: Path, per_class: int = 30) -> None:
    """Nine digits, a third of each for testing, as <split>/<class>/<number>.png."""
    digits = load_digits()
    with zipfile.ZipFile(path, "w") as archive:
        for digit in range(9):
            for number, row in enumerate(np.flatnonzero(digits.target == digit)[:per_class]):
                buffer = io.BytesIO()
                Image.fromarray((digits.images[row] * 15).astype(np.uint8)).save(buffer, "PNG")
                split = "test" if number % 3 == 0 else "train"
                archive.writestr(f"{split}/digit {digit}/{number:03}.png", buffer.getvalue())


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a converted backbone, a data folder with a zip, and a declared stream; nothing is built."""
    root = tmp_path_factory.mktemp("laboratory")
    torch.manual_seed(0)
    model = create_model("test_vit", pretrained=False, num_classes=0, img_size=32)
    write_arrays(root / "tiny.safetensors", {name: value.numpy() for name, value in model.state_dict().items()})
    write_text(root / "params.yaml", PARAMS)
    convert(root, load_config(root / "params.yaml"))
    write_text(root / "small.yaml", STREAM)
    (root / "zips").mkdir()
    digits_zip(root / "zips" / "digits.zip")
    return root


@pytest.fixture(scope="session")
def lab_config(project: Path) -> Config:
    """The project's configuration."""
    return load_config(project / "params.yaml")


@pytest.fixture(scope="session")
def laboratory(project: Path, lab_config: Config) -> Laboratory:
    """A laboratory whose work is shared by the tests."""
    return Laboratory(project, project / "lab", (project / "zips",), lab_config)


@pytest.fixture(scope="session")
def lab_stream(laboratory: Laboratory, project: Path) -> PreparedStream:
    """The small stream, built and embedded."""
    return PreparedStream(laboratory, load_stream(str(project / "small.yaml")), Caps())


@pytest.fixture(scope="session")
def sequence(lab_stream: PreparedStream) -> TaskSequence:
    """Seed 0, declared order."""
    return make_task_sequence(lab_stream.table, lab_stream.embedded, 0, 0, Caps())
