"""Delete the images of an archived task, and what was computed of each: a licence, a privacy request, a full disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from components.config import Config
from components.data.image_folder import walk_images
from components.data.task_data import manifest_path, read_manifest
from components.io import read_table
from flows.tasks.preflight import FETCHED


@dataclass(frozen=True)
class Deleted:
    """What was deleted.

    Attributes:
        images: number of files.
        cached: number of files of the trunk cache.
        kept: folder whose images stayed -> why, and what to do.
    """

    images: int
    cached: int
    kept: Mapping[str, str]


def delete_images(root: Path, config: Config, task: str) -> Deleted:
    """Delete images, cached trunk outputs, reports and manifests of an archived task; what it left stays.

    The manifests go last: they name the images for a command that is run again after a kill.

    Args:
        root: the project's folder.
        config: of the project; the task is archived in it.
        task: its name.
    """
    generations = config.generations(task)
    cached = _delete_cached(root, config, task)
    images, kept = 0, dict[str, str]()
    for folder in (config.task(task).folder, *(config.updates[name].folder for name in generations[1:])):
        if reason := _why_kept(root, config, folder):
            kept[folder] = reason
        else:
            images += _delete_folder(root / folder)
            if (root / folder).exists():
                kept[folder] = "its images are deleted; other files in it stay"
    for suffix in ("json", "csv"):
        (root / "reports" / "finetune" / f"{task}.{suffix}").unlink(missing_ok=True)
    shutil.rmtree(root / "reports" / "validation" / task, ignore_errors=True)
    for generation in generations:
        manifest_path(root, generation).unlink(missing_ok=True)
    return Deleted(images, cached, kept)


def _why_kept(root: Path, config: Config, name: str) -> str:
    """Say why a folder may not be emptied; "" where it may."""
    folder = (root / name).resolve()
    if not folder.exists():
        return ""
    if folder.is_relative_to((root / FETCHED).resolve()):
        return "it stays: the stage `fetch` would write it again; remove its name from fetch.tasks first"
    if not folder.is_relative_to(root.resolve()):
        return f"it lies outside of the project and stays; you may delete it: `rm -r {folder}`"
    live = {task: entry.folder for task, entry in config.stream.tasks.items()}
    live |= {update: entry.folder for update, entry in config.stream.updates.items()}
    for other, used in live.items():
        theirs = (root / used).resolve()
        if theirs.is_relative_to(folder) or folder.is_relative_to(theirs):
            return f"it stays: {other} has its images there too; archive {other} as well"
    return ""


def _delete_folder(folder: Path) -> int:
    """Delete the images of a folder and the folders that become empty; return the number of images."""
    if not folder.exists():
        return 0
    count = 0
    for path in list(walk_images(folder)):
        path.unlink()
        count += 1
    inside = sorted((path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()), reverse=True)
    for path in (*inside, folder.resolve()):
        if not any(path.iterdir()):
            path.rmdir()
    return count


def _delete_cached(root: Path, config: Config, task: str) -> int:
    """Delete the segments of the trunk cache that hold images of a task; return their number."""
    digests = set[str]()
    for generation in config.generations(task):
        if manifest_path(root, generation).is_file():
            digests |= set(read_manifest(root, generation)["sha256"])
    index = root / "data" / "index" / f"{task}.parquet"
    if index.is_file():
        known = read_table(index)
        digests |= set(known[known["task"] == task]["sha256"])
    from components.vision.trunk_cache import TrunkCache  # imports torch, which takes seconds

    return TrunkCache.of(root, config.cache).forget(digests)
