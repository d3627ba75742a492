"""The whole product on a tiny real stream: real stages, DVC, Prefect, MLflow, and the command line a person types."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from synthetic import REPOSITORY, run

from components.io import sha256_file, write_arrays
from components.vision.timm_import import create_model

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
# The first task alone costs five stages; every further one four.
FIRST_RUN = ["backbone", "fetch", *(f"{s}@{t}" for t in ("pixels", "photos") for s in ("ingest", "validate"))]


@dataclass(frozen=True)
class Person:
    """Somebody at a terminal in the project's folder."""

    root: Path

    def types(self, *arguments: str, status: int = 0) -> str:
        """Run `intaglio ...`; returns what the terminal shows."""
        done = self._run([sys.executable, "-c", "from flows.cli.app import main; main()", *arguments])
        shown = done.stdout + done.stderr
        assert done.returncode == status, shown
        assert "Traceback" not in shown
        return shown

    def dvc(self, *arguments: str) -> str:
        done = self._run([sys.executable, "-m", "dvc", *arguments])
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "COLUMNS": "200"}
        env = {name: value for name, value in env.items() if not name.startswith("PREFECT_")}
        return subprocess.run(command, cwd=self.root, env=env, capture_output=True, text=True, check=False, timeout=280)


def crops(image: np.ndarray, folder: Path, count: int, seed: int) -> None:
    """Small squares of a real photograph."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        row, column = random.integers(0, image.shape[0] - 64), random.integers(0, image.shape[1] - 64)
        Image.fromarray(image[row : row + 64, column : column + 64]).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    """A project in which `intaglio run` has succeeded once."""
    root = tmp_path_factory.mktemp("product") / "project"
    root.mkdir()
    for name in ("components", "flows"):
        (root / name).symlink_to(REPOSITORY / name)
    for name in ("dvc.yaml", ".dvcignore", "prefect.toml"):
        shutil.copy(REPOSITORY / name, root)
    (root / "params.yaml").write_text(PARAMS)
    china, flower = load_sample_images().images
    crops(china, root / "photos/temple", 24, seed=1)
    crops(flower, root / "photos/flower", 24, seed=2)
    model = create_model("test_vit", pretrained=False, num_classes=0, img_size=32)
    write_arrays(root / "tiny.safetensors", {name: value.numpy() for name, value in model.state_dict().items()})
    run(["git", "init", "-q"], root)
    run([sys.executable, "-m", "dvc", "init", "-q"], root)
    found = Person(root)
    shown = found.types("run")
    for stage in (*FIRST_RUN, "finetune@photos", "signature@photos", "evaluate", "report", "bundle"):
        assert stage in shown
    assert "champion" in shown
    yield found
    shutil.rmtree(root)


def artefacts(root: Path) -> dict[str, str]:
    folders = [root / "models/modules", root / "models/signatures", root / "data/manifests"]
    return {
        str(path.relative_to(root)): sha256_file(path)
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".gitignore"
    }


def test_all_that_was_promised_is_there(person: Person) -> None:
    for name in (
        "reports/metrics.json",
        "reports/predictions.parquet",
        "reports/report.html",
        "reports/validation/photos/result.json",
        "reports/validation/photos/docs",
        "models/backbone/backbone.safetensors",
        "models/modules/photos/adapter/adapter_model.safetensors",
        "models/signatures/photos/centroids.safetensors",
        "models/bundle/bundle.json",
        "mlruns/mlflow.db",
    ):
        assert (person.root / name).exists(), name
    metrics = json.loads((person.root / "reports/metrics.json").read_text())
    assert metrics["retrieval_accuracy"] > 0.9  # photographs and digits are easily told apart
    assert metrics["accuracy_final"] > 0.3


def test_a_second_run_executes_nothing_and_so_does_dvc(person: Person) -> None:
    before = artefacts(person.root)
    shown = person.types("run")
    assert "finetune" not in shown
    assert "Data and pipelines are up to date" in person.dvc("repro") + person.dvc("status")
    assert artefacts(person.root) == before


def test_dvc_shows_the_pipeline(person: Person) -> None:
    assert "finetune@photos" in person.dvc("dag")
    assert "accuracy_final" in person.dvc("metrics", "show")
    assert "told from its nearest task" in person.types("certificate")
    assert person.dvc("plots", "show", "-o", "plots").strip().endswith("index.html")
    shutil.rmtree(person.root / "plots")


def test_predictions_from_the_command_line(person: Person, tmp_path: Path) -> None:
    good = next((person.root / "photos/temple").iterdir())
    shutil.copy(good, tmp_path / "good.png")
    (tmp_path / "text.png").write_text("not an image")
    Image.open(good).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:400])
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    Image.open(good).convert("CMYK").save(tmp_path / "cmyk.jpg")
    frames = [Image.open(good), Image.new("RGB", (64, 64))]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    shown = person.types("predict", str(tmp_path), "--json", "--top", "2", status=1)
    lines = [json.loads(line) for line in shown.splitlines() if line.startswith("{")]
    found = {Path(line["path"]).name: line for line in lines}
    assert len(found) == 7
    assert {name for name, line in found.items() if line.get("error")} == {"text.png", "cut.jpg", "dot.png"}
    for name in ("good.png", "whole.jpg", "cmyk.jpg", "moving.gif"):
        assert found[name]["task"] == "photos"
    bundle = person.types("predict", str(good), "--json", "--bundle", str(person.root / "models/bundle"))
    champion = person.types("predict", str(good), "--json")
    assert json.loads(bundle)["label"] == json.loads(champion)["label"]


def test_the_registered_model_loads_by_its_alias(person: Person) -> None:
    """In a process of its own, with pickles forbidden: paths, bytes, base64 text and arrays, and one bad row."""
    good = next((person.root / "photos/temple").iterdir())
    code = f"""
