"""What changed in a folder since it became a task: images added, removed, moved or changed, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from components.data.image_folder import read_image_folder
from components.io import sha256_file

_NAMED = 3  # images or classes in a line


@dataclass(frozen=True)
class FolderChanges:
    """Images of a folder that are not as its manifest has them; each by its path in the folder.

    Attributes:
        added: that the manifest lacks.
        removed: that are gone.
        moved: (old path, new path) of images whose bytes lie elsewhere now, in another class for example.
        changed: whose bytes are others.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    moved: tuple[tuple[str, str], ...]
    changed: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """Return a few words for each kind of change, with counts and names."""
        return [*self._lines()]

    def _lines(self) -> Iterator[str]:
        if self.added:
            yield f"{_images(self.added)} added to {_classes(self.added)}"
        if self.removed:
            yield f"{_images(self.removed)} removed from {_classes(self.removed)}"
        if self.moved:
            pairs = [f"{old} to {new}" for old, new in self.moved[:_NAMED]]
            yield f"{_images(self.moved)} moved: {', '.join(pairs)}{_more(self.moved)}"
        if self.changed:
            yield f"{_images(self.changed)} changed: {', '.join(self.changed[:_NAMED])}{_more(self.changed)}"


def folder_changes(folder: Path, manifest: pd.DataFrame) -> FolderChanges:
    """Compare a folder with the manifest that was made of it, by the sha256 of every image.

    Args:
        folder: of the images.
        manifest: with the columns path and sha256.

    Raises:
        IntaglioError: the folder is gone or breaks a rule of image_folder.py.
    """
    before = dict(zip(manifest["path"], manifest["sha256"], strict=True))
    paths = [image.path for image in read_image_folder(folder).images]
    with ThreadPoolExecutor() as pool:
        now = dict(zip(paths, pool.map(lambda path: sha256_file(folder / path), paths), strict=True))
    added, removed = sorted(now.keys() - before.keys()), sorted(before.keys() - now.keys())
    moved = []
    for old in removed:
        if new := next((path for path in added if now[path] == before[old]), None):
            moved.append((old, new))
            added.remove(new)
    gone = {old for old, _ in moved}
    # An unreadable file has no sha256 in the manifest, so it cannot be compared.
    changed = sorted(path for path in now.keys() & before.keys() if before[path] and now[path] != before[path])
    return FolderChanges(tuple(added), tuple(p for p in removed if p not in gone), tuple(moved), tuple(changed))


def _images(changed: Sequence[object]) -> str:
    return f"{len(changed)} image{'' if len(changed) == 1 else 's'}"


def _classes(paths: Sequence[str]) -> str:
    """Name the folders that hold these images, those of most images first."""
    counts = Counter(str(Path(path).parent) for path in paths)
    names = [name for name, _ in counts.most_common()]
    return f"{', '.join(names[:_NAMED])}{_more(names)}"


def _more(names: Sequence[object]) -> str:
    return f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
