"""From images on disk to batches of pixels, in bounded memory; and the line that shows how far a loop is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from components.arrays import Pixels
from components.data.augment import view
from components.data.images import ImageError, Limits, open_image
from components.io import sha256_file

BATCH = 64  # images a forward pass
_DECODERS = min(8, max(2, os.cpu_count() or 1))  # threads; with two of them a GPU waits


@dataclass
class ProgressLine:
    """A printed line that shows how far a long loop is and when it ends.

    Attributes:
        what: names the work.
        total: steps until it is done.
        every: seconds between two lines, at least.
    """

    what: str
    total: int
    every: float = 2.0
    _start: float = field(default_factory=time.monotonic)
    _last: float = field(default_factory=time.monotonic)

    def at(self, done: int, note: str = "") -> None:
        """Report `done` of `total`; the last one is always printed."""
        now = time.monotonic()
        if done < self.total and now - self._last < self.every:
            return
        self._last = now
        filled = round(20 * done / max(self.total, 1))
        left = (now - self._start) * (self.total - done) / max(done, 1)
        bar = "#" * filled + "." * (20 - filled)
        print(f"{self.what} [{bar}] {done}/{self.total} ETA {left:.0f} s {note}".rstrip(), flush=True)


def pixel_batches(
    paths: Sequence[Path],
    size: int,
    limits: Limits,
    batch: int = BATCH,
    digests: Sequence[str] | None = None,
    number: int = 0,
) -> Iterator[Pixels]:
    """Decode images in order; the next batch is decoded while one is used.

    Args:
        paths: the image files.
        size: side of the results, pixels.
        limits: what an image may cost.
        batch: images at a time, at most.
        digests: the hex sha256 that each file must have; None: any.
        number: which view of each image (components/data/augment.py); 0 is the image itself, others need `digests`.

    Yields:
        (<= batch, size, size, 3) uint8.

    Raises:
        ImageError: an image cannot be read, or its sha256 is not the one in `digests`.
    """
    expected = [None] * len(paths) if digests is None else digests

    def read(path: Path, digest: str | None) -> Pixels:
        if digest is not None and sha256_file(path) != digest:
            raise ImageError(f"{path}: changed since its task was ingested; run the stage 'ingest' again")
        return view(open_image(path, limits), size, digest or "", number)

    with ThreadPoolExecutor(_DECODERS) as pool:
        ahead: list[Future[Pixels]] = []
        for start in range(0, len(paths) + batch, batch):
            rows = slice(start, start + batch)
            ready, ahead = ahead, [pool.submit(read, *item) for item in zip(paths[rows], expected[rows], strict=True)]
            if ready:
                yield np.stack([future.result() for future in ready])
