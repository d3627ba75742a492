"""The one parser of a task's images: which files of a folder or an archive are images, of which class and split.

    pets/                           pets/
      cat/  1.jpg  old/2.jpg          Train/  cat/ 1.jpg    dog/ 2.jpg
      dog/  3.jpg                     valid/  cat/ 3.jpg    dog/ 4.jpg

`task add`, the stage `ingest` and the laboratory all read images here: they accept the same folders, and refuse the
others with the same message. The rules, each of which is checked in one place below:

- A folder holds class folders, or split folders that hold class folders. Images lie at any depth of a class folder,
  never beside one. There is at least one class, and each has an image.
- Split folders are called as in `_SPLIT_NAMES`, in upper or lower case. There is one for training; the classes of the
  others are among its own. A class may have such a name where it stands beside other classes and holds no folders.
- Hidden entries and those of `_LITTER` are skipped and counted. Other files that are no images are left out.
- An image may be a link to a file in the same folder. A link to a file elsewhere, to nothing or to a folder is refused.
- Names can be printed.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from components.data.images import IMAGE_SUFFIXES
from components.errors import IntaglioError

_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# What operating systems, archives and network stores leave beside images, in lower case; all else of theirs is hidden.
_LITTER = frozenset({"__macosx", "@eadir", "thumbs.db", "desktop.ini"})
_NAMED = 3  # names in a message

_Parts = tuple[str, ...]  # a relative path as the names of its folders and its own


@dataclass(frozen=True)
class FoundImage:
    """An image of a task, known by its name alone: nothing of it has been read.

    Attributes:
        path: relative to the folder, posix.
        label: the class folder's name.
        split: train, val or test; "" where there are no split folders.
    """

    path: str
    label: str
    split: str


@dataclass(frozen=True)
class ImageFolder:
    """The images of a task.

    Attributes:
        images: sorted by path.
        splits: those that have a folder of their own, none or train and others.
        skipped: hidden entries and those that a system left behind; a skipped folder counts once.
    """

    images: tuple[FoundImage, ...]
    splits: frozenset[str]
    skipped: int

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, sorted."""
        return tuple(sorted({image.label for image in self.images}))

    @property
    def summary(self) -> str:
        """What was found and skipped, in a few words."""
        skipped = f" ({self.skipped} hidden or system files skipped)" if self.skipped else ""
        return f"{_count(self.classes, 'class', 'classes')}, {_count(self.images, 'image', 'images')}{skipped}"


def read_image_folder(folder: Path) -> ImageFolder:
    """Find the images of a task's folder.

    Raises:
        IntaglioError: the folder cannot be read, or breaks one of the rules above.
    """
    where = _shown(str(folder))
    if not folder.exists():
        raise IntaglioError(f"{where}: no such folder; expected one folder of images per class in it")
    if not folder.is_dir():
        raise IntaglioError(f"{where}: not a folder; expected one with a folder of images per class in it")
    return parse_image_folder(str(folder), _walk(folder))


def parse_image_folder(where: str, names: Iterable[str]) -> ImageFolder:
    """Find the images among the names of all that lies in a folder or an archive.

    Args:
        where: the folder or the archive, for messages.
        names: the relative posix path of every entry; a folder's ends with "/". An archive may leave folders out.

    Raises:
        IntaglioError: one of the rules above is broken; the message says where, and what to do.
    """
    listing = _Listing.of(names)
    for parts in (*listing.folders, *listing.images):
        _check_name("/".join((where, *parts)))
    splits = _split_folders(where, listing)
    if splits:
        _refuse_loose_images(where, listing.names_of_images[()])
    classes = {name: _classes(where, listing, name) for name in splits or ("",)}
    train = next((name for name, split in splits.items() if split == "train"), "")
    _check_labels(where, classes, train)
    level = 1 if splits else 0  # where a path names its class
    images = sorted(
        (FoundImage("/".join(parts), parts[level], splits.get(parts[0], "")) for parts in listing.images),
        key=lambda image: image.path,
    )
    return ImageFolder(tuple(images), frozenset(splits.values()), listing.skipped)


def walk_images(folder: Path) -> Iterator[Path]:
    """Yield all images under any folder, sorted by posix path; what is hidden or litter is left out.

    In memory are only the names in the folders on the way to the next file. Links to folders are not followed, and a
    folder that may not be read holds no images.
    """
    for name in _walked_names(folder):
        if name.endswith("/"):
            yield from walk_images(folder / name)
        else:
            yield folder / name


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


@dataclass(frozen=True)
class _Listing:
    """Entries without litter and without files that are no images; folders down to the second level."""

    images: Sequence[_Parts]
    folders: Sequence[_Parts]
    skipped: int

    @classmethod
    def of(cls, names: Iterable[str]) -> _Listing:
        images: list[_Parts] = []
        folders: set[_Parts] = set()
        litter: set[_Parts] = set()
        for name in names:
            parts = tuple(name.rstrip("/").split("/"))
            hidden = next((level for level, part in enumerate(parts, start=1) if _is_litter(part)), None)
            if hidden:
                litter.add(parts[:hidden])
                continue
            above = len(parts) if name.endswith("/") else len(parts) - 1
            folders.update(parts[:level] for level in range(1, min(above, 2) + 1))
            if not name.endswith("/") and _is_image(parts[-1]):
                images.append(parts)
        return cls(images, sorted(folders), len(litter))

    @cached_property
    def names_of_folders(self) -> Mapping[_Parts, list[str]]:
        """Sorted names of the folders in each folder; () is the whole."""
        return _by_folder(self.folders)

    @cached_property
    def names_of_images(self) -> Mapping[_Parts, list[str]]:
        """Sorted names of the images that lie directly in each folder."""
        return _by_folder(sorted(self.images))


