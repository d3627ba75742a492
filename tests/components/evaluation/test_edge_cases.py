"""Tasks at the edge of what is allowed, from the folder to the signature: a good module, or one clear line early."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from components.config import Config, Stream, Task
from components.data.expectations import INDEX_COLUMNS
from components.data.manifest import ingest
from components.data.validate import validate
from components.errors import IntaglioError
from components.evaluation.evaluate import evaluate
from components.io import read_json, write_table
from components.records.record import record
from components.signatures.fit import fit_signature
from components.signatures.storage import read_signature
from components.training.finetune import finetune


@dataclass
class Bench:
    """A project with the tiny backbone and no task yet."""

    root: Path
    config: Config

    def images(self, per_split: Mapping[str, int], classes: int, size: tuple[int, int] = (16, 16)) -> None:
        """Write a folder `odd` of noisy colour patterns, one pattern a class."""
        random = np.random.default_rng(0)
        for split, count in per_split.items():
            for label in range(classes):
                folder = self.root / "images" / "odd" / split / f"class_{label:05d}"
                folder.mkdir(parents=True)
                pattern = np.random.default_rng(label).integers(0, 256, (4, 4, 3))
                for number in range(count):
                    pixels = np.clip(pattern + random.integers(-30, 31, (4, 4, 3)), 0, 255).astype(np.uint8)
                    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(folder / f"{number}.png")

    def learn(self) -> None:
        """All stages of the task, as `dvc repro` would run them."""
        for stage in (ingest, validate, finetune, fit_signature, record):
            stage(self.root, self.config, "odd")

    def setting(self, section: str, **values: Any) -> None:
        """Change settings of one section."""
        changed = getattr(self.config, section).model_copy(update=values)
        self.config = self.config.model_copy(update={section: changed})

    def check_good(self, classes: int) -> None:
        """The patterns are easy: whoever learned anything tells them apart."""
        assert read_json(self.root / "reports/finetune/odd.json")["val_accuracy"] > 0.9
        assert len(read_signature(self.root / "models/signatures", "odd").classes) == classes


@pytest.fixture
def bench(stream_template: Path, config: Config, tmp_path: Path) -> Bench:
    root = tmp_path / "project"
    shutil.copytree(stream_template / "models", root / "models")
    write_table(root / "data/index/base.parquet", pd.DataFrame(columns=list(INDEX_COLUMNS), dtype=object))
    alone = Stream(tasks={"odd": Task(folder="images/odd", previous="base")})
    few = config.data.model_copy(update={"min_images_per_class": 3, "max_pixels": 30_000_000})
    return Bench(root, config.model_copy(update={"stream": alone, "data": few}))


@pytest.mark.parametrize("per_split", [{"train": 2, "val": 2, "test": 2}, {"train": 1, "val": 1, "test": 1}])
def test_two_images_a_class_and_one_image_a_split_are_enough(bench: Bench, per_split: dict[str, int]) -> None:
    bench.images(per_split, classes=3)
    bench.learn()
    bench.check_good(classes=3)


def test_images_of_8_by_8(bench: Bench) -> None:
    bench.images({"": 12}, classes=2, size=(8, 8))
    bench.learn()
    bench.check_good(classes=2)


def test_images_of_6000_by_4000(bench: Bench) -> None:
    bench.images({"train": 2, "val": 1, "test": 1}, classes=2)
    for path in bench.root.glob("images/odd/train/*/0.png"):
        large = Image.open(path).resize((6000, 4000), Image.Resampling.NEAREST)
        large.save(path.with_suffix(".jpg"))
        path.unlink()
    bench.learn()
    bench.check_good(classes=2)


def test_many_classes_of_few_images(bench: Bench) -> None:
    """INTAGLIO_CLASSES=10000 pytest -s -k many_classes --timeout 3600 is the long form: ten minutes, 3 GB."""
    classes = int(os.environ.get("INTAGLIO_CLASSES", "150"))
    bench.images({"train": 2, "val": 1, "test": 1}, classes)
    bench.learn()
    evaluate(bench.root, bench.config)
    assert len(read_signature(bench.root / "models/signatures", "odd").classes) == classes
    assert read_json(bench.root / "reports/metrics.json")["accuracy_final"] > 0.5


def test_one_class_is_enough(bench: Bench) -> None:
    bench.images({"": 12}, classes=1)
    bench.learn()
    evaluate(bench.root, bench.config)
    assert read_json(bench.root / "reports/metrics.json")["accuracy_final"] == 1.0


def test_a_class_without_validation_images_is_refused(bench: Bench) -> None:
    bench.images({"train": 4, "test": 2, "val": 2}, classes=2)
    shutil.rmtree(bench.root / "images/odd/val/class_00001")
    with pytest.raises(IntaglioError, match="1 class without a readable image in val: class_00001; add images"):
        bench.learn()


def test_a_loss_that_is_not_finite_stops_in_the_middle_of_the_epoch(bench: Bench) -> None:
    bench.images({"": 60}, classes=4)
    bench.setting("finetune", learning_rate=1e15, batch_size=8)
    with pytest.raises(IntaglioError, match=r"not finite in epoch 1, step \d of 48; lower finetune.learning_rate"):
        bench.learn()
    assert not (bench.root / "models/modules/odd").exists()


def test_a_training_that_diverges_is_no_module(bench: Bench) -> None:
    bench.images({"": 30}, classes=4)
    bench.setting("finetune", learning_rate=10.0, head_learning_rate=10.0, epochs=6)
    with pytest.raises(
        IntaglioError, match=r"'odd': training diverged: after \d epochs the loss is .* a guess has 1.39"
    ):
        bench.learn()
    assert not (bench.root / "models/modules/odd").exists()


def test_labels_that_mean_nothing_are_still_a_module(bench: Bench) -> None:
    random = np.random.default_rng(0)
    for label in range(3):
        folder = bench.root / "images/odd" / str(label)
        folder.mkdir(parents=True)
        for number in range(12):
            Image.fromarray(random.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(folder / f"{number}.png")
    bench.learn()
    assert len(read_signature(bench.root / "models/signatures", "odd").classes) == 3
