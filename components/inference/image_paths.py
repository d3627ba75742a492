"""The images that a command names, as a stream of paths: files, folders, patterns, lists and standard input."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.data.image_folder import walk_images
from components.errors import IntaglioError

STDIN = "-"
PATH_COLUMNS = ("path", "image", "file")  # what a table may call its column of paths, the first that is there
_ROWS = 4096  # of a table in memory at a time


@dataclass(frozen=True)
class Inputs:
    """Where the images are. Paths that a list names are relative to the current folder, as those on a command line.

    Attributes:
        named: Files, folders (all images below) and patterns; or STDIN, for paths on standard input.
        listed: A file of paths, one a line, or a table (.csv, .parquet, .jsonl) with a column of them; or STDIN.
        column: The table's column of paths, where it is none of PATH_COLUMNS.
    """

    named: tuple[str, ...] = ()
    listed: str | None = None
    column: str | None = None

    def check(self) -> None:
        """Check what can be checked before anything is read.

        Raises:
            IntaglioError: the list is missing or has no such column, or standard input is asked for twice.
        """
        if [*self.named, self.listed].count(STDIN) > 1:
            raise IntaglioError(f"{STDIN!r} (standard input) was named twice; it can be read once")
        if self.listed not in (None, STDIN):
            path = Path(str(self.listed))
            if path.is_dir() or not path.exists():
                raise IntaglioError(
                    f"{path}: {'a folder' if path.is_dir() else 'no such file'}; expected a list of paths"
                )
            if path.is_file():  # a pipe can be read only once
                next(listed_paths(path, self.column), None)

    def __iter__(self) -> Iterator[str]:
        """Every path, read as it is needed; one that cannot be used comes as it is, and gets its own error later."""
        for name in self.named:
            yield from _lines(sys.stdin.buffer) if name == STDIN else _expanded(name)
        if self.listed == STDIN:
            yield from _lines(sys.stdin.buffer)
        elif self.listed is not None:
            yield from listed_paths(Path(self.listed), self.column)

    def count(self) -> int | None:
        """Count the paths; None where counting would consume them."""
        if STDIN in (*self.named, self.listed) or (self.listed is not None and not Path(self.listed).is_file()):
            return None
        return sum(1 for _ in self)


def listed_paths(file: Path, column: str | None = None) -> Iterator[str]:
    """Yield the paths in a list; blank lines and empty cells name nothing.

    Args:
        file: one path a line, or a table (.csv, .parquet, .jsonl).
        column: the table's column of paths; None: the first of PATH_COLUMNS that it has.

    Raises:
        IntaglioError: the file is damaged or has no column of paths.
    """
    readers: dict[str, Callable[[Path, str | None], Iterator[str]]] = {
        ".parquet": _from_parquet,
        ".csv": _from_csv,
        ".jsonl": _from_json_lines,
    }
    if reader := readers.get(file.suffix.lower()):
        return filter(None, reader(file, column))
    return _from_text(file)


def as_text(path: str) -> str:
    """Return a path as Unicode, in which the bytes of a name that is not UTF-8 are escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def why_unusable(path: Path, error: Exception) -> str:
    """Explain in one line why the image that a user named as `path` cannot be read."""
    if not path.exists():
        return "no such file, and no file matches" if _is_pattern(path) else "no such file"
    if path.is_dir():
        return "no images in this folder"
    return " ".join(str(error).split()).removeprefix(f"{path}: ")


def _expanded(name: str) -> Iterator[str]:
    path = Path(name)
    if path.is_dir():
        yield from _or_itself(map(str, walk_images(path)), name)
    elif path.exists() or not _is_pattern(path):
        yield name
    else:
        yield from _or_itself(_matched(path), name)


def _or_itself(found: Iterator[str], name: str) -> Iterator[str]:
    first = next(found, name)
    yield first
    yield from found


def _matched(pattern: Path) -> Iterator[str]:
    try:
        names = sorted(map(str, Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))))
    except ValueError:  # such as a**b
        names = []
    for name in names:
        yield from map(str, walk_images(Path(name))) if Path(name).is_dir() else [name]


def _is_pattern(path: Path) -> bool:
    return any(character in str(path) for character in "*?[")


def _from_text(file: Path) -> Iterator[str]:
    with file.open("rb") as lines:
        yield from _lines(lines)


def _lines(lines: IO[bytes]) -> Iterator[str]:
    """Yield a path for each line; lines are bytes, since a file's name need not be UTF-8."""
    for number, line in enumerate(lines):
        content = line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
        if name := os.fsdecode(content.rstrip(b"\r\n")):
            yield name


def _from_csv(file: Path, column: str | None) -> Iterator[str]:
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        rows = csv.DictReader(lines)
        try:
            name = _column(file, rows.fieldnames or [], column)
            for row in rows:
                yield row[name] or ""
        except csv.Error as error:
            raise IntaglioError(f"{file}: line {rows.line_num}: not CSV ({error})") from None


def _from_parquet(file: Path, column: str | None) -> Iterator[str]:
    try:
        with pq.ParquetFile(file) as table:
            name = _column(file, table.schema_arrow.names, column)
            kind = table.schema_arrow.field(name).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise IntaglioError(f"{file}: the column {name!r} holds {kind}; expected paths as text")
            for batch in table.iter_batches(_ROWS, columns=[name]):
                yield from (value or "" for value in batch.column(0).to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise IntaglioError(f"{file}: not a parquet file, or truncated ({error})") from None


def _from_json_lines(file: Path, column: str | None) -> Iterator[str]:
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row: Any = json.loads(line)
            except ValueError as error:
                raise IntaglioError(f"{file}: line {number}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise IntaglioError(f'{file}: line {number}: expected an object such as {{"path": "a.png"}}')
            yield str(row[_column(file, list(row), column)] or "")


def _column(file: Path, columns: Sequence[str], column: str | None) -> str:
    found = next((name for name in ([column] if column else PATH_COLUMNS) if name in columns), None)
    if found is None:
        missing = repr(column) if column else " or ".join(map(repr, PATH_COLUMNS))
        raise IntaglioError(
            f"{file}: no column {missing} (it has {', '.join(columns) or 'none'}); name it with --column"
        )
    return found
