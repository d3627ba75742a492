"""A tiny project of real stages: two tasks and a vision transformer small enough to learn them in seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from components.io import write_arrays
from components.vision.timm_import import create_model

REPOSITORY = Path(__file__).parents[2]
PARAMS = """
seed: 0
device: cpu
fetch: {tasks: [pixels], images_per_class: 24}
data: {val_fraction: 0.2, test_fraction: 0.25, max_pixels: 1000000, max_bytes: 1000000, min_side: 8,
       min_images_per_class: 8, max_class_ratio: 20.0}
backbone: {model: test_vit, weights: tiny.safetensors, sha256: null, image_size: 32, depth: 4, adapted_blocks: 2}
embedding: {depths: [2, 4], shared: pixels}
finetune: {rank: 3, past_budget: 12, max_rank: 6, l1: 0.0001, l2: 0.0001, reuse_threshold: 0.001, epochs: 3,
           batch_size: 16, learning_rate: 0.01, head_learning_rate: 0.01, weight_decay: 0.01, warmup_fraction: 0.1,
           label_smoothing: 0.1, gradient_clip: 1.0, patience: 2}
signature: {components: 4, pca_dims: 8, weight_concentration: 0.1, scatter_rank: 32}
retrieval: {rule: pooled, prediction: hard}
shortlist: {epsilon: 0.1, cap: 2, early_margin: 5.0, early_p: 0.2, temperature: 10.0}
gates: {min_accuracy_final: 0.2, min_retrieval_accuracy: 0.5, max_forgetting: 0.5, max_accuracy_drop: 0.5,
        max_retrieval_drop: 0.5}
stream:
  tasks:
    pixels: {folder: data/raw/pixels, previous: base}  # real 8x8 digits, the default stream's own source
    photos: {folder: photos, previous: pixels}
"""


@dataclass(frozen=True)
class Terminal:
    """A terminal in the project's folder."""

    root: Path

    def types(self, *arguments: str, status: int = 0) -> str:
        """Run `intaglio ...` and return what the terminal shows; fail unless it ends with `status`."""
        done = self._run([sys.executable, "-c", "from flows.cli import main; main()", *arguments])
        shown = done.stdout + done.stderr
        assert done.returncode == status, shown
        assert "Traceback" not in shown
        return shown

    def dvc(self, *arguments: str) -> str:
        """Run `dvc ...`, which has to succeed, and return what it prints."""
        done = self._run([sys.executable, "-m", "dvc", *arguments])
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = users_environment() | {"PATH": path, "COLUMNS": "200"}
        return subprocess.run(command, cwd=self.root, env=env, capture_output=True, text=True, check=False, timeout=280)


def users_environment() -> dict[str, str]:
    """Return the environment without the tests' own settings of Prefect."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}


def lay_out_tiny_project(root: Path) -> None:
    """Write a project of the tasks `pixels` and `photos` into a new folder; nothing in it has run."""
    root.mkdir(parents=True)
    for name in ("components", "flows"):
        (root / name).symlink_to(REPOSITORY / name)
    for name in ("dvc.yaml", ".dvcignore", "prefect.toml"):
        shutil.copy(REPOSITORY / name, root)
    (root / "params.yaml").write_text(PARAMS)
    temple, flower = load_sample_images().images
    cut_squares(temple, root / "photos/temple", 24, seed=1)
    cut_squares(flower, root / "photos/flower", 24, seed=2)
    model = create_model("test_vit", pretrained=False, num_classes=0, img_size=32)
    write_arrays(root / "tiny.safetensors", {name: value.numpy() for name, value in model.state_dict().items()})
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, check=True)


def cut_squares(photograph: np.ndarray, folder: Path, count: int, seed: int) -> None:
    """Write `count` squares of 64 pixels, cut at random from a photograph (height, width, 3), as PNG files."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        row, column = random.integers(0, photograph.shape[0] - 64), random.integers(0, photograph.shape[1] - 64)
        Image.fromarray(photograph[row : row + 64, column : column + 64]).save(folder / f"{number}.png")


def write_negative_digits(folders: Mapping[int, Path]) -> None:
    """Write 24 handwritten digits of each kind, white on black turned into black on white, into a folder of its own."""
    digits = load_digits()
    for digit, folder in folders.items():
        folder.mkdir(parents=True)
        for number in np.flatnonzero(digits.target == digit)[100:124]:
            pixels = 255 - (digits.images[number] * 15).astype(np.uint8)
            Image.fromarray(pixels).resize((24, 24)).save(folder / f"{number}.png")
