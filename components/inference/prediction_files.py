"""Rows of predictions as files: parquet, CSV or JSON lines, written in pieces and joined in constant memory."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import IntaglioError
from components.inference.prediction_schema import ARRAY, FILE, NUMBER, STRING, TOP, Field

Row = Mapping[str, Any]

_GROUP = 2**14  # rows in a row group of a joined parquet file; they are in memory while it is written


def _arrow_type(field: Field) -> pa.DataType:
    if field.type == ARRAY:
        return pa.list_(pa.struct({item.name: _arrow_type(item) for item in field.items}))
    return {STRING: pa.string(), NUMBER: pa.float64()}[field.type]


COLUMNS = {field.name: _arrow_type(field) for field in FILE}


@dataclass(frozen=True)
class Format:
    """How rows are written to one file, and how such files are joined to one; both take the columns."""

    write: Callable[[Path, Sequence[Row], Sequence[str]], None]
    join: Callable[[Path, Sequence[Path], Sequence[str]], None]


def format_of(file: Path) -> Format:
    """Return the format that a file's suffix names.

    Raises:
        IntaglioError: it names none of FORMATS.
    """
    if file.suffix.lower() not in FORMATS:
        raise IntaglioError(f"{file}: expected a name that ends with {', '.join(FORMATS)}")
    return FORMATS[file.suffix.lower()]


def _write_parquet(file: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows), _schema(columns)), file)


def _join_parquet(file: Path, parts: Sequence[Path], columns: Sequence[str]) -> None:
    with pq.ParquetWriter(file, _schema(columns)) as writer:
        waiting: list[pa.Table] = []
        for part in parts:
            waiting.append(pq.read_table(part))
            if sum(map(len, waiting)) >= _GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting.clear()
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


def _schema(columns: Sequence[str]) -> pa.Schema:
    return pa.schema([(name, COLUMNS[name]) for name in columns])


def _write_csv(file: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            # CSV has no lists.
            writer.writerow(json.dumps(row.get(name, [])) if name == TOP.name else row.get(name) for name in columns)


def _join_csv(file: Path, parts: Sequence[Path], columns: Sequence[str]) -> None:
    _write_csv(file, [], columns)
    with file.open("ab") as out:
        for part in parts:
            with part.open("rb") as rows:
                rows.readline()  # the header: no column has a line break in its name
                shutil.copyfileobj(rows, out)


def _write_json_lines(file: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    lines = (json.dumps({name: row.get(name) for name in columns}) + "\n" for row in rows)
    file.write_text("".join(lines), encoding="utf-8")


def _join_json_lines(file: Path, parts: Sequence[Path], _columns: Sequence[str]) -> None:
    with file.open("wb") as out:
        for part in parts:
            with part.open("rb") as rows:
                shutil.copyfileobj(rows, out)


FORMATS = {
    ".parquet": Format(_write_parquet, _join_parquet),
    ".csv": Format(_write_csv, _join_csv),
    ".jsonl": Format(_write_json_lines, _join_json_lines),
}
