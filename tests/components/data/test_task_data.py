"""From a manifest's rows to files, digests and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from folder_shapes import build

from components.config import Config, Stream, Task
from components.data.manifest import ingest
from components.data.task_data import SPLITS, TaskData, manifest_path, read_manifest, split_of
from components.errors import IntaglioError
from components.io import sha256_file, write_table
from components.params import load_config

ROWS = [  # path, label, split, sha256, readable
    ("train/cat/1.png", "cat", "train", "a1", True),
    ("train/cat/2.png", "cat", "train", "a2", False),
    ("train/owl/1.png", "owl", "train", "a3", True),
    ("train/ant/1.png", "ant", "train", "a4", True),
    ("val/owl/1.png", "owl", "val", "a5", True),
    ("val/cat/1.png", "cat", "val", "a6", True),
]


@pytest.fixture
def config() -> Config:
    config = load_config(Path(__file__).parents[3] / "params.yaml")
    return config.model_copy(update={"stream": Stream(tasks={"pets": Task(folder="my/pets", previous="base")})})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with the manifest of ROWS."""
    table = pd.DataFrame(ROWS, columns=["path", "label", "split", "sha256", "readable"])
    write_table(manifest_path(tmp_path, "pets"), table)
    return tmp_path


def test_readable_images_of_a_split_in_the_manifest_s_order(root: Path, config: Config) -> None:
    train = TaskData.read(root, config, "pets", "train")
    assert train.names == ("train/cat/1.png", "train/owl/1.png", "train/ant/1.png")
    assert train.paths == tuple(root / "my/pets" / name for name in train.names)
    assert train.digests == ("a1", "a3", "a4")
    assert len(train) == 3


def test_a_label_is_a_place_among_all_classes_of_the_task(root: Path, config: Config) -> None:
    train, val, test = (TaskData.read(root, config, "pets", split) for split in SPLITS)
    assert train.classes == val.classes == test.classes == ("ant", "cat", "owl")
    assert (train.labels.tolist(), val.labels.tolist(), test.labels.tolist()) == ([1, 2, 0], [2, 1], [])
    assert train.labels.dtype == test.labels.dtype == np.int64


def test_rows_are_taken_in_the_order_asked_for(root: Path, config: Config) -> None:
    taken = TaskData.read(root, config, "pets", "train").take(np.array([2, 0]))
    assert taken.names == ("train/ant/1.png", "train/cat/1.png")
    assert (taken.digests, taken.labels.tolist()) == (("a4", "a1"), [0, 1])
    assert (taken.task, taken.classes, len(taken)) == ("pets", ("ant", "cat", "owl"), 2)
    assert [path.name for path in taken.paths] == ["1.png", "1.png"]


def test_what_ingest_wrote_leads_to_the_files_that_it_read(tmp_path: Path, config: Config) -> None:
    folder = build(tmp_path / "elsewhere" / "pets", [f"{label}/{n}.png" for label in "ab" for n in range(20)])
    away = config.model_copy(update={"stream": Stream(tasks={"pets": Task(folder=str(folder), previous="base")})})
    ingest(tmp_path, away, "pets")
    manifest = read_manifest(tmp_path, "pets")
    write_table(manifest_path(tmp_path, "pets"), manifest.assign(readable=True))  # the files hold no images
    splits = [TaskData.read(tmp_path, away, "pets", split) for split in SPLITS]
    assert sum(map(len, splits)) == len(manifest) == 40
    for data in splits:
        assert [sha256_file(path) for path in data.paths] == list(data.digests)
        assert [path.parent.name for path in data.paths] == [data.classes[label] for label in data.labels]


def test_an_unknown_split_lists_the_known_ones() -> None:
    with pytest.raises(IntaglioError, match="split 'valid' does not exist; known: train, val, test"):
        split_of(pd.DataFrame(), "valid")


def test_a_missing_manifest_names_the_file(tmp_path: Path, config: Config) -> None:
    with pytest.raises(IntaglioError, match=r"pets.parquet: file not found"):
        TaskData.read(tmp_path, config, "pets", "train")
