"""Files: whole or not there, and read back as written."""

from __future__ import annotations

import hashlib
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components import io
from components.errors import IntaglioError


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    io.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), io.atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert io.read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_folder_leaves_the_old_folder_and_no_litter(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with io.atomic_folder(folder) as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(RuntimeError), io.atomic_folder(folder) as temporary:
        (temporary / "a").write_text("new")
        raise RuntimeError
    assert (folder / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]
    with io.atomic_folder(folder) as temporary:
        (temporary / "b").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["b"]


def test_what_a_killed_writer_kept_beside_its_output_is_removed_by_the_next(tmp_path: Path) -> None:
    output = tmp_path / "output"
    code = f"""
from pathlib import Path
import os, signal
from components.io import scratch_folder
with scratch_folder(Path({str(output)!r})) as folder:
    (folder / "large").write_text("content")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    with io.scratch_folder(output) as mine, io.scratch_folder(output) as another:
        assert set(tmp_path.iterdir()) == {mine, another}  # of living writers nothing is removed
    assert list(tmp_path.iterdir()) == []


def test_arrays_come_back_and_equal_arrays_give_equal_bytes(tmp_path: Path) -> None:
    a, b = np.arange(6.0).reshape(2, 3).T, np.array([1, 2])
    io.write_arrays(tmp_path / "1", {"a": a, "b": b})
    io.write_arrays(tmp_path / "2", {"b": b, "a": a.copy()})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    np.testing.assert_array_equal(io.read_arrays(tmp_path / "1")["a"], a)


def test_json_has_no_nan_and_knows_numpy(tmp_path: Path) -> None:
    io.write_json(tmp_path / "x", {"a": [math.nan, np.float32(0.5), (np.int64(2), math.inf)]})
    assert io.read_json(tmp_path / "x") == {"a": [None, 0.5, [2, None]]}


def test_table_and_hash(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": [1, 2]})
    io.write_table(tmp_path / "t", table)
    pd.testing.assert_frame_equal(io.read_table(tmp_path / "t"), table)
    data = (tmp_path / "t").read_bytes()
    assert io.sha256_file(tmp_path / "t") == io.sha256_bytes(data) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("read", [io.read_json, io.read_arrays, io.read_table])
def test_missing_and_damaged_files_are_named(tmp_path: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(IntaglioError, match=r"nothing.*file not found"):
        read(tmp_path / "nothing")
    (tmp_path / "rubbish").write_bytes(b"\x00\x01rubbish")
    with pytest.raises(IntaglioError, match=r"rubbish.*not "):
        read(tmp_path / "rubbish")
