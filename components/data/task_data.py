"""A task's images for all that comes after `ingest`: files, digests and labels, read from its manifest here alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from components.arrays import Indices, Labels
from components.config import Config
from components.errors import IntaglioError
from components.io import read_table

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class TaskData:
    """The n readable images of one split of a task, sorted by path.

    Attributes:
        task: its name.
        classes: names of all classes of the task, sorted, whatever the split.
        names: the images' paths relative to the task's folder, posix.
        paths: their files.
        digests: their hex sha256.
        labels: (n,) int64, places among `classes`.
    """

    task: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    paths: tuple[Path, ...]
    digests: tuple[str, ...]
    labels: Labels

    @classmethod
    def read(cls, root: Path, config: Config, task: str, split: str) -> TaskData:
        """Read one split of a task's manifest.

        Args:
            root: the project's folder.
            config: knows the folder of the task.
            task: its name.
            split: train, val or test.

        Raises:
            IntaglioError: the manifest was not written yet or is damaged, or there is no such split.
        """
        return cls.of_manifest(read_manifest(root, task), task, root / config.task(task).folder, split)

    @classmethod
    def of_manifest(
        cls, manifest: pd.DataFrame, task: str, folder: Path, split: str, classes: tuple[str, ...] | None = None
    ) -> TaskData:
        """Read one split of a manifest.

        Args:
            manifest: of the images.
            task: that they belong to.
            folder: in which they lie.
            split: train, val or test.
            classes: of the task, where the manifest may have only some of them.

        Raises:
            IntaglioError: there is no such split.
        """
        rows = split_of(manifest, split)
        classes = classes or tuple(sorted(manifest["label"].unique()))
        label_of = {name: label for label, name in enumerate(classes)}
        names = tuple(rows["path"])
        labels = np.array([label_of[name] for name in rows["label"]], dtype=np.int64)
        return cls(task, classes, names, tuple(folder / name for name in names), tuple(rows["sha256"]), labels)

    def __len__(self) -> int:
        """Return the number n of images."""
        return len(self.names)

    def take(self, rows: Indices) -> TaskData:
        """Return the images in these rows, in their order."""
        names, paths, digests = (tuple(part[row] for row in rows) for part in (self.names, self.paths, self.digests))
        return replace(self, names=names, paths=paths, digests=digests, labels=self.labels[rows])


def image_folders(root: Path, config: Config, task: str) -> list[Path]:
    """Return the folders that a task's images came from: its own, and those of its updates.

    Args:
        root: the project's folder.
        config: knows the folders.
        task: its name.
    """
    updates = [update.folder for update in config.updates.values() if update.task == task]
    return [root / folder for folder in (config.task(task).folder, *updates)]


def manifest_path(root: Path, task: str) -> Path:
    """Return where the manifest of a task lies."""
    return root / "data" / "manifests" / f"{task}.parquet"


def read_manifest(root: Path, task: str) -> pd.DataFrame:
    """Read a task's manifest, sorted by path; components/data/manifest.py lists its columns.

    Raises:
        IntaglioError: it was not written yet, or is damaged.
    """
    return read_table(manifest_path(root, task))


def split_of(manifest: pd.DataFrame, split: str) -> pd.DataFrame:
    """Return the readable rows of one split, in the manifest's order.

    Raises:
        IntaglioError: there is no such split.
    """
    if split not in SPLITS:
        raise IntaglioError(f"split {split!r} does not exist; known: {', '.join(SPLITS)}")
    return manifest[(manifest["split"] == split) & manifest["readable"].astype(bool)].reset_index(drop=True)
