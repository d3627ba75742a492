"""Sources of a stream: zips and folders by the same rules, and zips that mean harm."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from folder_shapes import ACCEPTED, PETS, REFUSED, build

from components.data.image_folder import read_image_folder
from components.errors import IntaglioError
from components.lab.sources import Item, list_source
from components.lab.stream import TaskSpec

LINKED = "linked"  # an archive holds no links


def listed(where: Path, source: str, folder: str = "", group: str | None = None) -> list[Item]:
    return list_source(TaskSpec(source=source, folder=folder, group=group), [where], 10**6)


def told(items: list[Item]) -> list[tuple[str, str, str, str, bytes]]:
    return [(item.label, item.split, item.name, item.group, item.read()) for item in items]


def test_a_source_that_is_nowhere_names_the_places(tmp_path: Path) -> None:
    with pytest.raises(IntaglioError, match=r"neither nothing\.zip nor nothing/ in"):
        listed(tmp_path, "nothing")


@pytest.mark.parametrize("inside", ["", "in/there"])
@pytest.mark.parametrize("shape", [shape for shape in ACCEPTED if LINKED not in shape])
def test_a_zip_and_a_folder_are_read_as_a_task_is(shape: str, inside: str, tmp_path: Path) -> None:
    folder = build(tmp_path / "pets" / inside, ACCEPTED[shape])
    from_folder = listed(tmp_path, "pets", inside)
    shutil.make_archive(str(tmp_path / "zips" / "pets"), "zip", tmp_path / "pets")
    assert told(listed(tmp_path / "zips", "pets", inside)) == told(from_folder)
    as_task = read_image_folder(folder)
    assert sorted(item.label for item in from_folder) == sorted(image.label for image in as_task.images)
    if as_task.splits:
        tested = sum(image.split == "test" for image in as_task.images)
        assert sum(item.split == "test" for item in from_folder) == tested


@pytest.mark.parametrize("shape", [shape for shape in REFUSED if "link" not in shape and "encoding" not in shape])
def test_a_zip_is_refused_as_a_folder_is(shape: str, tmp_path: Path) -> None:
    folder = build(tmp_path / "pets", REFUSED[shape][0])
    shutil.make_archive(str(tmp_path / "pets"), "zip", folder)
    with pytest.raises(IntaglioError) as of_folder:
        read_image_folder(folder)
    with pytest.raises(IntaglioError) as of_zip:
        listed(tmp_path, "pets")
    assert str(of_zip.value) == str(of_folder.value).replace(str(folder), f"{folder}.zip")


def test_names_and_groups_follow_from_the_path(tmp_path: Path) -> None:
    build(tmp_path / "pets", (*PETS, "cat/more/x_007.png"))
    found = {item.name: (item.label, item.group) for item in listed(tmp_path, "pets")}
    assert found["2.png"] == ("cat", "cat//2.png")
    assert found["more_x_007.png"] == ("cat", "cat//more/x_007.png")
    grouped = {item.name: item.group for item in listed(tmp_path, "pets", group=r"_(\d+)$")}
    assert (grouped["more_x_007.png"], grouped["2.png"]) == ("007", "cat//2.png")
    build(tmp_path / "split", ("Train/cat/1.png", "Train/dog/1.png", "Test/dog/2.png"))
    assert [(item.split, item.name, item.group) for item in listed(tmp_path, "split")] == [
        ("train", "Train_1.png", "cat/Train/1.png"),
        ("test", "Test_2.png", "dog/Test/2.png"),
        ("train", "Train_1.png", "dog/Train/1.png"),
    ]


def test_a_zip_that_means_harm_writes_nothing_outside_and_no_bomb_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("../../escape.png", "/train/a/absolute.png", "train/../../x.png", "train/a b/../c.png"):
            archive.writestr(name, b"x")
        archive.writestr("train/.hidden/y.png", b"x")
        for label in ("a b", "c"):
            archive.writestr(f"train/{label}/1.png", b"x")
    assert [(item.label, item.name) for item in listed(tmp_path, "bad")] == [
        ("a b", "train_1.png"),
        ("c", "train_1.png"),
    ]
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/big.png", b"\0" * 10_000_000)
        archive.writestr("b/small.png", b"x")
    big, small = listed(tmp_path, "bomb")
    with pytest.raises(IntaglioError, match=r"big\.png: more than data\.max_bytes"):
        big.read()
    assert small.read() == b"x"
    (tmp_path / "rubbish.zip").write_bytes(b"no zip")
    with pytest.raises(IntaglioError, match="not a readable zip"):
        listed(tmp_path, "rubbish")


def test_a_zip_that_lists_an_image_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        for name in ("a/1.png", "b/1.png", "b//1.png"):
            archive.writestr(name, name)
    with pytest.raises(IntaglioError, match=r"twice\.zip: b//1\.png is in it twice; pack it anew"):
        listed(tmp_path, "twice")
