"""An output file that is killed, resumed, reordered and joined: every row once."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.errors import IntaglioError
from components.inference.image_paths import listed_paths
from components.inference.prediction_files import COLUMNS, FORMATS, Format
from components.inference.resumable_output import INDEX, Done, check_output, open_output, parts_folder

RUN = {"bundle": "abc", "paths": ["in"]}
GUESSES = [{"task": "t", "label": "ä", "probability": 0.5}, {"task": "t", "label": 'b,"', "probability": 0.25}]
ROWS: list[dict[str, Any]] = [
    {"path": "a,b.png", "task": "t", "label": "ä", "task_probability": 1.0, "probability": 0.5, "p_value": 0.1},
    {"path": 'say "x".png', "error": "no such file"},
    {"path": "new\nline.png", "task": "unknown", "label": None, "p_value": 0.001},
]


class KilledError(Exception):
    pass


def write(file: Path, paths: list[str], stop: int | None = None) -> None:
    """One process of a run: what is done is skipped; `stop` rows later it is interrupted."""
    with open_output(file, list(COLUMNS), RUN) as output:
        todo = [path for path in paths if not output.done.take(path)]
        for number, path in enumerate(todo):
            if number == stop:
                raise KilledError
            output.add({"path": path, "label": path.upper()})
        output.finish()


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_keeps_every_value(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"out{suffix}"
    with open_output(file, list(COLUMNS), RUN) as output:
        for row in ROWS:
            output.add(row | ({"top": GUESSES} if row.get("task") else {}))
            output.flush()
        output.finish()
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    read = {
        ".parquet": pd.read_parquet,
        ".csv": lambda path: pd.read_csv(path).assign(top=lambda table: table["top"].map(json.loads)),
        ".jsonl": lambda path: pd.read_json(path, lines=True),
    }
    table = read[suffix](file)
    assert list(table.columns) == list(COLUMNS)
    for name in ("path", "task", "label", "error"):
        assert [None if pd.isna(value) else value for value in table[name]] == [row.get(name) for row in ROWS]
    assert table["p_value"][2] == 0.001
    assert list(table["top"][0]) == GUESSES


@pytest.mark.parametrize("suffix", FORMATS)
def test_parts_of_an_interrupted_run_are_readable_files(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"out{suffix}"
    with pytest.raises(KilledError):
        write(file, ["a", "b", "c"], stop=2)
    assert not file.exists()
    (part,) = parts_folder(file).glob("part-*")
    assert list(listed_paths(part)) == ["a", "b"]
    if suffix == ".parquet":
        assert list(pd.read_parquet(parts_folder(file))["path"]) == ["a", "b"]


@settings(max_examples=40)
@given(st.lists(st.sampled_from("abcdefgh"), max_size=12), st.lists(st.integers(0, 5), max_size=4), st.randoms())
def test_exactly_once_whatever_the_order_and_the_interruptions(
    tmp_path_factory: pytest.TempPathFactory, paths: list[str], stops: list[int], random: Any
) -> None:
    """A path that is named three times gets three rows."""
    file = tmp_path_factory.mktemp("once") / "out.csv"
    for stop in stops:
        random.shuffle(paths)
        try:
            write(file, paths, stop)
        except KilledError:
            continue
        break
    if not file.exists():
        write(file, paths)
    assert Counter(listed_paths(file)) == Counter(paths)


def test_rows_reach_the_disk_while_the_run_goes_on(tmp_path: Path) -> None:
    with open_output(tmp_path / "many.jsonl", list(COLUMNS), RUN, part_rows=10) as output:
        for number in range(25):
            output.add({"path": str(number)})
        assert len(list(output.folder.glob("part-*"))) == 2
    with open_output(tmp_path / "slow.jsonl", list(COLUMNS), RUN, part_seconds=0.0) as output:
        output.add({"path": "slow"})
        assert len(list(output.folder.glob("part-*"))) == 1


def test_joined_row_groups_are_large(tmp_path: Path) -> None:
    file = tmp_path / "out.parquet"
    with open_output(file, ["path"], RUN) as output:
        for number in range(30):
            output.add({"path": str(number)})
            output.flush()
        output.finish()
    assert pq.ParquetFile(file).num_row_groups == 1


def test_no_rows_are_a_file_with_columns(tmp_path: Path) -> None:
    for suffix in FORMATS:
        write(tmp_path / f"out{suffix}", [])
    assert list(pd.read_parquet(tmp_path / "out.parquet").columns) == list(COLUMNS)
    assert (tmp_path / "out.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_another_run_is_not_resumed(tmp_path: Path) -> None:
    file = tmp_path / "out.csv"
    with pytest.raises(KilledError):
        write(file, ["a", "b"], stop=1)
    with (
        pytest.raises(IntaglioError, match=r"out.csv.parts: the interrupted run had bundle 'abc', not 'other'; repeat"),
        open_output(file, list(COLUMNS), RUN | {"bundle": "other"}),
    ):
        pass
    write(file, ["a", "b"])
    assert Counter(listed_paths(file)) == Counter("ab")


def test_what_may_be_done_with_a_file(tmp_path: Path) -> None:
    file = tmp_path / "out.csv"
    assert check_output(file, resume=False)
    assert check_output(file, resume=True)
    with pytest.raises(KilledError):
        write(file, ["a", "b"], stop=1)
    assert check_output(file, resume=True)
    with pytest.raises(IntaglioError, match=r"holds an interrupted run; add --resume"):
        check_output(file, resume=False)
    write(file, ["a", "b"])
    assert not check_output(file, resume=True)
    with pytest.raises(IntaglioError, match=r"out.csv: exists already"):
        check_output(file, resume=False)
    with pytest.raises(IntaglioError, match=r"out.xls: expected a name that ends with .parquet, .csv, .jsonl"):
        check_output(tmp_path / "out.xls", resume=False)


def test_a_kill_after_the_file_is_joined(tmp_path: Path) -> None:
    """The parts are all there still: the resumed run joins them once more."""
    file = tmp_path / "out.csv"
    with open_output(file, list(COLUMNS), RUN) as output:
        output.add({"path": "a"})
        output.add({"path": "b"})
        output.flush()
        shutil.copytree(output.folder, tmp_path / "before")
        output.finish()
    (tmp_path / "before").rename(parts_folder(file))
    assert check_output(file, resume=True)
    write(file, ["b", "a"])
    assert Counter(listed_paths(file)) == Counter("ab")
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


@pytest.mark.parametrize("name", ["part-", INDEX])
def test_a_kill_while_the_parts_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The file is complete; the next check removes the rest."""
    file = tmp_path / "out.csv"
    unlink = Path.unlink

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith(name) and path.parent == parts_folder(file):
            raise KilledError
        unlink(path, missing_ok)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Path, "unlink", unlinked)
        write(file, ["a", "b"])
    assert not check_output(file, resume=True)
    assert Counter(listed_paths(file)) == Counter("ab")
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_a_folder_without_an_index_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "out.csv"
    parts_folder(file).mkdir()
    (parts_folder(file) / "part-000000.csv").write_text("path\nmine.png\n")
    with pytest.raises(IntaglioError, match="unknown what it belongs to"):
        write(file, ["a"])
    assert len(list(parts_folder(file).iterdir())) == 1


def hold(file: Path, ready: Any, leave: Any) -> None:
    with open_output(file, list(COLUMNS), RUN):
        ready.set()
        leave.wait()


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    fresh = multiprocessing.get_context("spawn")
    ready, leave = fresh.Event(), fresh.Event()
    other = fresh.Process(target=hold, args=(tmp_path / "out.csv", ready, leave))
    other.start()
    assert ready.wait(60)
    with pytest.raises(IntaglioError, match="another process is writing there"):
        write(tmp_path / "out.csv", ["a"])
    leave.set()
    other.join()
    write(tmp_path / "out.csv", ["a"])


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(FORMATS, ".csv", Format(full, full))
    with pytest.raises(IntaglioError, match="no space left on device; free some space"):
        write(tmp_path / "out.csv", ["a"])


def test_what_is_done_is_counted() -> None:
    done = Done.of([["a", "b"], [], ["a"]])
    assert len(done) == 3
    assert [done.take(path) for path in ("a", "c", "a", "a")] == [True, False, True, False]
    assert len(done) == 1
    assert not Done.of([]).take("a")
