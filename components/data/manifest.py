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
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from components.config import Config
from components.data.images import IMAGE_SUFFIXES, ImageFacts, Limits, image_files, probe
from components.errors import IntaglioError
from components.io import read_table, write_table

SPLITS = ("train", "val", "test")
COLUMNS = ("path", "label", "split", "sha256", "bytes", "width", "height", "mode", "format", "readable", "error")
_WHOLE = ""  # the name of the one part of a folder that has no split folders
_PROGRESS = 1000  # images between two lines


def ingest(root: Path, config: Config, task: str) -> None:
    """Turn a task's folder into data/manifests/<task>.parquet.

    The folder holds class folders, or train/ (with val/ and test/, or without) that hold class folders. What is
    missing of val and test is carved out of train. Unreadable images stay in the table; validation reports them.

    Raises:
        IntaglioError: an unknown task, or a folder that is not laid out like this.
    """
    if task not in config.stream.tasks:
        raise IntaglioError(f"task {task!r} is not in params.yaml; known: {', '.join(config.stream.tasks)}")
    folder = root / config.stream.tasks[task].folder
    parts = _parts(folder)
    _check_classes(folder, parts)
    files = [(part, label, path) for part in parts for label in parts[part] for path in parts[part][label]]
    for _, _, path in files:
        _check_path(folder, path)
    print(f"ingest {task}: {len(files)} images in {folder}", flush=True)
    facts = list(_probe_all(task, [path for _, _, path in files], Limits.of(config.data)))
    table = _table(folder, files, facts)
    missing = {split: fraction for split, fraction in _fractions(config).items() if split not in parts}
    table["split"] = _carved(table, missing, config.seed)
    table = table[list(COLUMNS)].sort_values("path", ignore_index=True)
    write_table(manifest_path(root, task), table)
    counts = table["split"].value_counts()
    print(f"ingest {task}: " + ", ".join(f"{counts.get(split, 0)} {split}" for split in SPLITS), flush=True)


def read_manifest(root: Path, task: str) -> pd.DataFrame:
    """The task's table, sorted by path.

    Raises:
        IntaglioError: it was not written yet, or is damaged.
    """
    return read_table(manifest_path(root, task))


def split_of(manifest: pd.DataFrame, split: str) -> pd.DataFrame:
    """The readable rows of one split, in the manifest's order.

    Raises:
        IntaglioError: there is no such split.
    """
    if split not in SPLITS:
        raise IntaglioError(f"split {split!r} does not exist; known: {', '.join(SPLITS)}")
    return manifest[(manifest["split"] == split) & manifest["readable"].astype(bool)].reset_index(drop=True)


