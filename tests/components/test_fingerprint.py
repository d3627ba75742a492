"""What a change of the code touches: results that depend on it, and no others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic import REPOSITORY

# In a process of its own: a process sees the code as it was when it began.
EXPERIMENT = "from components.fingerprint import code_fingerprint as f; print(f('components.lab.experiment'))"
KEEP = """
from pathlib import Path
import numpy as np
from components.training.checkpoint import Checkpoint, Checkpoints
checkpoints = Checkpoints.open(Path("kept"), "letters", {"seed": 0}, "components.training.finetune")
checkpoints.keep(Checkpoint(7, {"weight": np.ones(3, dtype=np.float32)}, {}))
"""
FIND = """
from pathlib import Path
from components.training.checkpoint import Checkpoints
found = Checkpoints.open(Path("kept"), "letters", {"seed": 0}, "components.training.finetune").newest()
print(found and found.step)
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package that a test may change."""
    shutil.copytree(REPOSITORY / "components", tmp_path / "components", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def python(root: Path, code: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def change(root: Path, file: str) -> None:
    with (root / "components" / file).open("a") as lines:
        lines.write("\n_CHANGED = True\n")


@pytest.mark.parametrize(
    "file",
    ["training/loop.py", "training/cuda_graph.py", "data/augment.py", "modules/multi_module_vit.py", "lab/rivals.py"],
)
def test_an_experiment_of_other_code_is_another_experiment(copy: Path, file: str) -> None:
    before = python(copy, EXPERIMENT)
    assert python(copy, EXPERIMENT) == before
    change(copy, file)
    assert python(copy, EXPERIMENT) != before


def test_a_changed_chart_discards_no_checkpoint_and_is_no_other_experiment(copy: Path) -> None:
    before = python(copy, EXPERIMENT)
    python(copy, KEEP)
    for file in ("report/charts.py", "report/report.py", "lab/figures.py"):
        change(copy, file)
    assert python(copy, FIND) == "7"
    assert python(copy, EXPERIMENT) == before


def test_a_changed_training_loop_discards_its_checkpoints(copy: Path) -> None:
    python(copy, KEEP)
    change(copy, "training/loop.py")
    assert python(copy, FIND) == "None"