import base64, mlflow, pandas as pd, numpy as np
from PIL import Image
mlflow.set_tracking_uri("sqlite:///mlruns/mlflow.db")
model = mlflow.pyfunc.load_model("models:/intaglio@champion")
data = open({str(good)!r}, "rb").read()
rows = [{str(good)!r}, data, base64.b64encode(data).decode(), np.asarray(Image.open({str(good)!r}))]
print(model.predict(pd.DataFrame({{"image": rows + [b"rubbish"]}})).to_json(orient="records"))
"""
    env = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=person.root, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert {row["task"] for row in rows[:4]} == {"photos"}
    assert len({row["label"] for row in rows[:4]}) == 1
    assert rows[4]["error"]
    assert rows[4]["task"] is None


def test_an_own_task_runs_only_its_stages_and_changes_nothing_before(person: Person, tmp_path: Path) -> None:
    before = artefacts(person.root)
    digits = load_digits()
    for digit in (0, 1):
        folder = tmp_path / f"negative_{digit}"
        folder.mkdir()
        for number in np.flatnonzero(digits.target == digit)[100:124]:
            pixels = 255 - (digits.images[number] * 15).astype(np.uint8)
            Image.fromarray(pixels).resize((24, 24)).save(folder / f"{number}.png")
    person.types("task", "add", "negatives", str(tmp_path))
    shown = person.types("run")
    assert "finetune@negatives" in shown
    for stage in ("finetune@pixels", "ingest@photos", "finetune@photos", "signature@photos", "backbone", "fetch"):
        assert f"{stage} " not in shown.replace("up to date", "")
    after = artefacts(person.root)
    assert {name: digest for name, digest in after.items() if name in before} == before
    assert any("negatives" in name for name in after)
    assert "finetune" not in person.types("run")
    manifest = pd.read_parquet(person.root / "data/manifests/negatives.parquet")
    assert set(manifest["split"]) == {"train", "val", "test"}


def test_an_image_of_an_earlier_task_stops_the_new_one(person: Person, tmp_path: Path) -> None:
    params = (person.root / "params.yaml").read_text()
    shutil.copytree(person.root / "photos", tmp_path / "again")
    before = artefacts(person.root)
    try:
        person.types("task", "add", "again", str(tmp_path / "again"))
        shown = person.types("run", status=1)
        assert "photos" in shown
        assert ".png" in shown
        assert "finetune@again" in shown  # named as not started
        after = artefacts(person.root)
        assert {name: digest for name, digest in after.items() if name in before} == before
        assert not (person.root / "models/modules/again").exists()
    finally:
        (person.root / "params.yaml").write_text(params)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("rank: 3", "rnak: 3", "finetune.rnak: unknown key"),
        ("rank: 3", "rank: three", "finetune.rank: input should be a valid integer"),
        ("    photos: {", "    pixels: {", "duplicate key"),
        ("previous: pixels", "previous: nowhere", "nowhere"),
    ],
)
def test_a_broken_file_of_parameters_is_one_clear_line(person: Person, old: str, new: str, expected: str) -> None:
    path = person.root / "params.yaml"
    params = path.read_text()
    assert old in params
    try:
        path.write_text(params.replace(old, new, 1))
        shown = person.types("run", status=1)
        assert expected in shown
        assert shown.count("error:") <= 2
    finally:
        path.write_text(params)
