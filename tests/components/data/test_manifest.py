"""From a folder of images to a manifest: its rows and its splits."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from folder_shapes import ACCEPTED, build
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from components.config import Config, Stream, Task
from components.data import expectations, images
from components.data.image_folder import read_image_folder
from components.data.images import ImageFacts, Limits
from components.data.manifest import COLUMNS, assign_splits, ingest, manifest_of
from components.data.task_data import SPLITS, read_manifest, split_of
from components.errors import IntaglioError, TransientError
from components.io import sha256_file
from components.params import load_config

FRACTIONS = {"test": 0.25, "val": 0.15}


@pytest.fixture
def config() -> Config:
    config = load_config(Path(__file__).parents[3] / "params.yaml")
    return config.model_copy(update={"stream": Stream(tasks={"pets": Task(folder="pets", previous="base")})})


def paint(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def fill(folder: Path, images: int = 10, start: int = 0) -> None:
    for number in range(start, start + images):
        paint(folder / f"{number:03d}.png", zlib.crc32(f"{folder.name}{number}".encode()))


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two classes of ten images each."""
    for label in ("cat", "dog"):
        fill(tmp_path / "pets" / label)
    return tmp_path / "pets"


def table(root: Path, config: Config) -> pd.DataFrame:
    ingest(root, config, "pets")
    return read_manifest(root, "pets")


def test_a_row_per_image_with_its_facts(tmp_path: Path, pets: Path, config: Config) -> None:
    manifest = table(tmp_path, config)
    assert tuple(manifest.columns) == COLUMNS
    assert list(manifest["path"]) == sorted(path.relative_to(pets).as_posix() for path in pets.rglob("*.png"))
    first = manifest.iloc[0]
    assert (first["path"], first["label"], first["sha256"]) == ("cat/000.png", "cat", sha256_file(pets / "cat/000.png"))
    assert (first["width"], first["height"], first["mode"], first["format"]) == (12, 10, "RGB", "PNG")
    assert (first["bytes"], first["readable"], first["error"]) == ((pets / "cat/000.png").stat().st_size, True, "")


def test_every_class_is_in_every_split(tmp_path: Path, pets: Path, config: Config) -> None:
    manifest = table(tmp_path, config)
    assert set(manifest.groupby(["label", "split"]).groups) == {(c, s) for c in ("cat", "dog") for s in SPLITS}


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path, pets: Path, config: Config) -> None:
    path = tmp_path / "data/manifests/pets.parquet"
    table(tmp_path, config)
    before = sha256_file(path)
    table(tmp_path, config)
    assert sha256_file(path) == before
    other = table(tmp_path, config.model_copy(update={"seed": 1}))
    assert sha256_file(path) != before
    assert set(other["split"]) == set(SPLITS)


def test_renaming_files_changes_no_split(tmp_path: Path, pets: Path, config: Config) -> None:
    before = table(tmp_path, config).set_index("sha256")["split"].to_dict()
    for path in pets.rglob("*.png"):
        path.rename(path.with_stem(f"new-{path.stem}"))
    assert table(tmp_path, config).set_index("sha256")["split"].to_dict() == before


def test_deeper_folders_belong_to_their_class(tmp_path: Path, pets: Path, config: Config) -> None:
    paint(pets / "cat/more/deep.png", 5)
    manifest = table(tmp_path, config).set_index("path")
    assert manifest.loc["cat/more/deep.png", "label"] == "cat"


def test_unreadable_images_stay_with_their_error(tmp_path: Path, pets: Path, config: Config) -> None:
    (pets / "cat/text.png").write_text("not an image")
    paint(pets / "cat/tiny.png", 3)
    Image.new("RGB", (2, 2)).save(pets / "cat/tiny.png")
    manifest = table(tmp_path, config).set_index("path")
    assert not manifest.loc[["cat/text.png", "cat/tiny.png"], "readable"].any()
    error = str(manifest.loc["cat/text.png", "error"])
    assert "not an image" in error
    assert str(tmp_path) not in error
    readable = pd.concat(split_of(manifest.reset_index(), split) for split in SPLITS)
    assert len(readable) == 20


def test_hidden_and_other_files_are_left_out(tmp_path: Path, pets: Path, config: Config, capsys) -> None:  # type: ignore[no-untyped-def]
    before = table(tmp_path, config)
    for name in (".hidden.png", "cat/.hidden.png", "cat/notes.txt", "LICENSE.md", ".cache/x.png", "__MACOSX/cat/x.png"):
        (pets / name).parent.mkdir(exist_ok=True, parents=True)
        (pets / name).write_text("x")
    pd.testing.assert_frame_equal(table(tmp_path, config), before)
    assert f"pets: 2 classes, 20 images (4 hidden or system files skipped) in {pets}" in capsys.readouterr().out


def layout(folder: Path, *splits: str) -> None:
    for number, split in enumerate(splits):
        for label in ("cat", "dog"):
            fill(folder / split / label, 12, start=100 * number)


def test_given_splits_are_kept(tmp_path: Path, config: Config) -> None:
    layout(tmp_path / "pets", "train", "val", "test")
    manifest = table(tmp_path, config)
    assert (manifest["path"].str.split("/").str[0] == manifest["split"]).all()
    assert set(manifest["label"]) == {"cat", "dog"}


@pytest.mark.parametrize("given_split", ["val", "test"])
def test_the_missing_split_is_carved_out_of_train(given_split: str, tmp_path: Path, config: Config) -> None:
    layout(tmp_path / "pets", "train", given_split)
    manifest = table(tmp_path, config)
    folder = manifest["path"].str.split("/").str[0]
    assert (manifest.loc[folder == given_split, "split"] == given_split).all()
    carved = ({"val", "test"} - {given_split}).pop()
    assert set(manifest.loc[folder == "train", "split"]) == {"train", carved}