def assign_splits(label: str, digests: Iterable[str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Which split each image of one class belongs to: sha256 -> train|val|test.

    Every image draws a number in [0, 1) from the hash of (seed, label, its own sha256). Numbers below
    fractions["test"] are test, the next fractions["val"] are val, the others train. So an image's split does not
    depend on its neighbours: images that arrive later move none from test to train, where a quota by rank would.
    In a small class such draws scatter too much, so the share of a split is held within half and one and a half of
    its fraction, and at one image or more. Only then can a later image move another one, and then at most one per
    boundary: train stands between test and val, so that neither boundary shifts the other. Classes of fewer than three
    different images are all train. Equal files share a split.
    """
    test, val = fractions.get("test", 0.0), fractions.get("val", 0.0)
    numbers = {digest: _draw(seed, label, digest) for digest in set(digests)}
    drawn = sorted(numbers, key=lambda digest: (test <= numbers[digest] < test + val, numbers[digest], digest))
    total, counts = len(drawn), dict[str, int]()
    for split, start, fraction in (("test", 0.0, test), ("val", test, val)):
        hits = sum(start <= number < start + fraction for number in numbers.values())
        counts[split] = _held(hits, fraction, total)
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


def _held(hits: int, fraction: float, total: int) -> int:
    if fraction == 0:
        return 0
    low, high = math.floor(0.5 * fraction * total), math.ceil(1.5 * fraction * total)
    return max(1, low, min(hits, high))


def _fractions(config: Config) -> dict[str, float]:
    return {"val": config.data.val_fraction, "test": config.data.test_fraction}


def manifest_path(root: Path, task: str) -> Path:
    """Where the table of a task lies."""
    return root / "data" / "manifests" / f"{task}.parquet"


def _parts(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """The folder as split -> class -> image files; one split named "" where there are no split folders."""
    if not folder.is_dir():
        raise IntaglioError(f"{folder}: no such folder; expected one folder per class in it")
    folders = _folders(folder)
    splits = [child for child in folders if child.name in SPLITS and _folders(child)]
    if not splits:
        return {_WHOLE: _classes(folder)}
    others = [child.name for child in folders if child not in splits]
    if others:
        raise IntaglioError(
            f"{folder}: split folders ({_names(child.name for child in splits)}) stand beside other folders "
            f"({_names(others)}); keep only train/, val/ and test/, or only class folders"
        )
    _refuse_loose_images(folder)
    if "train" not in {child.name for child in splits}:
        raise IntaglioError(f"{folder}: there is {_names(child.name for child in splits)} but no train/ folder; add it")
    return {child.name: _classes(child) for child in splits}


def _classes(folder: Path) -> dict[str, list[Path]]:
    _refuse_loose_images(folder)
    classes = {child.name: image_files(child) for child in _folders(folder)}
    if not classes:
        raise IntaglioError(f"{folder}: no class folders; expected one folder of images per class")
    empty = [label for label, files in classes.items() if not files]
    if empty:
        known = " ".join(sorted(IMAGE_SUFFIXES))
        raise IntaglioError(f"{folder}: no images in class {_names(empty)}; add images ({known}) or remove the folder")
    return classes


def _check_classes(folder: Path, parts: Mapping[str, Mapping[str, object]]) -> None:
    for part, classes in parts.items():
        strangers = sorted(set(classes) - set(parts.get("train", classes)))
        if strangers:
            raise IntaglioError(f"{folder}: class {_names(strangers)} is in {part}/ but not in train/; add it there")


def _folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _refuse_loose_images(folder: Path) -> None:
    loose = sorted(
        child.name
        for child in folder.iterdir()
        if child.suffix.lower() in IMAGE_SUFFIXES and not child.name.startswith(".") and not child.is_dir()
    )
    if loose:
        raise IntaglioError(f"{folder}: images beside the class folders ({_names(loose)}); move each into its class")


def _check_path(folder: Path, path: Path) -> None:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise IntaglioError(f"{path}: a link that leaves {folder}; copy the image instead")
    if not str(path).isprintable():
        raise IntaglioError(f"{str(path)!a}: the name has characters that cannot be printed; rename it")


def _probe_all(task: str, paths: Collection[Path], limits: Limits) -> Iterator[ImageFacts]:
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for done, facts in enumerate(pool.map(lambda path: probe(path, limits), paths), start=1):
            if done % _PROGRESS == 0:
                print(f"ingest {task}: {done}/{len(paths)} images", flush=True)
            yield facts


def _table(folder: Path, files: Iterable[tuple[str, str, Path]], facts: Iterable[ImageFacts]) -> pd.DataFrame:
    return pd.DataFrame(
        {"path": path.relative_to(folder).as_posix(), "label": label, "split": part or "train", **asdict(fact)}
        for (part, label, path), fact in zip(files, facts, strict=True)
    )


def _carved(table: pd.DataFrame, missing: Mapping[str, float], seed: int) -> list[str]:
    """The split of every row, with the missing splits carved out of each class's train rows."""
    carved: dict[tuple[str, str], str] = {}
    for label, rows in table[table["split"] == "train"].groupby("label"):
        splits = assign_splits(str(label), rows["sha256"], missing, seed)
        carved |= {(str(label), digest): split for digest, split in splits.items()}
    return [
        carved[label, digest] if split == "train" else split
        for label, split, digest in zip(table["label"], table["split"], table["sha256"], strict=True)
    ]


def _names(names: Iterable[str], most: int = 3) -> str:
    found = list(names)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")
