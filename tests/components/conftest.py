"""A tiny ViT with random weights, and a small real stream (8x8 digits) with manifests, for the science."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from components.config import Config
from components.data.expectations import INDEX_COLUMNS
from components.data.manifest import ingest
from components.data.task_data import read_manifest
from components.io import write_arrays, write_json, write_table, write_text
from components.params import load_config
from components.vision.backbone import Vit, load_vit
from components.vision.pretrained import convert
from components.vision.timm_import import create_model

PARAMS = """
seed: 0
device: cpu
fetch: {tasks: [], images_per_class: 10}
data: {val_fraction: 0.2, test_fraction: 0.25, max_pixels: 1000000, max_bytes: 1000000, min_side: 8,
       min_images_per_class: 8, max_class_ratio: 20.0}
backbone: {model: test_vit, weights: tiny.safetensors, sha256: null, image_size: 32, depth: 4, adapted_blocks: 2}
embedding: {depths: [2, 4], shared: base}
finetune: {rank: 3, past_budget: 12, max_rank: 12, l1: 0.0001, l2: 0.0001, reuse_threshold: 0.001, epochs: 3,
           batch_size: 16, learning_rate: 0.01, head_learning_rate: 0.01, weight_decay: 0.01, warmup_fraction: 0.1,
           label_smoothing: 0.1, gradient_clip: 1.0, patience: 2, views: 2, patch_dropout: 0.5,
           validate_every: 2, precision: float32}
signature: {components: 4, pca_dims: 8, weight_concentration: 0.1, scatter_rank: 32}
retrieval: {rule: pooled, prediction: hard}
shortlist: {epsilon: 0.1, cap: 2, early_margin: 5.0, early_p: 0.2, temperature: 10.0}
gates: {min_accuracy_final: 0.0, min_retrieval_accuracy: 0.0, max_forgetting: 1.0, max_accuracy_drop: 1.0,
        max_retrieval_drop: 1.0}
stream:
  tasks:
    low: {folder: images/low, previous: base}
    middle: {folder: images/middle, previous: low}
    high: {folder: images/high, previous: middle}
"""
DIGITS = {"low": (0, 1, 2), "middle": (3, 4, 5), "high": (6, 7)}


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of timm's smallest ViT."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    model = create_model("test_vit", pretrained=False, num_classes=0, img_size=32)
    write_arrays(path, {name: value.numpy() for name, value in model.state_dict().items()})
    return path


@pytest.fixture(scope="session")
def stream_template(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with images, manifests and the converted backbone; no task is learned yet."""
    root = tmp_path_factory.mktemp("stream")
    shutil.copy(tiny_weights, root / "tiny.safetensors")
    write_text(root / "params.yaml", PARAMS)
    digits = load_digits()
    for task, classes in DIGITS.items():
        for digit in classes:
            folder = root / "images" / task / f"digit_{digit}"
            folder.mkdir(parents=True)
            for number in np.flatnonzero(digits.target == digit)[:40]:
                pixels = (digits.images[number] * 15).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    config = load_config(root / "params.yaml")
    for task in config.tasks:
        ingest(root, config, task)
    convert(root, config)
    return root


@pytest.fixture(scope="session")
def learned_template(stream_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder after every task is learned, evaluated and bundled."""
    from components.evaluation.evaluate import evaluate
    from components.inference.bundle import write_bundle
    from components.records.record import record
    from components.signatures.fit import fit_signature
    from components.training.finetune import finetune

    root = tmp_path_factory.mktemp("learned") / "project"
    shutil.copytree(stream_template, root)
    config = load_config(root / "params.yaml")
    index = pd.DataFrame(columns=list(INDEX_COLUMNS), dtype=object)
    for task in config.tasks:
        index = pd.concat([index, read_manifest(root, task).assign(task=task)[list(INDEX_COLUMNS)]])
        write_table(root / f"data/index/{task}.parquet", index)
        finetune(root, config, task)
        fit_signature(root, config, task)
        write_json(root / "reports/validation" / task / "result.json", {"success": True, "expectations": []})
        record(root, config, task)
    evaluate(root, config)
    write_bundle(root, config)
    return root


@pytest.fixture
def stream(stream_template: Path, tmp_path: Path) -> Path:
    """A copy of the unlearned project that the test may change."""
    shutil.copytree(stream_template, tmp_path / "stream")
    return tmp_path / "stream"


@pytest.fixture
def learned(learned_template: Path, tmp_path: Path) -> Path:
    """A copy of the learned project that the test may change."""
    shutil.copytree(learned_template, tmp_path / "learned")
    return tmp_path / "learned"


@pytest.fixture(scope="session")
def config(stream_template: Path) -> Config:
    """The small stream's configuration."""
    return load_config(stream_template / "params.yaml")


@pytest.fixture
def vit(stream_template: Path, config: Config) -> Vit:
    """A fresh copy of the tiny backbone."""
    cpu = torch.device("cpu")
    return load_vit(stream_template / "models/backbone", config.backbone, config.embedding.depths, cpu)
