"""One output file, written so that a kill at any time loses seconds of work and no row comes twice.

During the run, rows lie in FILE.parts/ in parts that are whole or absent. At its end the parts are joined, and FILE
appears at once. A later process reads from the parts which rows are done.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.errors import IntaglioError
from components.inference.image_paths import listed_paths
from components.inference.prediction_files import Row, format_of
from components.io import atomic_file, read_json, write_json

_FINISHED = {"finished": True}
INDEX = "_run.json"  # readers of the folder as one parquet table skip names with an underscore
PART_ROWS, PART_SECONDS = 4096, 15.0  # after which a part is closed, whichever comes first
_DIGEST = "S24"
Digests = NDArray[np.bytes_]


@dataclass
class Done:
    """How many rows each path has already: a list may name a file twice, and then two rows are due.

    Attributes:
        keys: (n,), digests of 24 bytes of the distinct paths, sorted.
        left: (n,), int64, rows of each that were not taken yet.
    """

    keys: Digests
    left: NDArray[np.int64]

    @classmethod
    def of(cls, pieces: Iterable[Sequence[str]]) -> Done:
        """Count paths that come in pieces."""
        digests = [np.array([_digest(path) for path in piece], dtype=_DIGEST) for piece in pieces]
        keys, left = np.unique(np.concatenate([np.empty(0, dtype=_DIGEST), *digests]), return_counts=True)
        return cls(keys, left.astype(np.int64))

    def take(self, path: str) -> bool:
        """Return whether this occurrence of `path` has its row already; every row is taken once."""
        digest = _digest(path)
        at = int(np.searchsorted(self.keys, np.bytes_(digest)))
        if at == len(self.keys) or self.keys[at] != digest or not self.left[at]:
            return False
        self.left[at] -= 1
        return True

    def __len__(self) -> int:
        """Count the rows that were not taken."""
        return int(self.left.sum())


def _digest(path: str) -> bytes:
    # In hexadecimal: NumPy would cut zero bytes off the end.
    return hashlib.blake2b(path.encode(), digest_size=12).hexdigest().encode()


@dataclass
class ResumableOutput:
    """The open parts of one output file.

    Attributes:
        file: Where the joined rows appear at the end.
        folder: Where the parts lie until then.
        columns: Of the file, in order.
        part_rows: Rows after which a part is closed.
        part_seconds: Seconds after which a part is closed.
        done: The rows that earlier processes wrote.
    """

    file: Path
    folder: Path
    columns: tuple[str, ...]
    part_rows: int
    part_seconds: float
    done: Done
    _number: int
    _rows: list[Row] = field(default_factory=list)
    _since: float = field(default_factory=time.monotonic)

    def add(self, row: Row) -> None:
        """Take a row; it is on the disk within `part_rows` rows or at the first row after `part_seconds`."""
        self._rows.append(row)
        if len(self._rows) >= self.part_rows or time.monotonic() - self._since > self.part_seconds:
            self.flush()

    def flush(self) -> None:
        """Write the rows taken so far as one part."""
        if self._rows:
            with atomic_file(self.folder / f"part-{self._number:06}{self.file.suffix}") as part:
                format_of(self.file).write(part, self._rows, self.columns)
            self._number += 1
        self._rows, self._since = [], time.monotonic()

    def finish(self) -> None:
        """Join all parts into the file, and remove them."""
        self.flush()
        with atomic_file(self.file) as joined:
            format_of(self.file).join(joined, _parts(self.folder, self.file), self.columns)
        _remove(self.folder, self.file)


def parts_folder(file: Path) -> Path:
    """Return where the rows of an unfinished `file` lie."""
    return file.with_name(f"{file.name}.parts")


def check_output(file: Path, resume: bool) -> bool:
    """Return whether there is work to do for `file`; False where it is complete and was to be resumed.

    Raises:
        IntaglioError: it would be overwritten, an unfinished run is in the way, or its format is unknown.
    """
    format_of(file)
    folder = parts_folder(file)
    if (folder / INDEX).exists() and read_json(folder / INDEX) == _FINISHED:
        _remove(folder, file)
    elif (folder / INDEX).exists():
        if not resume:
            raise IntaglioError(f"{folder}: holds an interrupted run; add --resume to go on, or remove the folder")
        return True
    if file.exists() and not resume:
        raise IntaglioError(f"{file}: exists already; remove it or choose another name")
    return not file.exists()


@contextmanager
def open_output(
    file: Path,
    columns: Sequence[str],
    run: Mapping[str, Any],
    part_rows: int = PART_ROWS,
    part_seconds: float = PART_SECONDS,
) -> Iterator[ResumableOutput]:
    """Begin an output file, or go on with it; however the block ends, rows that were added are kept.

    Args:
        file: as `check_output` allows it.
        columns: of the file, in order.
        run: what has to be as it was when the file was begun, as JSON.
        part_rows: rows after which a part is closed.
        part_seconds: seconds after which a part is closed.

    Raises:
        IntaglioError: it was begun with another `run`, or another process is writing it.
    """
    folder = parts_folder(file)
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IntaglioError(f"{folder}: another process is writing there; wait for it or end it") from None
        _claim(folder, file, run)
        parts = _parts(folder, file)
        done = Done.of(list(listed_paths(part)) for part in parts)
        number = max((int(part.stem.removeprefix("part-")) for part in parts), default=-1) + 1
        output = ResumableOutput(file, folder, tuple(columns), part_rows, part_seconds, done, number)
        try:
            yield output
        finally:
            if folder.exists():
                output.flush()
    finally:
        os.close(handle)


def _claim(folder: Path, file: Path, run: Mapping[str, Any]) -> None:
    index = folder / INDEX
    if not index.exists():
        if _parts(folder, file):
            raise IntaglioError(f"{folder}: has no {INDEX}, so that it is unknown what it belongs to; move it away")
        write_json(index, run)
    elif changed := _changes(read_json(index), run):
        raise IntaglioError(f"{folder}: the interrupted run had {changed}; repeat it as it was, or remove the folder")


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in (*before, *(now.keys() - before.keys())) if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name)!r}, not {now.get(name)!r}" for name in names)


def _parts(folder: Path, file: Path) -> list[Path]:
    return sorted(folder.glob(f"part-*{file.suffix}"))


def _remove(folder: Path, file: Path) -> None:
    """Remove the parts of a complete file; after a kill in between, the next `check_output` removes the rest."""
    write_json(folder / INDEX, _FINISHED)
    for path in [*_parts(folder, file), *folder.glob(".*"), folder / INDEX]:  # hidden: what a killed writer left
        path.unlink(missing_ok=True)
    with suppress(OSError):  # a file that is not ours lies there
        folder.rmdir()
