"""Files: atomic writes, hashes, and the three formats of artefacts (safetensors, parquet, JSON).

A write goes to a temporary file or folder beside its target, which is synced and then renamed over the target. A
process that is killed on the way leaves the old content whole, and a temporary that the next writer of the same target
removes. The writer holds a lock on its temporary, so that the temporary of a running process is never removed:

    mkstemp .NAME.xxxxxxxx -> lock -> write -> fsync -> rename to NAME -> fsync of the folder
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from components.arrays import Arrays
from components.errors import DISK_FAULTS, IntaglioError, disk_error

_MANY_FILES = 256  # in a folder, above which one sync of the whole disk is quicker than one for each file


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success, sync it and rename it over `path`.

    A kill in between leaves the old file whole; the next write of `path` removes the temporary.

    Raises:
        IntaglioError: the disk is full or read-only, or permission is missing.
    """
    with _disk_faults_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, glob.escape(path.name))
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
            yield temporary
            _sync(temporary)
            temporary.chmod(0o644)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(handle)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success, sync it and put it in the place of `path`.

    A kill in between leaves the old folder, the new one or none, and never a part of one.

    Raises:
        IntaglioError: the disk is full or read-only, or permission is missing.
    """
    with scratch_folder(path) as temporary, scratch_folder(path) as old:
        yield temporary
        temporary.chmod(0o755)
        _sync_tree(temporary)
        if path.exists():
            path.replace(old / path.name)  # a rename: deleting in place could be killed half-way
        temporary.replace(path)
        _sync(path.parent)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` and remove it afterwards; after a kill, the next writer of `path` does.

    Raises:
        IntaglioError: the disk is full or read-only, or permission is missing.
    """
    with _disk_faults_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, glob.escape(path.name))
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def sweep(folder: Path, names: str = "*") -> None:
    """Remove the temporaries that killed writers left in `folder`.

    A running writer holds a lock on its temporary, which the kernel releases at the end of the process.

    Args:
        folder: where the targets are.
        names: glob pattern of the targets' names.
    """
    for leftover in folder.glob(f".{names}.{'?' * 8}"):
        with suppress(OSError):  # locked, or renamed or removed by its writer at this instant
            handle = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            finally:
                os.close(handle)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(folder: Path) -> None:
    paths = [folder, *folder.rglob("*")]
    if len(paths) > _MANY_FILES:
        os.sync()
    else:
        for path in paths:
            _sync(path)


@contextmanager
def _disk_faults_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            raise
        raise disk_error(path, error) from None


def sha256_bytes(data: bytes) -> str:
    """Return the hex sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file's content, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys. NaN and infinities become null: JSON has none."""
    write_text(path, json.dumps(_finite(value), indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        IntaglioError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise IntaglioError(f"{path}: file not found; run the stage that writes it") from None
    except ValueError as error:
        raise IntaglioError(f"{path}: not valid JSON ({error})") from None


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays as safetensors, in sorted order, so that equal arrays give equal bytes."""
    write_bytes(path, save({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}))


def read_arrays(path: Path) -> Arrays:
    """Read a safetensors file.

    Raises:
        IntaglioError: the file is missing or corrupt.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise IntaglioError(f"{path}: file not found; run the stage that writes it") from None
    except SafetensorError as error:
        raise IntaglioError(f"{path}: not a safetensors file, or truncated ({error})") from None


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as parquet."""
    with atomic_file(path) as temporary:
        table.to_parquet(temporary, index=False)


def read_table(path: Path) -> pd.DataFrame:
    """Read a parquet table.

    Raises:
        IntaglioError: the file is missing or corrupt.
    """
    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise IntaglioError(f"{path}: file not found; run the stage that writes it") from None
    except (OSError, ValueError) as error:
        raise IntaglioError(f"{path}: not a parquet file, or truncated ({error})") from None


def _finite(value: Any) -> Any:
    """Return `value` with plain numbers for numpy's, and None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        return _finite(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
