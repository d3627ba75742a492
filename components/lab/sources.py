"""Where a stream's images come from: folders, and zips that are laid out like them.

Both are read by the rules of components/data/image_folder.py. A zip's members are read one by one, bounded in size;
their names never become paths.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from components.data.image_folder import FoundImage, ImageFolder, parse_image_folder, read_image_folder
from components.errors import IntaglioError
from components.lab.stream import TaskSpec

_TEST_SHARE = 0.25  # of a source without a test split of its own


Read = Callable[[], bytes]


@dataclass(frozen=True)
class Item:
    """One image of a source, not yet read.

    Attributes:
        label: its class.
        split: train or test; a given split for validation counts as training.
        name: unique in its class.
        group: what the image may not be separated from, such as a writer.
        read: returns the file's content.
    """

    label: str
    split: str
    name: str
    group: str
    read: Read

    @property
    def draw(self) -> bytes:
        """Return a key for sorting that depends on nothing but the image's name."""
        return hashlib.sha256(f"{self.label}|{self.name}".encode()).digest()


def list_source(task: TaskSpec, folders: Sequence[Path], max_bytes: int) -> list[Item]:
    """List the images of a task's source, by the rules of components/data/image_folder.py; sorted by class and name.

    Args:
        task: names the source, a folder in it, and what belongs together.
        folders: searched in turn for the source.
        max_bytes: of a zip's member, bytes; more is not read.

    Raises:
        IntaglioError: it is in none of the data folders, not a readable zip, or not laid out by the rules.
    """
    where, is_zip = _find(task.source, folders)
    found, reader = _read_zip(where, task.folder, max_bytes) if is_zip else _read_folder(where / task.folder)
    pattern = re.compile(task.group) if task.group else None
    items = [_item(image, reader(image.path), pattern) for image in found.images]
    return sorted(items, key=lambda item: (item.label, item.name))


def _find(source: str, folders: Sequence[Path]) -> tuple[Path, bool]:
    """Return where a source lies, and whether it is a zip."""
    for folder in folders:
        if (path := folder / f"{source}.zip").is_file():
            return path, True
        if (path := folder / source).is_dir():
            return path, False
    places = ", ".join(map(str, folders)) or "no folder"
    raise IntaglioError(
        f"source {source!r}: neither {source}.zip nor {source}/ in {places}; use --data or INTAGLIO_DATA"
    )


def _read_folder(folder: Path) -> tuple[ImageFolder, Callable[[str], Read]]:
    return read_image_folder(folder), lambda path: (folder / path).read_bytes


def _read_zip(path: Path, folder: str, max_bytes: int) -> tuple[ImageFolder, Callable[[str], Read]]:
    try:
        archive = zipfile.ZipFile(path)  # closed with the last reader: opening it for each image would take minutes
    except (zipfile.BadZipFile, OSError) as error:
        raise IntaglioError(f"{path}: not a readable zip file ({error})") from None
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = PurePosixPath(info.filename)
        if ".." in name.parts or name == PurePosixPath(folder) or not name.is_relative_to(folder):
            continue  # it leads out of the folder, or is none of it
        relative = f"{name.relative_to(folder)}{'/' if info.is_dir() else ''}"
        if relative in members and not info.is_dir():
            raise IntaglioError(f"{path}: {info.filename} is in it twice; pack it anew")
        members[relative] = info
    where = f"{path}/{folder}" if folder else str(path)
    return parse_image_folder(where, members), lambda name: partial(_read_member, archive, members[name], max_bytes)


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, max_bytes: int) -> bytes:
    try:
        with archive.open(info) as member:
            content = member.read(max_bytes + 1)
    except (zipfile.BadZipFile, RuntimeError, OSError) as error:
        raise IntaglioError(f"{archive.filename}: {info.filename}: cannot be read ({error})") from None
    if len(content) > max_bytes:
        raise IntaglioError(f"{archive.filename}: {info.filename}: more than data.max_bytes allows ({max_bytes})")
    return content


def _item(image: FoundImage, read: Read, pattern: re.Pattern[str] | None) -> Item:
    parts = image.path.split("/")
    split, inside = (parts[:1], parts[2:]) if image.split else ([], parts[1:])
    match = pattern.search(PurePosixPath(image.path).stem) if pattern else None
    group = match.group(1) if match else f"{image.label}/{'/'.join(split)}/{'/'.join(inside)}"
    if image.split:
        part = "test" if image.split == "test" else "train"
    else:
        number = int.from_bytes(hashlib.sha256(f"test|{group}".encode()).digest()[:6], "big") / 2**48
        part = "test" if number < _TEST_SHARE else "train"
    return Item(image.label, part, "_".join([*split, *inside]), group, read)
