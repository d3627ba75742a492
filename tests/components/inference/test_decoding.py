"""Decoding in processes: order, errors, bounded reading ahead, and decoders that crash."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.data.images import Limits
from components.errors import IntaglioError
from components.inference.decoding import BATCH, Decoders, decode

LIMITS = Limits(max_pixels=10_000, max_bytes=100_000, min_side=2)
SIZE = 8


class Fuse(int):
    """A limit that kills the process which compares a file of `deadly` bytes with it, as a crashing decoder would."""

    deadly = 666

    def __lt__(self, other: int) -> bool:
        if other == self.deadly:
            os.abort()
        return int(self) < other


@dataclass(frozen=True)
class Deadly(Limits):
    """Limits with a fuse."""


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """More than a batch of images; the red of image n is n."""
    paths = [tmp_path / f"{number}.png" for number in range(BATCH + 40)]
    for number, path in enumerate(paths):
        Image.new("RGB", (10, 10), (number, 0, 0)).save(path)
    return [str(path) for path in paths]


def spoil(file: str, size: int) -> None:
    Path(file).write_bytes(b"x" * size)


def reds(paths: Iterator[str], limits: Limits = LIMITS) -> dict[str, int | str]:
    """What every path was decoded to: its red, or its error."""
    found: dict[str, int | str] = {}
    with closing(Decoders(SIZE, limits, processes=2)) as decoders:
        for batch in decoders.batches(paths):
            assert batch.pixels.shape[1:] == (SIZE, SIZE, 3)
            pixels = iter(batch.pixels)
            for path, error in zip(batch.paths, batch.errors, strict=True):
                found[path] = error or int(next(pixels)[0, 0, 0])
    return found


def test_batches_come_in_order_and_a_broken_file_stops_nothing(files: list[str]) -> None:
    spoil(files[3], 10)
    paths = [*files[:70], "nowhere.png", "a\0b.png", *files[70:]]
    found = reds(iter(paths))
    assert list(found) == paths
    assert {path: value for path, value in found.items() if isinstance(value, str)} == {
        files[3]: "not an image, or a damaged header (known: PNG, JPEG, WEBP, GIF, BMP, TIFF, PPM)",
        "nowhere.png": "no such file",
        "a\0b.png": "no such file",
    }
    assert all(found[path] == number for number, path in enumerate(files) if number != 3)


@pytest.fixture
def no_decoder_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process of a pool ends before it does anything, as where there is no memory for it."""
    end = 'import os, sys\nif "--multiprocessing-fork" in sys.orig_argv:\n    os._exit(1)\n'
    (tmp_path / "sitecustomize.py").write_text(end)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("no_decoder_starts")
def test_a_handful_needs_no_process(files: list[str]) -> None:
    with closing(Decoders(SIZE, LIMITS)) as decoders:
        (batch,) = decoders.batches(iter(files[:5]))
        assert list(decoders.batches(iter([]))) == []
    assert np.array_equal(batch.pixels, decode(files[:5], SIZE, LIMITS).pixels)


def test_an_endless_stream_is_read_only_a_few_batches_ahead(files: list[str]) -> None:
    taken = count()

    def endless() -> Iterator[str]:
        while True:
            yield files[next(taken) % len(files)]

    with closing(Decoders(SIZE, LIMITS, processes=1)) as decoders:
        batches = decoders.batches(endless())
        for _ in range(3):
            next(batches)
    assert next(taken) <= 6 * BATCH


def test_a_file_that_crashes_its_decoder_gets_an_error(files: list[str]) -> None:
    for number in (5, 80):
        spoil(files[number], Fuse.deadly)
    limits = Deadly(max_pixels=10_000, max_bytes=Fuse(100_000), min_side=2)
    found = reds(iter(files), limits)
    assert {path for path, value in found.items() if isinstance(value, str)} == {files[5], files[80]}
    assert found[files[5]] == "the decoder crashed on this file"


@pytest.mark.usefixtures("no_decoder_starts")
def test_decoders_that_cannot_run_are_not_blamed_on_the_files(files: list[str]) -> None:
    with pytest.raises(IntaglioError, match="decoding processes end as soon as they start"):
        reds(iter(files))


KILLED_OWNER = """
import multiprocessing, sys, os, signal
from components.inference.decoding import Decoders
from components.data.images import Limits
if __name__ == "__main__":
    decoders = Decoders(8, Limits(10_000, 100_000, 2), processes=2)
    next(decoders.batches(iter([sys.argv[1]] * 300)))
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_owner_leaves_no_decoder_behind(files: list[str], tmp_path: Path) -> None:
    script = tmp_path / "owner.py"
    script.write_text(KILLED_OWNER)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, script, files[0]], env=env, capture_output=True, text=True, check=False)
    decoders = [int(pid) for pid in done.stdout.split()]
    assert decoders, done.stderr
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in decoders):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
