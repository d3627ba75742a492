"""The trunk's outputs, computed once per image and kept on disk for every stage and every epoch.

A folder of immutable segments: safetensors files of up to 64 MiB that name the images they hold by sha256 and carry a
checksum for each. A segment appears by a rename: a writer that is killed leaves none, and two writers at once leave two
that agree. Beyond the size cap the least recently used are deleted; a process that still reads one keeps it mapped. The
folder may be deleted at any time, which costs the time to fill it again.

Tokens are kept in float16. Training and evaluation read them from here even when they were just computed, so that
results never depend on what was in the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from components.arrays import Arrays, Embeddings, Pixels
from components.config import Cache
from components.data.images import Limits
from components.errors import IntaglioError
from components.io import sweep, write_arrays
from components.vision.backbone import Vit, autocast
from components.vision.pixel_batches import ProgressLine, pixel_batches

Rows = NDArray[np.int64]
HalfTokens = NDArray[np.float16]
_Batch = tuple[HalfTokens, Embeddings]  # tokens, and the pooled trunk depths
_Computed = tuple[Sequence[bytes], Sequence[_Batch]]

FOLDER = ".intaglio/trunk"  # in the project
BATCH = 32  # images a pass; what is missing of a last one is computed in vain
SEGMENT_BYTES = 64 * 2**20  # what a killed writer loses at most, and the grain of what is evicted
_FORMAT = 1  # of the segments, and of the way from a file to pixels: with a new number all old entries are unused
_VIEWS = 1  # of the way from a file to its other views: likewise
_DTYPES = {"U8": np.uint8, "U32": np.uint32, "F16": np.float16, "F32": np.float32}


@dataclass(frozen=True)
class _Segment:
    """A mapped file.

    Attributes:
        path: of the file.
        images: (n, 32) uint8, sha256 of each image.
        checksums: (n,) uint32, of each row.
        pooled: (n, trunk_width) float32.
        tokens: (n, tokens, width) float16.
    """

    path: Path
    images: NDArray[np.uint8]
    checksums: NDArray[np.uint32]
    pooled: Embeddings
    tokens: HalfTokens

    def is_whole(self, row: int) -> bool:
        """Check that a row is what was written."""
        return _checksum(self.images[row], self.pooled[row], self.tokens[row]) == int(self.checksums[row])


@dataclass(frozen=True)
class Tokens:
    """The tokens of n images after the trunk, mapped from disk; `tokens[rows]` reads a batch of them."""

    _segments: tuple[_Segment, ...]
    _where: Rows  # (n, 2): segment, row in it

    def __len__(self) -> int:
        """Return the number n of images."""
        return len(self._where)

    def __getitem__(self, rows: Rows | slice) -> HalfTokens:
        """Read rows in the order asked for: (len(rows), tokens, width) float16."""
        where = self._where[rows]
        out = np.empty((len(where), *self._segments[0].tokens.shape[1:]), dtype=np.float16)
        for number in np.unique(where[:, 0]):
            here = where[:, 0] == number
            out[here] = self._segments[number].tokens[where[here, 1]]
        return out

    def take(self, rows: Rows) -> Tokens:
        """Select the tokens of some of the images; they stay on disk."""
        return Tokens(self._segments, self._where[rows])

    @classmethod
    def joined(cls, parts: Sequence[Tokens]) -> Tokens:
        """Join the tokens of several parts, one after the other."""
        first = np.cumsum([0, *(len(part._segments) for part in parts)])
        where = [part._where + np.array([start, 0]) for part, start in zip(parts, first, strict=False)]
        return cls(tuple(segment for part in parts for segment in part._segments), np.concatenate(where))


@dataclass(frozen=True)
class TrunkCache:
    """A folder of segments that is kept below `max_bytes`; 0 keeps nothing beyond the running process."""

    folder: Path
    max_bytes: int

    @classmethod
    def of(cls, root: Path, settings: Cache) -> TrunkCache:
        """Return the project's cache, or the one in $INTAGLIO_CACHE, which projects may share."""
        return cls(Path(os.environ.get("INTAGLIO_CACHE") or root / FOLDER), int(settings.max_gb * 1e9))

    def evict(self) -> None:
        """Delete the segments that were not used for longest, of all backbones, until the rest fits."""
        found = []
        for path in self.folder.glob("*/*.safetensors"):
            with suppress(FileNotFoundError):  # another process evicts too
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

    def forget(self, digests: Iterable[str]) -> int:
        """Delete every segment that holds one of some images, by their hex sha256; return the number of segments.

        Other images in such a segment are computed again when they are needed.
        """
        images, count = {bytes.fromhex(digest) for digest in digests}, 0
        for folder in self.folder.glob("*/"):
            for segment in _open_all(folder):
                if images.intersection(row.tobytes() for row in segment.images):
                    segment.path.unlink(missing_ok=True)
                    count += 1
        return count


