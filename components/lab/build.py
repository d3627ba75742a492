"""From a declared stream to folders of images, one per task, and a table of them: `intaglio bench build`."""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import pandas as pd
from PIL import Image, ImageFilter, ImageOps

from components.data.images import Limits, open_image
from components.errors import IntaglioError
from components.io import atomic_folder, read_json, read_table, sha256_bytes, write_json, write_table
from components.lab.sources import Item, list_source
from components.lab.stream import DeclaredStream, Style, TaskSpec
from components.vision.pixel_batches import ProgressLine

TABLE = "images.parquet"  # columns: task, label, split (train|test), group, path (in the stream's folder), sha256


def build_stream(declared: DeclaredStream, data: Sequence[Path], folder: Path, limits: Limits) -> pd.DataFrame:
    """Write `folder`/<task>/<split>/<class>/<file> and the table of all images; what is there already is kept.

    Args:
        declared: the stream.
        data: folders that are searched for its sources.
        folder: where it is written, replaced as a whole.
        limits: what an image may cost.

    Returns:
        A row per image: task, label, split, group, path in `folder`, sha256.

    Raises:
        IntaglioError: a source is missing or broken, or an image is.
    """
    wanted = declared.spec.model_dump()
    if (folder / "stream.json").exists() and read_json(folder / "stream.json") == wanted:
        return read_table(folder / TABLE)
    tasks = [task for name, spec in declared.spec.tasks.items() for task in _tasks(declared, name, spec, data, limits)]
    rows: list[dict[str, str]] = []
    progress = ProgressLine(f"stream {declared.name}: images", sum(len(items) for _, _, items in tasks))
    with atomic_folder(folder) as temporary:
        for name, style, items in tasks:
            for item in items:
                content, suffix = _styled(item, style, limits)
                path = Path(name) / item.split / _safe(item.label) / f"{_safe(Path(item.name).stem)}{suffix}"
                (temporary / path).parent.mkdir(parents=True, exist_ok=True)
                (temporary / path).write_bytes(content)
                rows.append(_row(name, item, path, content))
                progress.at(len(rows))
        table = pd.DataFrame(rows)
        if (table["path"].duplicated()).any():
            twice = table["path"][table["path"].duplicated()].iloc[0]
            raise IntaglioError(f"stream {declared.name!r}: two images would be written to {twice}; rename one of them")
        write_table(temporary / TABLE, table)
        write_json(temporary / "stream.json", wanted)
    return table


def _row(task: str, item: Item, path: Path, content: bytes) -> dict[str, str]:
    split_and_place = {"split": item.split, "group": item.group, "path": path.as_posix()}
    return {"task": task, "label": item.label, **split_and_place, "sha256": sha256_bytes(content)}


def _tasks(
    declared: DeclaredStream, name: str, spec: TaskSpec, data: Sequence[Path], limits: Limits
) -> Iterator[tuple[str, Style, list[Item]]]:
    items = list_source(spec, data, limits.max_bytes)
    train = _chosen([item for item in items if item.split == "train"], spec.half, declared.spec.train_images)
    test = _chosen([item for item in items if item.split == "test"], spec.half, len(items))
    labels = sorted({item.label for item in train})
    if len(labels) < spec.parts:
        raise IntaglioError(
            f"stream {declared.name!r}: task {name}: {len(labels)} classes cannot make {spec.parts} parts"
        )
    for part in range(spec.parts):
        # Neighbours in the alphabet go to different parts: similar names often mean similar classes.
        own = set(labels[part :: spec.parts])
        title = name if spec.parts == 1 else f"{name}_{part + 1}"
        yield title, spec.style, [item for item in [*train, *test] if item.label in own]


def _chosen(items: Sequence[Item], half: int | None, limit: int) -> list[Item]:
    """Choose at most `limit` images, evenly over the classes, drawn by their names alone."""
    by_label: defaultdict[str, list[Item]] = defaultdict(list)
    for item in sorted(items, key=lambda item: item.draw):
        by_label[item.label].append(item)
    if half is not None:
        by_label = defaultdict(list, {label: own[half - 1 :: 2] for label, own in by_label.items()})
    in_turns = (item for turn in zip_longest(*by_label.values()) for item in turn if item is not None)
    return [item for _, item in zip(range(limit), in_turns, strict=False)]


def _styled(item: Item, style: Style, limits: Limits) -> tuple[bytes, str]:
    content = item.read()
    image = open_image(content, limits)
    if style == "plain":
        return content, Path(item.name).suffix.lower()
    if style == "negative":
        changed: Image.Image = ImageOps.invert(image)
    elif style == "edges":
        changed = ImageOps.invert(image.filter(ImageFilter.FIND_EDGES))
    else:
        changed = ImageOps.grayscale(image)
    buffer = io.BytesIO()
    changed.save(buffer, "PNG")
    return buffer.getvalue(), ".png"


def _safe(name: str) -> str:
    return re.sub(r"[^\w-]+", "_", name).strip("_") or "_"
