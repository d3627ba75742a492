"""The parser of image folders: which images it finds, and which folders it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from folder_shapes import ACCEPTED, PETS, REFUSED, build
from hypothesis import given
from hypothesis import strategies as st

from components.data.image_folder import FoundImage, ImageFolder, parse_image_folder, read_image_folder, walk_images
from components.errors import IntaglioError


def found(*names: str) -> ImageFolder:
    return parse_image_folder("pets", names)


@pytest.mark.parametrize("shape", ACCEPTED)
def test_what_can_be_learned_is_accepted(shape: str, tmp_path: Path) -> None:
    folder = read_image_folder(build(tmp_path / "pets", ACCEPTED[shape]))
    assert len(folder.classes) == (1 if shape == "one class" else 2)
    assert len(folder.images) >= 2


@pytest.mark.parametrize("shape", REFUSED)
def test_what_cannot_be_learned_is_refused_in_one_line(shape: str, tmp_path: Path) -> None:
    entries, message = REFUSED[shape]
    with pytest.raises(IntaglioError, match=message) as caught:
        read_image_folder(build(tmp_path / "pets", entries))
    assert str(caught.value).isprintable()


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntaglioError, match="pets: no such folder; expected one folder of images per class in it"):
        read_image_folder(tmp_path / "pets")
    (tmp_path / "pets").touch()
    with pytest.raises(IntaglioError, match="pets: not a folder; expected one with a folder of images per class"):
        read_image_folder(tmp_path / "pets")


def test_a_folder_whose_own_name_cannot_be_printed_is_refused_in_one_line(tmp_path: Path) -> None:
    for entries in (PETS, (), (*PETS, "cat/more -> ../dog")):
        with pytest.raises(IntaglioError) as caught:
            read_image_folder(build(tmp_path / f"two\nlines{len(entries)}", entries))
        assert str(caught.value).isprintable()


def test_a_folder_that_may_not_be_opened_is_refused(tmp_path: Path) -> None:
    deep = build(tmp_path / "pets", PETS) / "cat"
    here = os.open(deep, os.O_RDONLY)
    for _ in range(40):  # longer than a path may be
        os.mkdir("x" * 200, dir_fd=here)
        below = os.open("x" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    with pytest.raises(IntaglioError, match=r"x: cannot be opened \(File name too long\); make it readable"):
        read_image_folder(tmp_path / "pets")


def test_an_image_has_the_class_and_the_split_of_its_folders() -> None:
    folder = found("Train/dog/1.png", "Train/cat/deep/2.JPG", "Train/cat/1.png", "Valid/cat/3.webp")
    assert folder.images == (
        FoundImage("Train/cat/1.png", "cat", "train"),
        FoundImage("Train/cat/deep/2.JPG", "cat", "train"),
        FoundImage("Train/dog/1.png", "dog", "train"),
        FoundImage("Valid/cat/3.webp", "cat", "val"),
    )
    assert (folder.classes, folder.splits) == (("cat", "dog"), {"train", "val"})


def test_without_split_folders_an_image_has_no_split() -> None:
    folder = found(*PETS)
    assert ({image.split for image in folder.images}, folder.splits) == ({""}, set())


def test_what_is_skipped_is_counted_and_told(tmp_path: Path) -> None:
    entries = (*PETS, ".DS_Store", "cat/.1.png", "__MACOSX/cat/1.png", "__MACOSX/cat/2.png", "dog/@eaDir/x/y.jpg")
    folder = read_image_folder(build(tmp_path / "pets", entries))
    assert folder.skipped == 4  # a folder once
    assert folder.summary == "2 classes, 3 images (4 hidden or system files skipped)"
    assert found(*entries) == folder
    assert found(*PETS).summary == "2 classes, 3 images"


def test_pipes_and_folders_are_no_images(tmp_path: Path) -> None:
    folder = build(tmp_path / "pets", (*PETS, "cat/folder.png/"))
    os.mkfifo(folder / "cat" / "pipe.png")
    (folder / "cat" / "linked.png").symlink_to("pipe.png")
    assert [image.path for image in read_image_folder(folder).images] == list(PETS)


def test_a_linked_task_folder_is_the_folder(tmp_path: Path) -> None:
    folder = build(tmp_path / "elsewhere" / "pets", (*PETS, "cat/3.png -> 1.png"))
    (tmp_path / "link").symlink_to(folder)
    assert read_image_folder(tmp_path / "link") == read_image_folder(folder)


names = st.text(st.characters(categories=("L", "N"), include_characters="-_ "), min_size=1, max_size=6).filter(
    lambda name: name.strip() == name and name.lower() not in {"train", "training", "val", "valid", "test", "testing"}
)
files = st.dictionaries(
    st.lists(names, min_size=1, max_size=3).map(lambda parts: f"{'/'.join(parts)}.png"), st.none(), min_size=1
)
classes = st.dictionaries(names, files, min_size=2, max_size=4)


@given(
    split_folders=st.sampled_from([(), ("train",), ("Train", "Valid"), ("TRAINING", "test"), ("train", "val", "test")]),
    tree=classes,
    order=st.randoms(use_true_random=False),
)
def test_every_image_is_found_once_whatever_the_order(split_folders, tree, order) -> None:  # type: ignore[no-untyped-def]
    short = {"Train": "train", "Valid": "val", "TRAINING": "train"}
    expected = [
        FoundImage(f"{folder}/{label}/{file}".lstrip("/"), label, short.get(folder, folder))
        for folder in split_folders or ("",)
        for label in tree
        for file in tree[label]
    ]
    entries = [image.path for image in expected]
    order.shuffle(entries)
    assert found(*entries).images == tuple(sorted(expected, key=lambda image: image.path))


@given(tree=classes, litter=st.sets(st.sampled_from([".x", "__MACOSX", "Thumbs.db", "DESKTOP.INI", "@eaDir"])))
def test_litter_changes_nothing_but_its_count(tree, litter: set[str]) -> None:  # type: ignore[no-untyped-def]
    entries = [f"{label}/{file}" for label in tree for file in tree[label]]
    places = ("", *(f"{label}/" for label in tree))
    more = [f"{place}{name}{end}" for place in places for name in litter for end in ("/", "/a.png", "/cat/b.png")]
    clean, littered = found(*entries), found(*entries, *more)
    assert (littered.images, littered.splits) == (clean.images, clean.splits)
    assert littered.skipped == len(places) * len(litter)


@given(tree=classes)
def test_a_folder_on_disk_is_what_its_names_say(tmp_path_factory: pytest.TempPathFactory, tree) -> None:  # type: ignore[no-untyped-def]
    entries = sorted(f"{label}/{file}" for label in tree for file in tree[label])
    if any(f"{entry}/" in other for entry in entries for other in entries):
        return  # a file cannot be a folder too
    root = build(tmp_path_factory.mktemp("tree") / "pets", entries)
    assert read_image_folder(root) == parse_image_folder(str(root), entries)


def test_a_walk_for_prediction_is_sorted_and_leaves_litter_out(tmp_path: Path) -> None:
    entries = (
        "b.PNG",
        "a.jpg",
        "deep/c.webp",
        ".h.png",
        ".cache/d.png",
        "notes.txt",
        "__MACOSX/a.png",
        "deep/@eaDir/x.png",
    )
    folder = build(tmp_path / "any", entries)
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    assert list(walk_images(folder)) == [folder / "a.jpg", folder / "b.PNG", folder / "deep/c.webp"]
