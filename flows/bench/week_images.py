"""The images of a long stream: which there are in its sources, and those of one week as a folder."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.bench.weeks import ClassBatch, ClassSupply
from components.errors import IntaglioError
from components.lab.sources import Item, list_source
from components.lab.stream import DeclaredStream, TaskSpec


@dataclass(frozen=True)
class SourceImages:
    """The images of all sources: source and label -> those to learn from, and those to test with."""

    train: Mapping[tuple[str, str], Sequence[Item]]
    test: Mapping[tuple[str, str], Sequence[Item]]
    left_out: tuple[str, ...]  # sources that are in no data folder

    @property
    def supply(self) -> list[ClassSupply]:
        """Return the classes with their numbers of images."""
        return [ClassSupply(*key, len(items), len(self.test.get(key, ()))) for key, items in sorted(self.train.items())]

    def of(self, source: str, part: ClassBatch) -> Iterator[tuple[str, Item]]:
        """Yield the split and the image of each image of a batch."""
        for split, items, (start, stop) in (("train", self.train, part.train), ("test", self.test, part.test)):
            yield from ((split, item) for item in items.get((source, part.label), ())[start:stop])


def find_images(declared: DeclaredStream, data: Sequence[Path], max_bytes: int) -> SourceImages:
    """List the images of every source of a stream that is in the data folders; equal files are taken once.

    Args:
        declared: names the sources; their classes will be split into tasks.
        data: folders that are searched.
        max_bytes: of an image file.

    Raises:
        IntaglioError: none of the sources is there, one is broken, or the stream restyles images.
    """
    found = {split: defaultdict[tuple[str, str], list[Item]](list) for split in ("train", "test")}
    seen, left_out = set[bytes](), list[str]()
    for name, spec in declared.spec.tasks.items():
        if spec.style != "plain" or spec.half is not None or spec.parts != 1:
            raise IntaglioError(f"stream {declared.name!r}: task {name}: expected source, folder and group alone")
        if not any((folder / f"{spec.source}.zip").is_file() or (folder / spec.source).is_dir() for folder in data):
            left_out.append(name)
            continue
        for item in sorted(list_source(spec, data, max_bytes), key=lambda item: item.draw):
            digest = hashlib.sha256(item.read()).digest()
            if digest not in seen:  # the same picture may be in two sets; a later task would be refused for it
                seen.add(digest)
                found[item.split][name, label_of(spec, item)].append(item)
    if len(left_out) == len(declared.spec.tasks):
        places = ", ".join(map(str, data)) or "no folder"
        raise IntaglioError(
            f"stream {declared.name!r}: none of its sources is in {places}; use --data or INTAGLIO_DATA"
        )
    return SourceImages(found["train"], found["test"], tuple(left_out))


def label_of(spec: TaskSpec, item: Item) -> str:
    """Return an image's class; where a source has several folders, such as alphabets, the folder's name is in it."""
    return f"{spec.folder}_{item.label}" if spec.folder else item.label


def write_batch(images: SourceImages, source: str, batch: Sequence[ClassBatch], folder: Path) -> None:
    """Write the images that arrive in a week as <split>/<class>/<number>, as `intaglio task add` takes them.

    Args:
        images: of all sources.
        source: of the batch.
        batch: which images.
        folder: where to.
    """
    tested = any(part.test[1] > part.test[0] for part in batch)
    for part in batch:
        for number, (split, item) in enumerate(images.of(source, part)):
            place = folder / (split if tested else "") / part.label
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number:03}{Path(item.name).suffix.lower()}").write_bytes(item.read())
