"""What a person names, and in which order the images come."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.data.image_folder import walk_images
from components.errors import IntaglioError
from components.inference.image_paths import STDIN, Inputs, as_text, listed_paths

LIST = ["a.png", "deep/b c.png", "a.png"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (
        "in/b.png",
        "in/b/1.JPG",
        "in/b-1.png",
        "in/a/c.webp",
        "in/.hidden/x.png",
        "in/.x.png",
        "in/notes.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_files_folders_and_patterns_as_a_shell_user_means_them(folder: Path) -> None:
    images = ["in/a/c.webp", "in/b-1.png", "in/b.png", "in/b/1.JPG"]
    assert list(Inputs(("in",))) == images
    assert list(Inputs(("./in/b.png", "in/notes.txt"))) == ["./in/b.png", "in/notes.txt"]  # as they were typed
    assert list(Inputs(("in/b*.png", "i*"))) == ["in/b-1.png", "in/b.png", *images]
    assert list(Inputs(("in/**/c.*",))) == ["in/a/c.webp"]
    assert list(Inputs((f"{folder}/in/b*",))) == [f"{folder}/in/{name}" for name in ("b/1.JPG", "b-1.png", "b.png")]
    assert Inputs(("in", "in/b.png")).count() == 5


def test_what_leads_to_no_image_comes_back_to_get_its_error(folder: Path) -> None:
    names = ("nowhere.png", "empty", "no*.gif", "a**b")
    assert list(Inputs(names)) == list(names)


def test_links_to_folders_are_not_followed_and_an_unreadable_folder_is_empty(folder: Path) -> None:
    (folder / "in" / "loop").symlink_to(folder / "in", target_is_directory=True)
    assert len(list(Inputs(("in",)))) == 4
    assert list(walk_images(folder / "in" / "b.png")) == []


@given(st.sets(st.lists(st.sampled_from(["a", "a.b", "a-", "B", "é"]), min_size=1, max_size=3).map(tuple), max_size=8))
def test_a_walk_is_sorted_by_posix_path(tmp_path_factory: pytest.TempPathFactory, names: set[tuple[str, ...]]) -> None:
    root = tmp_path_factory.mktemp("walk")
    for parts in names:
        file = root.joinpath(*parts[:-1], f"{parts[-1]}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    found = [path.relative_to(root).as_posix() for path in walk_images(root)]
    assert found == sorted("/".join(parts) + ".png" for parts in names)


def write_list(file: Path, column: str = "path") -> None:
    table = pd.DataFrame({"other": [1, 2, 3], column: LIST})
    match file.suffix:
        case ".parquet":
            table.to_parquet(file)
        case ".csv":
            table.to_csv(file, index=False)
        case ".jsonl":
            table.to_json(file, orient="records", lines=True)
        case _:
            file.write_text("\ufeffa.png\r\n\ndeep/b c.png\na.png")


@pytest.mark.parametrize("name", ["l.txt", "list", "l.csv", "l.parquet", "l.jsonl"])
def test_lists_of_every_kind(tmp_path: Path, name: str) -> None:
    write_list(tmp_path / name)
    inputs = Inputs(listed=str(tmp_path / name))
    inputs.check()
    assert list(inputs) == LIST
    assert inputs.count() == 3
    assert list(Inputs(("x.png",), str(tmp_path / name))) == ["x.png", *LIST]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_the_column_of_paths(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"list{suffix}"
    write_list(file, "image")
    assert list(listed_paths(file)) == LIST
    write_list(file, "where")
    assert list(listed_paths(file, "where")) == LIST
    for column in (None, "elsewhere"):
        with pytest.raises(IntaglioError, match=rf"list{suffix}: no column .* \(it has other, where\); name it with"):
            Inputs(listed=str(file), column=column).check()


def test_empty_cells_name_nothing(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path,x\n,1\na.png,2\n")
    (tmp_path / "l.jsonl").write_text('{"path": null}\n\n{"path": "a.png"}\n')
    pd.DataFrame({"path": [None, "", "a.png"]}).to_parquet(tmp_path / "l.parquet")
    for suffix in ("csv", "jsonl", "parquet"):
        assert list(listed_paths(tmp_path / f"l.{suffix}")) == ["a.png"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.parquet", "rubbish", "not a parquet file"),
        ("l.jsonl", '{"path": "a"}\n{"pa', "line 2: not JSON"),
        ("l.jsonl", '["a.png"]', "line 1: expected an object"),
        ("l.csv", "", "it has none"),
        ("l.csv", "path\n" + "x" * 200_000, "not CSV"),
    ],
)
def test_rubbish_as_a_list(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(IntaglioError, match=message) as caught:
        list(Inputs(listed=str(tmp_path / name)))
    assert str(tmp_path / name) in str(caught.value)


def test_a_parquet_column_of_numbers(tmp_path: Path) -> None:
    pd.DataFrame({"path": [1, 2]}).to_parquet(tmp_path / "l.parquet")
    with pytest.raises(IntaglioError, match="holds int64; expected paths as text"):
        Inputs(listed=str(tmp_path / "l.parquet")).check()


def test_a_list_that_is_not_there(folder: Path) -> None:
    for name, message in (("nowhere.txt", "no such file; expected a list"), ("in", "a folder; expected a list")):
        with pytest.raises(IntaglioError, match=message):
            Inputs(listed=name).check()


def test_standard_input_is_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=os.fdopen(reader, "rb")))
    os.write(writer, b"a.png\n")
    paths = iter(Inputs((STDIN,)))
    assert next(paths) == "a.png"  # while the writer has not ended
    os.write(writer, b"b.png\n")
    os.close(writer)
    assert list(paths) == ["b.png"]
    assert Inputs((STDIN,)).count() is None
    with pytest.raises(IntaglioError, match="named twice"):
        Inputs((STDIN,), STDIN).check()


def test_a_pipe_as_a_list_is_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    inputs = Inputs(listed=str(pipe))
    inputs.check()
    assert inputs.count() is None
    writer = threading.Thread(target=pipe.write_text, args=("a.png\nb.png\n",))
    writer.start()
    assert list(inputs) == ["a.png", "b.png"]
    writer.join()


def test_names_that_are_not_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"caf\xe9.png\ncaf\xc3\xa9.png\n")))
    first, second = Inputs((STDIN,))
    assert os.fsencode(first) == b"caf\xe9.png"
    assert json.loads(json.dumps(as_text(first))) == "caf\\xe9.png"
    assert as_text(second) == "café.png"
