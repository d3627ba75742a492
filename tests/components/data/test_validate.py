"""Validation: what stops a task, what only warns, and what a person then reads."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from components.config import Config, Stream, Task
from components.data import validate as validation
from components.data.expectations import COLUMNS, INDEX_COLUMNS, Check, annotate, class_checks, image_checks, per_class
from components.data.validate import run_checks, validate
from components.errors import IntaglioError
from components.io import read_json, read_table, sha256_file, write_table
from components.params import load_config

Edit = Callable[[pd.DataFrame], pd.DataFrame]


@pytest.fixture
def config() -> Config:
    config = load_config(Path(__file__).parents[3] / "params.yaml")
    tasks = {"first": Task(folder="a", previous="base"), "second": Task(folder="b", previous="first")}
    return config.model_copy(update={"stream": Stream(tasks=tasks)})


def manifest_of(task: str, images: int = 10, classes: tuple[str, ...] = ("cat", "dog")) -> pd.DataFrame:
    """A flawless manifest: per class, 60 % train, 20 % val and 20 % test."""
    rows = [
        {
            "path": f"{label}/{number:02d}.png",
            "label": label,
            "split": ("train", "train", "train", "val", "test")[number % 5],
            "sha256": hashlib.sha256(f"{task}/{label}/{number}".encode()).hexdigest(),
            "bytes": 1000,
            "width": 32,
            "height": 24,
            "mode": "RGB",
            "format": "PNG",
            "readable": True,
            "error": "",
        }
        for label in classes
        for number in range(images)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with two ingested tasks, neither validated."""
    write_table(tmp_path / "data/index/base.parquet", pd.DataFrame(columns=list(INDEX_COLUMNS), dtype="str"))
    for task in ("first", "second"):
        write_table(tmp_path / f"data/manifests/{task}.parquet", manifest_of(task))
    return tmp_path


def edit(root: Path, change: Edit, task: str = "first") -> None:
    path = root / f"data/manifests/{task}.parquet"
    write_table(path, change(read_table(path)))


def result_of(root: Path, task: str = "first") -> dict[str, Any]:
    result: dict[str, Any] = read_json(root / f"reports/validation/{task}/result.json")
    return result


def setting(row: int, **values: object) -> Edit:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        for column, value in values.items():
            cells = table[column].tolist()
            cells[row] = value
            table[column] = cells
        return table

    return change


def copying(source: int, target: int) -> Edit:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        return setting(target, sha256=table["sha256"].tolist()[source])(table)

    return change