def _by_folder(paths: Iterable[_Parts]) -> defaultdict[_Parts, list[str]]:
    found: defaultdict[_Parts, list[str]] = defaultdict(list)
    for *folder, name in paths:
        found[tuple(folder)].append(name)
    return found


def _split_folders(where: str, listing: _Listing) -> dict[str, str]:
    """Map the name of each split folder to its split; nothing where there are class folders only."""
    folders = listing.names_of_folders
    splits = {name: _SPLIT_NAMES[name.lower()] for name in folders[()] if name.lower() in _SPLIT_NAMES}
    others = [name for name in folders[()] if name not in splits]
    if not splits or (others and not any(folders[(name,)] for name in splits)):
        return {}
    if others:
        raise IntaglioError(
            f"{_shown(where)}: split folders ({_names(splits)}) stand beside other folders ({_names(others)}); "
            "keep only train/, val/ and test/, or only class folders"
        )
    for split in sorted(set(splits.values())):
        same = [name for name in splits if splits[name] == split]
        if len(same) > 1:
            raise IntaglioError(f"{_shown(where)}: {_names(same)} are folders of one split, {split}; keep one of them")
    if "train" not in splits.values():
        raise IntaglioError(f"{_shown(where)}: there is {_names(splits)} but no train/ folder; add it")
    return splits


def _classes(where: str, listing: _Listing, split_folder: str) -> list[str]:
    """Return the classes of a split folder, or with "" those of the whole."""
    inside = (split_folder,) if split_folder else ()
    place = _shown("/".join((where, *inside)))
    _refuse_loose_images(place, listing.names_of_images[inside])
    classes = listing.names_of_folders[inside]
    if not classes:
        instead = (
            ""
            if _SPLIT_NAMES.get(split_folder.lower(), "train") == "train"
            else (f"; add them, or remove {split_folder}/, and its images are drawn from the training images")
        )
        raise IntaglioError(f"{place}: no class folders; expected one folder of images per class{instead}")
    filled = {parts[len(inside)] for parts in listing.images if parts[: len(inside)] == inside}
    empty = [label for label in classes if label not in filled]
    if empty:
        known = " ".join(sorted(IMAGE_SUFFIXES))
        raise IntaglioError(f"{place}: no images in class {_names(empty)}; add images ({known}) or remove the folder")
    return classes


def _refuse_loose_images(place: str, names: Sequence[str]) -> None:
    if names:
        raise IntaglioError(f"{place}: images beside the class folders ({_names(names)}); move each into its class")


def _check_labels(where: str, classes: Mapping[str, Sequence[str]], train: str) -> None:
    """Refuse a class of another split that the folder `train` lacks."""
    for name, labels in classes.items():
        strangers = [label for label in labels if label not in classes[train]]
        if strangers:
            raise IntaglioError(
                f"{_shown(where)}: class {_names(strangers)} is in {name}/ but not in {train}/; add it there"
            )


def _walk(root: Path) -> Iterator[str]:
    """Yield the names that `parse_image_folder` takes; a skipped folder is named and not opened."""
    inside = root.resolve()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(root / folder) as entries:
                names = sorted(name for entry in entries if (name := _name(entry, inside)))
        except OSError as error:
            place = _shown(str(error.filename or root / folder))
            raise IntaglioError(f"{place}: cannot be opened ({error.strerror or error}); make it readable") from None
        waiting += [f"{folder}{name}" for name in reversed(names) if name.endswith("/") and not _is_litter(name[:-1])]
        yield from (f"{folder}{name}" for name in names)


def _name(entry: os.DirEntry[str], inside: Path) -> str:
    """Return the name of an entry, with "/" where it is a folder; "" for what is neither file nor folder."""
    if _is_litter(entry.name):
        return entry.name
    if entry.is_symlink():
        return entry.name if _is_image_in(Path(entry.path), inside) else ""
    if entry.is_dir():
        return f"{entry.name}/"
    return entry.name if entry.is_file() else ""


def _is_image_in(link: Path, inside: Path) -> bool:
    """Check whether a link is an image of the folder `inside`; other files than images may be anything.

    Raises:
        IntaglioError: a link to a folder, or an image's that leads to nothing or elsewhere.
    """
    place = _shown(str(link))
    if link.is_dir():
        raise IntaglioError(f"{place}: a link to a folder, which is not followed; copy the folder instead")
    if not _is_image(link.name):
        return False
    if not link.exists():
        raise IntaglioError(f"{place}: a link to a file that does not exist; restore the file or remove the link")
    if not link.resolve().is_relative_to(inside):
        raise IntaglioError(f"{place}: a link that leaves {_shown(str(inside))}; copy the image instead")
    return link.is_file()


def _walked_names(folder: Path) -> list[str]:
    """List images and folders, these with a "/": so sorted, a walk over the tree is sorted by posix path too."""
    try:
        with os.scandir(folder) as entries:
            return sorted(name for entry in entries if (name := _walked_name(entry)))
    except OSError:
        return []


def _walked_name(entry: os.DirEntry[str]) -> str:
    if _is_litter(entry.name):
        return ""
    if entry.is_dir(follow_symlinks=False):
        return f"{entry.name}/"
    return entry.name if _is_image(entry.name) and entry.is_file() else ""


def _check_name(path: str) -> None:
    if not path.isprintable():
        raise IntaglioError(f"{path!a}: the name has characters that cannot be printed; rename it")


def _shown(path: str) -> str:
    """Return a path as a message can hold it: one line that can be printed."""
    return path if path.isprintable() else ascii(path)


def _names(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(found[:_NAMED]) + more


def _count(things: Sequence[object], one: str, many: str) -> str:
    """Return a number with its noun."""
    return f"{len(things)} {one if len(things) == 1 else many}"
