"""Image files to batches of pixels in a few processes of their own: ahead of the device, and in bounded memory.

Processes, since a decoder that crashes on a hostile file ends only its own process: the file gets an error, and a new
process decodes the rest.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np

from components.arrays import Pixels
from components.data.images import Limits, open_image, to_square
from components.errors import IntaglioError
from components.inference.image_paths import why_unusable

BATCH = 64  # images a forward pass
_CHUNK = 16  # files a process is given at a time
_AHEAD = 2  # batches that are decoded while one is used


@dataclass(frozen=True)
class Decoded:
    """One batch of files, in order.

    Attributes:
        paths: Of all n files.
        pixels: (m, size, size, 3), uint8, RGB, of the m files without an error.
        errors: One for each path; "" where there is none.
    """

    paths: tuple[str, ...]
    pixels: Pixels
    errors: tuple[str, ...]


def decode(paths: Sequence[str], size: int, limits: Limits) -> Decoded:
    """Read files in this process; one that cannot be used has an error and stops nothing.

    Args:
        paths: of the images.
        size: side of the square that each becomes, in pixels.
        limits: what an image may cost.
    """
    return _batch(paths, [_read(path, size, limits) for path in paths], size)


class Decoders:
    """A pool of decoding processes. It starts at the second batch: a handful of files needs none.

    For one thread. Close it, as with `contextlib.closing`.
    """

    def __init__(self, size: int, limits: Limits, processes: int | None = None) -> None:
        """Prepare the pool.

        Args:
            size: side of the square that each image becomes, in pixels.
            limits: what an image may cost.
            processes: how many; None: one a core, at most eight.
        """
        self.size, self.limits = size, limits
        self.processes = processes or min(8, os.cpu_count() or 1)
        self._pool: ProcessPoolExecutor | None = None

    def close(self) -> None:
        """End the processes without waiting for their work."""
        self._drop(self._pool)

    def batches(self, paths: Iterator[str]) -> Iterator[Decoded]:
        """Yield decoded batches of BATCH files, in the order of `paths`, which is read no further than is needed."""
        first = list(islice(paths, BATCH))
        if len(first) < BATCH:
            if first:
                yield decode(first, self.size, self.limits)
            return
        ahead: deque[list[_Job]] = deque()
        paths = chain(first, paths)
        while batch := list(islice(paths, BATCH)):
            ahead.append([self._submit(batch[at : at + _CHUNK]) for at in range(0, len(batch), _CHUNK)])
            if len(ahead) > _AHEAD:
                yield self._finished(ahead.popleft())
        while ahead:
            yield self._finished(ahead.popleft())

    def _submit(self, paths: Sequence[str]) -> _Job:
        fresh, pool = self._pool is None, self._running()
        try:
            return _Job(paths, pool, pool.submit(_read_all, paths, self.size, self.limits))
        except (BrokenProcessPool, OSError):  # a crash that no result has shown yet, or this instant
            self._drop(pool)
            if fresh:  # it is no crash: the system starts no process
                raise
            return self._submit(paths)

    def _running(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # A fork of a process with threads, which torch has, may hang.
            fresh = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.processes, fresh, initializer=_begin)
        return self._pool

    def _drop(self, pool: ProcessPoolExecutor | None) -> None:
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
        if pool is self._pool:
            self._pool = None

    def _finished(self, jobs: Sequence[_Job]) -> Decoded:
        paths = [path for job in jobs for path in job.paths]
        return _batch(paths, [found for job in jobs for found in self._result(job)], self.size)

    def _result(self, job: _Job) -> list[Pixels | str]:
        try:
            return job.future.result()
        except BrokenProcessPool:
            self._drop(job.pool)
        # One file crashed its decoder, and the pool's other jobs ended with it: one by one shows which.
        return [self._alone(path) for path in job.paths]

    def _alone(self, path: str) -> Pixels | str:
        job = self._submit([path])
        try:
            return job.future.result()[0]
        except BrokenProcessPool:
            self._drop(job.pool)
        self._check()
        return "the decoder crashed on this file"

    def _check(self) -> None:
        """Tell a file that crashes its decoder from decoders that cannot run."""
        try:
            self._running().submit(os.getpid).result()
        except BrokenProcessPool:
            raise IntaglioError("decoding processes end as soon as they start; is there memory for them?") from None


@dataclass(frozen=True)
class _Job:
    """Files that are being decoded: their pixels, or why there are none."""

    paths: Sequence[str]
    pool: ProcessPoolExecutor
    future: Future[list[Pixels | str]]


def _begin() -> None:
    """Prepare a decoding process: the owner handles Ctrl-C, and this process ends with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_owner, daemon=True).start()


def _end_with_owner() -> None:
    if owner := multiprocessing.parent_process():
        wait([owner.sentinel])
        os._exit(1)


def _read_all(paths: Sequence[str], size: int, limits: Limits) -> list[Pixels | str]:
    return [_read(path, size, limits) for path in paths]


def _read(path: str, size: int, limits: Limits) -> Pixels | str:
    file = Path(path)
    try:
        return to_square(open_image(file, limits), size)
    except (IntaglioError, OSError, ValueError, MemoryError) as error:  # ValueError: a zero byte in the path
        return why_unusable(file, error) or type(error).__name__


def _batch(paths: Sequence[str], found: Sequence[Pixels | str], size: int) -> Decoded:
    pixels = [one for one in found if not isinstance(one, str)]
    stacked = np.stack(pixels) if pixels else np.empty((0, size, size, 3), dtype=np.uint8)
    return Decoded(tuple(paths), stacked, tuple(one if isinstance(one, str) else "" for one in found))
