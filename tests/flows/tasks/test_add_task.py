"""A folder of one's own images becomes a task, and params.yaml stays as it was otherwise."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest
from folder_shapes import ACCEPTED, REFUSED, build
from synthetic import REPOSITORY

from components.config import Stream, Task
from components.data.manifest import ingest
from components.data.task_data import read_manifest
from components.errors import IntaglioError
from components.params import load_config
from flows.tasks.add_task import add_task


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project as far as `task add` knows it: the repository's own params.yaml."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    return root


def images(folder: Path, *classes: str) -> Path:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(3):
            (folder / name / f"{number}.JPG").write_bytes(b"")
    return folder


def test_one_line_is_added_and_nothing_else_changes(root: Path) -> None:
    before = (root / "params.yaml").read_text()
    last = load_config(root / "params.yaml").tasks[-1]
    added = add_task(root, "birds", images(root / "my birds", "crow", "owl"))
    after = (root / "params.yaml").read_text()
    changes = [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]
    assert changes == [f"+     birds: {{folder: my birds, previous: {last}}}"]
    assert (added.folder, added.previous) == ("my birds", last)
    assert (added.contents.classes, len(added.contents.images)) == (("crow", "owl"), 6)
    assert load_config(root / "params.yaml").tasks[-1] == "birds"
    assert list(root.glob(".params*")) == []


def test_a_folder_elsewhere_is_recorded_whole(root: Path, tmp_path: Path) -> None:
    folder = images(tmp_path / "elsewhere", "a", "b")
    assert add_task(root, "one", folder).folder == str(folder)
    assert add_task(root, "two", images(tmp_path / "more", "a", "b")).previous == "one"


@pytest.mark.parametrize(("shared", "expected"), [("digits_low", "birds"), ("base", "base")])
def test_a_new_stream_begins_with_it_and_nothing_else_changes(root: Path, shared: str, expected: str) -> None:
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("shared: digits_low", f"shared: {shared}"))
    before = load_config(params)
    added = add_task(root, "birds", images(root / "birds", "crow", "owl"), first=True)
    after = load_config(params)
    assert (added.previous, after.tasks, after.fetch.tasks, after.embedding.shared) == (
        "base",
        ("birds",),
        (),
        expected,
    )
    same = set(type(before).model_fields) - {"stream", "fetch", "embedding"}
    assert after.model_dump(include=same) == before.model_dump(include=same)
    assert params.read_text().count("# ") > 30  # the comments
    assert add_task(root, "cars", images(root / "cars", "a", "b")).previous == "birds"


def test_split_folders_count_each_class_once(root: Path, tmp_path: Path) -> None:
    images(tmp_path / "s" / "train", "a", "b")
    images(tmp_path / "s" / "test", "a", "b")
    (tmp_path / "s" / ".cache").mkdir()
    added = add_task(root, "split", tmp_path / "s")
    assert added.contents.summary == "2 classes, 12 images (1 hidden or system files skipped)"


def test_another_params_file(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text((root / "params.yaml").read_text())
    before = (root / "params.yaml").read_text()
    add_task(root, "birds", images(tmp_path / "b", "crow", "owl"), other)
    assert (root / "params.yaml").read_text() == before
    assert "birds" in load_config(other).tasks


@pytest.mark.parametrize("name", ["Birds", "my birds", "", "-x", "a/b", "x" * 64])
def test_names_that_will_not_do(root: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(IntaglioError, match="lower-case letters"):
        add_task(root, name, images(tmp_path / "b", "crow", "owl"))


def test_what_will_not_do_leaves_params_alone(root: Path, tmp_path: Path) -> None:
    good = images(tmp_path / "good", "a", "b")
    (root / "data" / "raw" / "x").mkdir(parents=True)
    file = tmp_path / "file"
    file.write_text("")
    one = images(tmp_path / "one", "only")
    empty = images(tmp_path / "empty", "a", "b")
    (empty / "c").mkdir()
    mixed = images(tmp_path / "mixed", "train/a", "a", "b")
    add_task(root, "taken", good)
    before = (root / "params.yaml").read_text()
    for name, folder, message in [
        ("taken", one, "already in"),
        ("base", one, "stands for the frozen backbone"),
        ("birds", tmp_path / "nowhere", "no such folder"),
        ("birds", file, "not a folder"),
        ("birds", root / "data" / "raw" / "x", "rewritten by the stage `fetch`"),
        ("birds", tmp_path, "holds the project itself"),
        ("birds", good, "already the folder of task 'taken'"),
        ("birds", empty, "no images in class c"),
        ("birds", mixed, "split folders .* stand beside other folders"),
    ]:
        with pytest.raises(IntaglioError, match=message) as caught:
            add_task(root, name, folder)
        assert "\n" not in str(caught.value)
    assert (root / "params.yaml").read_text() == before


def test_a_broken_params_file_is_not_touched(root: Path, tmp_path: Path) -> None:
    (root / "params.yaml").write_text("seed: 0\n")
    with pytest.raises(IntaglioError):
        add_task(root, "birds", images(tmp_path / "b", "crow", "owl"))
    assert (root / "params.yaml").read_text() == "seed: 0\n"


@pytest.mark.parametrize("shape", [*ACCEPTED, *REFUSED])
def test_what_ingest_would_refuse_is_refused_at_once_with_the_same_words(shape: str, root: Path) -> None:
    entries = ACCEPTED[shape] if shape in ACCEPTED else REFUSED[shape][0]
    folder = build(root / "images" / "pets", entries)
    config = load_config(root / "params.yaml")
    config = config.model_copy(update={"stream": Stream(tasks={"pets": Task(folder="images/pets", previous="base")})})
    before = (root / "params.yaml").read_text()
    refusals = {"ingest": "", "task add": ""}
    try:
        ingest(root, config, "pets")
    except IntaglioError as error:
        refusals["ingest"] = str(error)
    try:
        added = add_task(root, "pets", folder)
    except IntaglioError as error:
        refusals["task add"] = str(error)
        assert (root / "params.yaml").read_text() == before
    else:
        assert [image.path for image in added.contents.images] == list(read_manifest(root, "pets")["path"])
    assert refusals["task add"] == refusals["ingest"]
    assert bool(refusals["ingest"]) == (shape in REFUSED)
