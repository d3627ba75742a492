"""A tiny real project for the crash tests, and what of it must be equal however often it was killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from ruamel.yaml import YAML
from sklearn.datasets import load_sample_images

from components.io import sha256_bytes, sha256_file

REPOSITORY = Path(__file__).parents[2]
TASKS = ("pixels", "photos")
SETTINGS = {
    "device": "cpu",
    "fetch": {"tasks": ["pixels"], "images_per_class": 10},
    "data": {"val_fraction": 0.2, "test_fraction": 0.25},
    "backbone": {
        "model": "test_vit",
        "weights": "tiny.safetensors",
        "sha256": None,
        "image_size": 32,
        "depth": 4,
        "adapted_blocks": 2,
    },
    "embedding": {"depths": [2, 4], "shared": "pixels"},
    "finetune": {"rank": 2, "past_budget": 8, "max_rank": 4, "epochs": 3, "batch_size": 16, "learning_rate": 0.01},
    "signature": {"components": 2, "pca_dims": 4},
    "gates": {"min_accuracy_final": 0.0, "min_retrieval_accuracy": 0.0, "max_forgetting": 1.0, "min_coverage": None},
}
# Written by tools for themselves, or full of times; everything else in the project must be equal.
IGNORED = (".dvc", ".git", ".intaglio", "mlruns", "dvc.lock", "components", "flows", "reports/report.html")
TIMES = ("seconds", "trunk_seconds", "images_per_second")


def make_project(root: Path) -> None:
    """A project of two tasks in which nothing has run: real 8x8 digits, and squares of two photographs."""
    root.mkdir(parents=True)
    for name in ("components", "flows"):
        (root / name).symlink_to(REPOSITORY / name)
    for name in ("dvc.yaml", ".dvcignore", "prefect.toml"):
        shutil.copy(REPOSITORY / name, root)
    yaml = YAML()
    params = yaml.load((REPOSITORY / "params.yaml").read_text())
    for section, values in SETTINGS.items():
        if isinstance(values, dict):
            params[section].update(values)
        else:
            params[section] = values
    params["stream"]["tasks"] = {
        "pixels": {"folder": "data/raw/pixels", "previous": "base"},
        "photos": {"folder": "photos", "previous": "pixels"},
    }
    with (root / "params.yaml").open("w") as file:
        yaml.dump(params, file)
    _write_photos(root / "photos")
    _write_weights(root / "tiny.safetensors")
    (root / ".gitignore").write_text(".intaglio/\nmlruns/\n")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, env=environment(root), check=True, capture_output=True)


def _write_photos(folder: Path) -> None:
    random = np.random.default_rng(1)
    for label, image in zip(("temple", "flower"), load_sample_images().images, strict=True):
        (folder / label).mkdir(parents=True)
        for number in range(10):
            row, column = random.integers(0, image.shape[0] - 48), random.integers(0, image.shape[1] - 48)
            Image.fromarray(image[row : row + 48, column : column + 48]).save(folder / label / f"{number}.png")


def _write_weights(path: Path) -> None:
    """Random weights of timm's smallest ViT, made in a process of its own: one that forks must not have used torch."""
    code = (
        "import sys, torch; from components.vision.timm_import import create_model; torch.manual_seed(0)\n"
        "from components.io import write_arrays; from pathlib import Path\n"
        "model = create_model('test_vit', pretrained=False, num_classes=0, img_size=32)\n"
        "write_arrays(Path(sys.argv[1]), {name: value.numpy() for name, value in model.state_dict().items()})"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], env=environment(path.parent), check=True)


def environment(root: Path) -> dict[str, str]:
    """For whatever runs in the project: nothing shared with other projects, and one thread each."""
    from flows.settings import quiet_environment

    mine = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {
        **mine,
        **quiet_environment(root),
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_SITE_CACHE_DIR": str(root / ".dvc" / "site"),
        "OMP_NUM_THREADS": "1",
        "INTAGLIO_CHECKPOINT_SECONDS": "0",  # after every step
    }


def artefacts(root: Path) -> dict[str, str]:
    """sha256 of every file that a run leaves in the project, without the times in the figures of training."""
    return {name: _digest(root, name) for name in sorted(_names(root, ""))}


def _names(root: Path, below: str) -> Iterator[str]:
    """Paths of the files in a folder, without looking into what is ignored: DVC's cache has most of all files."""
    for entry in os.scandir(root / below):
        name = f"{below}{entry.name}"
        if name.startswith(IGNORED):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _names(root, f"{name}/")
        else:
            yield name


def _digest(root: Path, name: str) -> str:
    if name.startswith("reports/finetune/") and name.endswith(".json"):
        figures = json.loads((root / name).read_text())
        return sha256_bytes(repr([(key, figures[key]) for key in sorted(figures) if key not in TIMES]).encode())
    return sha256_file(root / name)


def differences(root: Path, clean: dict[str, str]) -> list[str]:
    """The files that are not as after the clean run, by name."""
    found = artefacts(root)
    return sorted(name for name in found.keys() | clean.keys() if found.get(name) != clean.get(name))