def test_train_alone_is_carved_into_all(tmp_path: Path, config: Config) -> None:
    layout(tmp_path / "pets", "train")
    assert set(table(tmp_path, config)["split"]) == set(SPLITS)


@pytest.mark.parametrize("shape", ACCEPTED)
def test_a_manifest_lists_the_images_that_the_parser_finds(shape: str, tmp_path: Path, config: Config) -> None:
    folder = read_image_folder(build(tmp_path / "pets", ACCEPTED[shape]))
    manifest = table(tmp_path, config)
    assert [(row.path, row.label) for row in manifest.itertuples()] == [(i.path, i.label) for i in folder.images]
    given_splits = {image.path: image.split for image in folder.images if image.split not in ("", "train")}
    for row in manifest.itertuples():
        assert row.split == given_splits.get(row.path, row.split)


def test_splits_are_called_the_same_whatever_their_folders_are_called(tmp_path: Path, config: Config) -> None:
    layout(tmp_path / "pets", "Train", "Valid", "TESTING")
    manifest = table(tmp_path, config)
    names = {"Train": "train", "Valid": "val", "TESTING": "test"}
    assert [names[path.split("/")[0]] for path in manifest["path"]] == list(manifest["split"])


def test_an_unknown_task_lists_the_known_ones(tmp_path: Path, config: Config) -> None:
    with pytest.raises(IntaglioError, match=r"task 'cars' is not in params.yaml; known: pets"):
        ingest(tmp_path, config, "cars")


def test_progress_is_visible(tmp_path: Path, pets: Path, config: Config, capsys) -> None:  # type: ignore[no-untyped-def]
    for number in range(2000):
        (pets / f"cat/again{number}.png").hardlink_to(pets / "cat/000.png")
    ingest(tmp_path, config, "pets")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["ingest pets: 1000/2020 images", "ingest pets: 2000/2020 images"]


def test_validation_repeats_the_manifest_s_names() -> None:
    assert (expectations.COLUMNS, expectations.SPLITS) == (COLUMNS, SPLITS)


def digests(numbers: set[int]) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in sorted(numbers)]


sets_of_images = st.sets(st.integers(0, 10_000), min_size=1, max_size=120)


@given(
    images=sets_of_images, seed=st.integers(0, 5), missing=st.sampled_from([("test", "val"), ("val",), ("test",), ()])
)
def test_splits_cover_each_image_once_and_leave_train(images: set[int], seed: int, missing: tuple[str, ...]) -> None:
    fractions = {split: FRACTIONS[split] for split in missing}
    splits = assign_splits("cat", digests(images), fractions, seed)
    counts = pd.Series(splits).value_counts().to_dict()
    assert set(splits) == set(digests(images))
    assert counts["train"] >= 1
    assert set(counts) <= {"train", *missing}
    if len(images) >= 3:
        assert set(counts) == {"train", *missing}
        for split in missing:
            share = FRACTIONS[split] * len(images)
            assert max(1, int(share / 2)) <= counts[split] <= max(1, share * 1.5 + 1)


@given(images=sets_of_images, order=st.randoms(use_true_random=False))
def test_splits_depend_on_neither_order_nor_repeats(images: set[int], order) -> None:  # type: ignore[no-untyped-def]
    shuffled = digests(images) * 2
    order.shuffle(shuffled)
    assert assign_splits("cat", shuffled, FRACTIONS, 0) == assign_splits("cat", digests(images), FRACTIONS, 0)


@given(images=sets_of_images, added=st.sets(st.integers(20_000, 30_000), max_size=20), seed=st.integers(0, 5))
@example(images={0, 8, 62, 312, 511}, added={20017}, seed=4)  # both shares grow by one image at once
def test_new_images_hardly_move_old_ones(images: set[int], added: set[int], seed: int) -> None:
    if len(images) < 3:
        return
    before = assign_splits("cat", digests(images), FRACTIONS, seed)
    after = assign_splits("cat", digests(images | added), FRACTIONS, seed)
    moved = sum(after[digest] != split for digest, split in before.items())
    assert moved <= 2 * len(added)


@pytest.mark.parametrize("seed", range(5))
def test_in_a_class_of_usual_size_new_images_move_none(seed: int) -> None:
    old, new = digests(set(range(300))), digests(set(range(600)))
    before, after = (assign_splits("cat", images, FRACTIONS, seed) for images in (old, new))
    assert {digest: after[digest] for digest in old} == before


def test_classes_and_seeds_are_drawn_apart() -> None:
    images = digests(set(range(100)))
    assert assign_splits("cat", images, FRACTIONS, 0) != assign_splits("dog", images, FRACTIONS, 0)
    assert assign_splits("cat", images, FRACTIONS, 0) != assign_splits("cat", images, FRACTIONS, 1)


def test_images_that_change_while_they_are_read_are_read_once_more(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC hashes the folder after the stage: it would record an image that the manifest lacks."""
    folder = build(tmp_path / "pets", ACCEPTED["classes"])
    probe = images.probe

    def slow(path: Path, limits: Limits) -> ImageFacts:
        (folder / "cat" / "late.png").write_bytes(path.read_bytes())
        return probe(path, limits)

    monkeypatch.setattr("components.data.manifest.probe", slow)
    with pytest.raises(TransientError, match="its images changed while they were read"):
        manifest_of(folder, config, "ingest pets")
