"""Where a stream's images come from: zips and folders laid out as [<split>/]<class>/<file>.

A zip's members are read one by one, bounded in size; their names never become paths.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from components.data.images import IMAGE_SUFFIXES, image_files
from components.errors import IntaglioError
from components.lab.stream import TaskSpec

_TEST_SHARE = 0.25  # of a source without a test split of its own


@dataclass(frozen=True)
class Item:
    """One image of a source, not yet read. `group`: what it may not be separated from; `name`: unique in its class."""

    label: str
    split: str
    name: str
    group: str
    read: Callable[[], bytes]

    @property
    def draw(self) -> bytes:
        """A number for ordering that depends on nothing but the image's name."""
        return hashlib.sha256(f"{self.label}|{self.name}".encode()).digest()


def list_source(task: TaskSpec, folders: Sequence[Path], max_bytes: int) -> list[Item]:
    """The images of a task's source, sorted by class and name.

    Raises:
        IntaglioError: it is in none of the data folders, not a readable zip, or holds no images where they should be.
    """
    where, found = _find(task.source, folders)
    members = _zip_members(where, max_bytes) if found == "zip" else _folder_members(where)
    pattern = re.compile(task.group) if task.group else None
    items = [item for name, read in members if (item := _item(name, read, task.folder, pattern))]
    if not items:
        raise IntaglioError(f"{where}: no images under {task.folder or '.'}/[<split>/]<class>/; see docs/laboratory.md")
    return sorted(items, key=lambda item: (item.label, item.name))


def _find(source: str, folders: Sequence[Path]) -> tuple[Path, str]:
    for folder in folders:
        if (path := folder / f"{source}.zip").is_file():
            return path, "zip"
        if (path := folder / source).is_dir():
            return path, "folder"
    places = ", ".join(map(str, folders)) or "no folder"
    raise IntaglioError(
        f"source {source!r}: neither {source}.zip nor {source}/ in {places}; use --data or INTAGLIO_DATA"
    )


Member = tuple[PurePosixPath, Callable[[], bytes]]


def _folder_members(folder: Path) -> list[Member]:
    return [(PurePosixPath(path.relative_to(folder).as_posix()), path.read_bytes) for path in image_files(folder)]


def _zip_members(path: Path, max_bytes: int) -> list[Member]:
    try:
        archive = zipfile.ZipFile(path)  # closed with the last reader: opening it for each image would take minutes
    except (zipfile.BadZipFile, OSError) as error:
        raise IntaglioError(f"{path}: not a readable zip file ({error})") from None
    infos = [info for info in archive.infolist() if not info.is_dir()]
    return [(PurePosixPath(info.filename), _reader(archive, info, max_bytes)) for info in infos]


def _reader(archive: zipfile.ZipFile, info: zipfile.ZipInfo, max_bytes: int) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            with archive.open(info) as member:
                content = member.read(max_bytes + 1)
        except (zipfile.BadZipFile, RuntimeError, OSError) as error:
            raise IntaglioError(f"{archive.filename}: {info.filename}: cannot be read ({error})") from None
        if len(content) > max_bytes:
            raise IntaglioError(f"{archive.filename}: {info.filename}: more than data.max_bytes allows ({max_bytes})")
        return content

    return read


def _item(name: PurePosixPath, read: Callable[[], bytes], folder: str, pattern: re.Pattern[str] | None) -> Item | None:
    parts = name.parts
    prefix = PurePosixPath(folder).parts
    if ".." in parts or name.is_absolute() or parts[: len(prefix)] != prefix:
        return None
    parts = parts[len(prefix) :]
    if name.suffix.lower() not in IMAGE_SUFFIXES or len(parts) not in (2, 3) or any(p.startswith(".") for p in parts):
        return None
    *split, label, file = parts
    if split and split[0] not in ("train", "val", "test"):
        return None
    match = pattern.search(name.stem) if pattern else None
    group = match.group(1) if match else f"{label}/{'/'.join(split)}/{file}"
    if split:
        part = "test" if split[0] == "test" else "train"
    else:
        number = int.from_bytes(hashlib.sha256(f"test|{group}".encode()).digest()[:6], "big") / 2**48
        part = "test" if number < _TEST_SHARE else "train"
    return Item(label, part, "_".join([*split, file]), group, read)