def test_good_data_passes_quietly(root: Path, config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    validate(root, config, "first")
    result = result_of(root)
    assert result["success"] is True
    assert (result["critical_failures"], result["warnings"]) == ([], [])
    assert result["summary"] == {
        "images": 20,
        "classes": 2,
        "per_split": {"train": 12, "val": 4, "test": 4},
        "per_class": {"cat": 10, "dog": 10},
    }
    assert result["statistics"] == {"evaluated": 23, "met": 23, "failed": 0}
    assert len(result["expectations"]) == 23
    assert set(result["expectations"][0]) == {"type", "column", "critical", "success", "unexpected_count", "examples"}
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("validate first: 23 of 23 expectations met\n", "")


def test_the_index_grows_with_every_task(root: Path, config: Config) -> None:
    for task in ("first", "second"):
        validate(root, config, task)
    index = read_table(root / "data/index/second.parquet")
    assert tuple(index.columns) == INDEX_COLUMNS
    assert index["task"].value_counts().to_dict() == {"first": 20, "second": 20}
    assert len(read_table(root / "data/index/first.parquet")) == 20


def test_the_same_manifest_gives_the_same_report(root: Path, config: Config) -> None:
    edit(root, setting(3, readable=False, error="damaged image", width=0, height=0))

    def report() -> dict[str, str]:
        with pytest.raises(IntaglioError):
            validate(root, config, "first")
        return {path.name: sha256_file(path) for path in (root / "reports").rglob("*.*")}

    first = report()
    assert set(first) == {"result.json", "index.html", "images.html", "classes.html"}
    assert report() == first


def test_the_pages_load_nothing(root: Path, config: Config) -> None:
    name = "cat/<script>alert(1)</script>.png"
    edit(root, setting(0, path=name, readable=False, error="<i>x</i>", width=0))
    with pytest.raises(IntaglioError, match="<script>"):
        validate(root, config, "first")
    for page in (root / "reports/validation/first/docs").iterdir():
        text = page.read_text()
        assert not re.search(r"<script|<img|<link|\bsrc=|url\(|https?://", text), page.name
        assert "Content-Security-Policy" in text
    index = (root / "reports/validation/first/docs/index.html").read_text()
    assert "cat/&lt;script&gt;" in index
    assert "expect_column_values_to_be_null" in index


def shrink(images: int) -> Edit:
    return lambda table: table[(table["label"] == "cat") | (table.groupby("label").cumcount() < images)]


UNREADABLE = {"readable": False, "error": "damaged image: truncated"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            setting(1, **UNREADABLE),
            r"first: 1 image that cannot be used: cat/01.png \(damaged image: truncated\); repair",
        ),
        (setting(1, **UNREADABLE, width=0, height=0), r"1 image that cannot be used: cat/01.png"),
        (setting(2, **UNREADABLE, bytes=10**9), r"1 image over data.max_bytes: cat/02.png \(1000000000\); shrink"),
        (setting(2, **UNREADABLE, width=10**6, height=10**6), r"1 image over data.max_pixels: cat/02.png \(1e\+12\)"),
        (setting(2, **UNREADABLE, width=1), r"1 image with a side below data.min_side \(8\): cat/02.png \(1\)"),
        (setting(2, sha256="xyz"), "1 image without a sha256: cat/02.png"),
        (setting(2, split="valid"), "1 image in no known split: cat/02.png"),
        (setting(2, label=None), "1 image without a label: cat/02.png"),
        (setting(2, path="cat/01.png"), "2 images listed twice: cat/01.png, cat/01.png"),
        (copying(1, 11), r"1 image under two labels: dog/01.png \(= cat/01.png\); keep one of the two"),
        (copying(1, 4), r"1 image in two splits: cat/04.png \(= cat/01.png in train\); keep one of the two"),
        (shrink(7), r"1 class below data.min_images_per_class \(8 readable images\): dog \(7\); add images"),
        (shrink(3), "1 class without a readable image in val: dog; add images"),
        (lambda table: table[:0], r"the manifest holds no images \(found: 0\); add images"),
    ],
)
def test_critical_failures_stop_the_task(change: Edit, message: str, root: Path, config: Config) -> None:
    edit(root, change)
    with pytest.raises(IntaglioError, match=message) as caught:
        validate(root, config, "first")
    result = result_of(root)
    assert result["success"] is False
    assert str(caught.value).splitlines() == result["critical_failures"]
    assert all(line.startswith("first: ") for line in result["critical_failures"])
    assert not (root / "data/index/first.parquet").exists()
    assert (root / "reports/validation/first/docs/index.html").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (copying(0, 1), r"1 image repeated within a class: cat/01.png \(= cat/00.png\)"),
        (setting(1, mode="LAB"), r"1 image of an unusual pixel type: cat/01.png \(LAB\)"),
        (setting(1, width=320), r"1 image longer than 4:1: cat/01.png \(13.3333\)"),
        (setting(1, width=3200, height=2400), r"1 image over 64 times larger or smaller than the median: cat/01.png"),
    ],
)
def test_warnings_do_not_stop_the_task(
    change: Edit, message: str, root: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(root, change)
    validate(root, config, "first")
    result = result_of(root)
    assert result["success"] is True
    assert len(result["warnings"]) == 1
    assert re.search(message, result["warnings"][0])
    assert f"warning: {result['warnings'][0]}" in capsys.readouterr().out
    assert (root / "data/index/first.parquet").exists()


def test_uneven_classes_warn(root: Path, config: Config) -> None:
    edit(root, lambda _: pd.concat([manifest_of("first", 210, ("cat",)), manifest_of("first", 10, ("dog",))]))
    validate(root, config, "first")
    (warning,) = result_of(root)["warnings"]
    assert re.search(r"1 class beyond data.max_class_ratio .* 20 times as large\): dog \(10\)", warning)


def test_a_limit_is_reported_once(root: Path, config: Config) -> None:
    edit(root, setting(2, **UNREADABLE, width=1, height=1))
    with pytest.raises(IntaglioError) as caught:
        validate(root, config, "first")
    assert len(str(caught.value).splitlines()) == 1


def test_images_of_an_earlier_task_are_refused_with_both_names(root: Path, config: Config) -> None:
    validate(root, config, "first")
    known = read_table(root / "data/manifests/first.parquet")["sha256"]
    for row in range(5):
        edit(root, setting(row, sha256=known[row]), "second")
    with pytest.raises(IntaglioError) as caught:
        validate(root, config, "second")
    expected = "cat/00.png (= first: cat/00.png), cat/01.png (= first: cat/01.png), cat/02.png (= first: cat/02.png)"
    assert str(caught.value) == (
        f"second: 5 images already in an earlier task: {expected} and 2 more; remove them from one of the two"
    )
    examples = [
        entry["examples"] for entry in result_of(root, "second")["expectations"] if entry["column"] == "earlier"
    ]
    assert len(examples[0]) == 5


def test_a_failure_withdraws_the_old_index(root: Path, config: Config) -> None:
    validate(root, config, "first")
    edit(root, setting(1, **UNREADABLE))
    with pytest.raises(IntaglioError):
        validate(root, config, "first")
    assert not (root / "data/index/first.parquet").exists()


def test_files_that_cannot_be_opened_are_not_taken_for_duplicates(root: Path, config: Config) -> None:
    for row in (1, 2):
        edit(root, setting(row, **UNREADABLE, sha256="", width=0, height=0))
    with pytest.raises(IntaglioError, match="2 images that cannot be used") as caught:
        validate(root, config, "first")
    assert len(str(caught.value).splitlines()) == 1


def test_an_unknown_task_lists_the_known_ones(root: Path, config: Config) -> None:
    with pytest.raises(IntaglioError, match=r"task 'third' is not in params.yaml; known: first, second"):
        validate(root, config, "third")


def test_an_old_manifest_must_be_written_again(root: Path, config: Config) -> None:
    edit(root, lambda table: table.drop(columns=["mode", "error"]))
    with pytest.raises(IntaglioError, match="first: the manifest lacks mode, error; run the stage ingest again"):
        validate(root, config, "first")


def test_the_previous_task_must_be_validated(root: Path, config: Config) -> None:
    with pytest.raises(IntaglioError, match=r"first.parquet: file not found"):
        validate(root, config, "second")


def test_a_misspelt_column_is_a_bug_not_bad_data(tmp_path: Path) -> None:
    check = Check("ExpectColumnValuesToBeNull", {"column": "typo"}, "misspelt", "repair it")
    with pytest.raises(RuntimeError, match=r"typo.* could not be evaluated"):
        run_checks("images", manifest_of("first"), [check], "path", tmp_path)


def test_a_suite_that_lost_its_expectations_is_a_bug(
    root: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "image_checks", lambda data: image_checks(data)[:1])
    with pytest.raises(RuntimeError, match="only 7 expectations were evaluated, at least 10 exist"):
        validate(root, config, "first")
    assert not (root / "reports/validation/first").exists()


def test_there_are_enough_expectations(config: Config) -> None:
    assert len(image_checks(config.data)) >= 10
    assert len(image_checks(config.data)) + len(class_checks(config.data)) == 23


def test_derived_columns(config: Config) -> None:
    table = manifest_of("first", 3, ("cat",))
    earlier = pd.DataFrame([(table["sha256"][2], "old", "train", "x/y.png")], columns=list(INDEX_COLUMNS))
    table = setting(0, width=0, height=0, readable=False, error="empty")(table)
    found = annotate(table, earlier, config.data)
    assert found["damage"].tolist()[:1] == ["empty"]
    assert found["damage"].isna().tolist() == [False, True, True]
    assert found["pixels"].isna().tolist() == [True, False, False]
    assert found["aspect"][1] == pytest.approx(32 / 24)
    assert found["earlier"].tolist()[2] == "= old: x/y.png"
    assert found["earlier"].isna().tolist() == [True, True, False]


def test_classes_count_readable_images_only() -> None:
    table = setting(0, readable=False)(manifest_of("first"))
    classes = per_class(table).set_index("label")
    assert classes[["images", "train", "val", "test"]].to_numpy().tolist() == [[9, 5, 2, 2], [10, 6, 2, 2]]
    assert classes["ratio"].tolist() == pytest.approx([10 / 9, 1])


def test_importing_this_module_does_not_import_great_expectations() -> None:
    script = "import sys, components.data.validate; sys.exit('great_expectations' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[3], check=False).returncode == 0