def trunk_outputs(
    vit: Vit,
    paths: Sequence[Path],
    digests: Sequence[str],
    limits: Limits,
    cache: TrunkCache,
    what: str,
    view: int = 0,
) -> tuple[Tokens, Embeddings]:
    """Look up the trunk's outputs of at least one image; compute what the cache lacks.

    Args:
        vit: the backbone.
        paths: the n image files.
        digests: the hex sha256 of each.
        limits: what an image may cost.
        cache: where outputs are looked up and kept.
        what: the name of the work, for its progress.
        view: which view of the images (components/data/augment.py); 0 is themselves.

    Returns:
        tokens (n, tokens, width) float16, mapped; the pooled trunk depths (n, trunk_width) float32.

    Raises:
        ImageError: an image cannot be read, or is not the one that `digests` names.
        IntaglioError: the outputs do not fit float16, or the disk cannot be written.
    """
    segments_folder = cache.folder / _key(vit, view)
    wanted = {bytes.fromhex(digest): path for digest, path in zip(digests, paths, strict=True)}
    segments = list(_open_all(segments_folder))
    place = _locate(segments, wanted)
    for number in {number for number, _ in place.values()}:
        with suppress(OSError):  # evicted meanwhile, or a cache that is read-only here
            os.utime(segments[number].path)
    if missing := [image for image in wanted if image not in place]:
        computed = _compute(vit, [wanted[image] for image in missing], missing, limits, what, view)
        for segment in _written(segments_folder, computed):
            place |= {image.tobytes(): (len(segments), row) for row, image in enumerate(segment.images)}
            segments.append(segment)
        cache.evict()
    where = np.array([place[bytes.fromhex(digest)] for digest in digests], dtype=np.int64)
    pooled = np.stack([segments[number].pooled[row] for number, row in where])
    return Tokens(tuple(segments), where), pooled


def _key(vit: Vit, view: int) -> str:
    """Hash everything but the image that the outputs depend on."""
    facts: dict[str, object] = {
        "format": _FORMAT,
        "backbone": vit.sha256,
        "image_size": vit.image_size,
        "normalisation": [vit.mean, vit.std],
        "trunk_depth": vit.trunk_depth,
        "depths": [depth for depth in vit.depths if depth <= vit.trunk_depth],
        "arithmetic": [vit.device.type, vit.half],
    }
    if view:
        facts |= {"view": [_VIEWS, view]}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


def _open_all(segments_folder: Path) -> Iterator[_Segment]:
    """Open every readable segment; one that is not a whole file is deleted."""
    if segments_folder.is_dir():
        sweep(segments_folder)
    for path in sorted(segments_folder.glob("*.safetensors")):
        try:
            yield _open(path)
        except FileNotFoundError:
            continue  # evicted by another process this instant
        except (ValueError, LookupError, TypeError, AttributeError):
            path.unlink(missing_ok=True)


def _open(path: Path) -> _Segment:
    """Map a segment, by the layout of safetensors: 8 bytes of length, a JSON header, the arrays."""
    whole = np.memmap(path, np.uint8, "r")
    begin = 8 + int.from_bytes(whole[:8].tobytes(), "little")
    header = json.loads(whole[8:begin].tobytes())
    arrays = {}
    for name, facts in header.items():
        start, end = facts["data_offsets"]
        arrays[name] = whole[begin + start : begin + end].view(_DTYPES[facts["dtype"]]).reshape(facts["shape"])
    if len({len(array) for array in arrays.values()}) != 1:
        raise ValueError(f"{path}: its arrays differ in length")
    return _Segment(path, **arrays)


