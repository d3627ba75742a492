"""A task's table of images: path, label, split, sha256, size, mode, and whether it can be read.

columns: path (posix, relative to the task's folder), label (the class folder's name), split (train|val|test),
sha256, bytes, width, height, mode, format, readable, error ("" where readable).
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from components.config import Config
from components.data.image_folder import ImageFolder, read_image_folder
from components.data.images import ImageFacts, Limits, probe
from components.data.task_data import SPLITS, manifest_path
from components.errors import IntaglioError, TransientError
from components.io import write_table

COLUMNS = ("path", "label", "split", "sha256", "bytes", "width", "height", "mode", "format", "readable", "error")
_PROGRESS = 1000  # images between two lines


def ingest(root: Path, config: Config, task: str) -> None:
    """Turn a task's folder into data/manifests/<task>.parquet.

    The folder is read by the rules of components/data/image_folder.py. What is missing of val and test is carved out of
    train. Unreadable images stay in the table; validation reports them.

    Args:
        root: the project's folder.
        config: knows the task's folder, the limits of an image, and the splits' fractions.
        task: its name in params.yaml.

    Raises:
        IntaglioError: an unknown task, or a folder that breaks a rule.
    """
    if task not in config.stream.tasks:
        raise IntaglioError(f"task {task!r} is not in params.yaml; known: {', '.join(config.stream.tasks)}")
    table = manifest_of(root / config.task(task).folder, config, f"ingest {task}")
    write_table(manifest_path(root, task), table)


def manifest_of(folder: Path, config: Config, what: str) -> pd.DataFrame:
    """Read a folder into the table of its images, sorted by path; this file's head lists the columns.

    Args:
        folder: of the images.
        config: knows the limits of an image, and the splits' fractions.
        what: name of the work, for its progress.

    Raises:
        IntaglioError: the folder breaks a rule.
        TransientError: its images changed meanwhile, so that DVC would record others than were read.
    """
    found = read_image_folder(folder)
    before = _stamps(folder, found)
    print(f"{what}: {found.summary} in {folder}", flush=True)
    facts = _probe_all(what, [folder / image.path for image in found.images], Limits.of(config.data))
    table = pd.DataFrame(
        asdict(image) | {"split": image.split or "train"} | asdict(fact)
        for image, fact in zip(found.images, facts, strict=True)
    )
    if _stamps(folder, read_image_folder(folder)) != before:
        raise TransientError(f"{folder}: its images changed while they were read; they are read once more")
    missing = {split: fraction for split, fraction in _fractions(config).items() if split not in found.splits}
    table["split"] = _carved(table, missing, config.seed)
    table = table[list(COLUMNS)].sort_values("path", ignore_index=True)
    counts = table["split"].value_counts()
    print(f"{what}: " + ", ".join(f"{counts.get(split, 0)} {split}" for split in SPLITS), flush=True)
    return table


def _stamps(folder: Path, found: ImageFolder) -> dict[str, tuple[int, int]]:
    """Return size and time of change of each image; one that is gone is left out."""
    stamps = {}
    for image in found.images:
        with suppress(OSError):
            known = (folder / image.path).stat()
            stamps[image.path] = known.st_size, known.st_mtime_ns
    return stamps


def assign_splits(label: str, digests: Iterable[str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Draw the split of each image of one class: sha256 -> train|val|test.

    Every image draws a number in [0, 1) from the hash of (seed, label, its own sha256). Numbers below
    fractions["test"] are test, the next fractions["val"] are val, the others train. So an image's split does not
    depend on its neighbours: images that arrive later move none from test to train, where a quota by rank would.
    In a small class such draws scatter too much, so the share of a split is held within half and one and a half of
    its fraction, and at one image or more. Only then can a later image move another one, and then at most one per
    boundary: train stands between test and val, so that neither boundary shifts the other. Classes of fewer than three
    different images are all train. Equal files share a split.

    Args:
        label: the class's name.
        digests: hex sha256 of its images, in any order, repeated or not.
        fractions: what test and val shall have of the images, each in [0, 1); none where it is not drawn.
        seed: another one draws other splits.
    """
    test, val = fractions.get("test", 0.0), fractions.get("val", 0.0)
    numbers = {digest: _draw(seed, label, digest) for digest in set(digests)}
    drawn = sorted(numbers, key=lambda digest: (test <= numbers[digest] < test + val, numbers[digest], digest))
    total, counts = len(drawn), dict[str, int]()
    for split, start, fraction in (("test", 0.0, test), ("val", test, val)):
        hits = sum(start <= number < start + fraction for number in numbers.values())
        counts[split] = _within_bounds(hits, fraction, total)
    while sum(counts.values()) > total - 1 and max(counts.values()) > 1:
        counts[max(counts, key=lambda split: counts[split])] -= 1
    if total < 3:
        counts = dict.fromkeys(counts, 0)
    train = total - counts["test"] - counts["val"]
    names = ["test"] * counts["test"] + ["train"] * train + ["val"] * counts["val"]
    return dict(zip(drawn, names, strict=True))


def _draw(seed: int, label: str, digest: str) -> float:
    content = hashlib.sha256(f"{seed}|{label}|{digest}".encode()).digest()
    return int.from_bytes(content[:6], "big") / 2**48


def _within_bounds(hits: int, fraction: float, total: int) -> int:
    if fraction == 0:
        return 0
    low, high = math.floor(0.5 * fraction * total), math.ceil(1.5 * fraction * total)
    return max(1, low, min(hits, high))


def _fractions(config: Config) -> dict[str, float]:
    return {"val": config.data.val_fraction, "test": config.data.test_fraction}


def _probe_all(what: str, paths: Collection[Path], limits: Limits) -> Iterator[ImageFacts]:
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for done, facts in enumerate(pool.map(lambda path: probe(path, limits), paths), start=1):
            if done % _PROGRESS == 0:
                print(f"{what}: {done}/{len(paths)} images", flush=True)
            yield facts


def _carved(table: pd.DataFrame, missing: Mapping[str, float], seed: int) -> list[str]:
    """Return the split of every row, with the missing splits carved out of each class's train rows."""
    carved: dict[tuple[str, str], str] = {}
    for label, rows in table[table["split"] == "train"].groupby("label"):
        splits = assign_splits(str(label), rows["sha256"], missing, seed)
        carved |= {(str(label), digest): split for digest, split in splits.items()}
    return [
        carved[label, digest] if split == "train" else split
        for label, split, digest in zip(table["label"], table["split"], table["sha256"], strict=True)
    ]
