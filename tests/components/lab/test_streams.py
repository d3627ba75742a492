"""Streams: declared, built from zips and folders, split without leaks."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from components.data.images import Limits
from components.errors import IntaglioError
from components.io import write_text
from components.lab.build import build_stream
from components.lab.grid import PreparedStream
from components.lab.stream import known_streams, load_stream
from components.lab.task_sequence import Caps, make_task_sequence, task_order

LIMITS = Limits(max_pixels=1_000_000, max_bytes=100_000, min_side=8)


def test_every_shipped_stream_is_valid_and_says_what_it_is() -> None:
    counts = {name: sum(t.parts for t in load_stream(name).spec.tasks.values()) for name in known_streams()}
    assert counts["shift"] >= 8
    assert counts["split"] >= 5
    assert (counts["long20"], counts["long50"], counts["omniglot"]) == (20, 50, 8)
    assert {"mixed", "recurring", "hard"} <= counts.keys()
    assert all(load_stream(name).spec.description for name in known_streams())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [", "not valid YAML"),
        ("just words", "expected description"),
        ("description: d\ntrain_images: 10\ntasks: {a: {source: x, prats: 2}}", "tasks.a.prats"),
        ("description: d\ntrain_images: 10\ntasks: {a: {source: x, group: '('}}", "not a regular expression"),
        ("description: d\ntrain_images: 10\ntasks: {a: {source: x, group: 'w'}}", "no group in parentheses"),
    ],
)
def test_a_wrong_declaration_is_named(tmp_path: Path, text: str, message: str) -> None:
    write_text(tmp_path / "mine.yaml", text)
    with pytest.raises(IntaglioError, match=message):
        load_stream(str(tmp_path / "mine.yaml"))


def test_an_unknown_stream_lists_what_there_is() -> None:
    with pytest.raises(IntaglioError, match=r"known: .*shift"):
        load_stream("shfit")


def test_a_built_stream_has_its_tasks_splits_and_styles(lab_stream: PreparedStream) -> None:
    table = lab_stream.table
    assert list(dict.fromkeys(table["task"])) == ["digits_1", "digits_2", "digits_3", "negative"]
    classes = table.groupby("task")["label"].nunique()
    assert classes.tolist() == [3, 3, 3, 9]
    assert table["sha256"].is_unique  # halves share no image, whatever the style
    assert set(table["split"]) == {"train", "test"}


def test_building_again_reads_what_is_there_and_a_changed_declaration_builds_anew(
    project: Path, tmp_path: Path
) -> None:
    declared = load_stream(str(project / "small.yaml"))
    first = build_stream(declared, [project / "zips"], tmp_path / "out", LIMITS)
    second = build_stream(declared, [], tmp_path / "out", LIMITS)  # without its source: nothing is read again
    assert first.equals(second)
    write_text(tmp_path / "small.yaml", (project / "small.yaml").read_text().replace("200", "20"))
    fewer = build_stream(load_stream(str(tmp_path / "small.yaml")), [project / "zips"], tmp_path / "out", LIMITS)
    assert (fewer["split"] == "train").sum() < (first["split"] == "train").sum()


def test_an_interrupted_build_leaves_no_half_stream(project: Path, tmp_path: Path) -> None:
    zips = tmp_path / "zips"
    zips.mkdir()
    shutil.copy(project / "zips" / "digits.zip", zips)
    with zipfile.ZipFile(zips / "digits.zip", "a") as archive:
        archive.writestr("train/digit 8/zzz.png", b"rubbish")
    with pytest.raises(IntaglioError):
        build_stream(load_stream(str(project / "small.yaml")), [zips], tmp_path / "out", LIMITS)
    assert list(tmp_path.iterdir()) == [zips]


def test_orders_are_permutations_and_the_first_is_declared() -> None:
    names = [f"t{number}" for number in range(6)]
    assert task_order(names, 0) == names
    drawn = {tuple(task_order(names, order)) for order in range(5)}
    assert len(drawn) > 3
    assert all(sorted(order) == names for order in drawn)


def test_train_validation_and_test_share_nothing_and_caps_hold(lab_stream: PreparedStream) -> None:
    for seed in range(3):
        made = make_task_sequence(lab_stream.table, lab_stream.embedded, seed, 1, Caps(train=30, test=10))
        test = np.concatenate([part.images.rows for part in made.test])
        for task, part in zip(made.tasks, made.test, strict=True):
            assert len(task.train) + len(task.val) <= 30
            assert len(part) <= 10
            assert not set(task.train.images.rows) & set(task.val.images.rows)
            assert not set(task.train.images.rows) & set(test)
            assert set(task.train.labels) == set(range(task.classes)) == set(task.val.labels)


def test_groups_are_never_separated(lab_stream: PreparedStream) -> None:
    table = lab_stream.table.copy()
    table["group"] = table["path"].str[-7:]  # the number of an image: a "writer" of several classes
    made = make_task_sequence(table, lab_stream.embedded, 0, 0, Caps())
    writer = dict(zip(table["sha256"], table["group"], strict=True))
    for task in made.tasks:
        groups = [
            {writer[lab_stream.embedded.sha256[row]] for row in part.images.rows} for part in (task.train, task.val)
        ]
        assert groups[0]
        assert groups[1]
        assert not groups[0] & groups[1]