def _locate(segments: Sequence[_Segment], wanted: dict[bytes, Path]) -> dict[bytes, tuple[int, int]]:
    """Find the wanted images that are whole: sha256 -> (segment, row)."""
    place: dict[bytes, tuple[int, int]] = {}
    for number, segment in enumerate(segments):
        for row, image in enumerate(segment.images):
            name = image.tobytes()
            if name in wanted and name not in place and segment.is_whole(row):
                place[name] = (number, row)
    return place


def _compute(
    vit: Vit, paths: Sequence[Path], images: Sequence[bytes], limits: Limits, what: str, view: int
) -> Iterator[_Computed]:
    """Yield the images of one segment after the other, with the batches of what was computed of them."""
    progress, done, start, size = ProgressLine(f"{what}: trunk", len(paths)), 0, 0, 0
    batches: list[_Batch] = []
    digests = [image.hex() for image in images]
    for pixels in pixel_batches(paths, vit.image_size, limits, BATCH, digests, view):
        batches.append(_forward(vit, pixels))
        size += batches[-1][0].nbytes + batches[-1][1].nbytes
        done += len(pixels)
        progress.at(done)
        if size >= SEGMENT_BYTES or done == len(paths):
            yield images[start:done], batches
            batches, start, size = [], done, 0


def _forward(vit: Vit, pixels: Pixels) -> tuple[HalfTokens, Embeddings]:
    """Run one batch, filled up with black images: a batch's size shows in the last bits of a product."""
    full = np.zeros((BATCH, *pixels.shape[1:]), dtype=np.uint8)
    full[: len(pixels)] = pixels
    with torch.inference_mode(), autocast(vit):
        tokens, pooled = vit.trunk(full)
    half = tokens[: len(pixels)].half().cpu().numpy()
    if not np.isfinite(half).all():
        raise IntaglioError("the trunk's output does not fit float16; choose another backbone, or a shallower trunk")
    return half, pooled[: len(pixels)].float().cpu().numpy()


def _pack(images: Sequence[bytes], batches: Sequence[_Batch]) -> Arrays:
    tokens, pooled = (np.concatenate(part) for part in zip(*batches, strict=True))
    names = np.frombuffer(b"".join(images), dtype=np.uint8).reshape(len(images), -1)
    checksums = np.array([_checksum(*row) for row in zip(names, pooled, tokens, strict=True)], dtype=np.uint32)
    return {"images": names, "checksums": checksums, "pooled": pooled, "tokens": tokens}


def _checksum(image: NDArray[np.uint8], pooled: Embeddings, tokens: HalfTokens) -> int:
    return zlib.crc32(tokens.tobytes(), zlib.crc32(pooled.tobytes(), zlib.crc32(image.tobytes())))


def _written(segments_folder: Path, computed: Iterator[_Computed]) -> Iterator[_Segment]:
    """Yield the segments, each written while the next one is computed; else a GPU would wait for the disk."""
    with ThreadPoolExecutor(1) as writer:
        ahead: Future[_Segment] | None = None
        for images, batches in computed:
            if ahead:
                yield ahead.result()
            ahead = writer.submit(_write, segments_folder, images, batches)
        if ahead:
            yield ahead.result()


def _write(segments_folder: Path, images: Sequence[bytes], batches: Sequence[_Batch]) -> _Segment:
    """Write a segment under the hash of the images in it, so that equal work ends in one file."""
    arrays = _pack(images, batches)
    path = segments_folder / f"{hashlib.sha256(arrays['images'].tobytes()).hexdigest()[:32]}.safetensors"
    write_arrays(path, arrays)
    try:
        return _open(path)
    except FileNotFoundError:  # another process, with a small cap, has evicted it already
        return _Segment(path, **arrays)
