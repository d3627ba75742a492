"""`intaglio predict` on a real, tiny bundle: what it accepts, prints and writes, and with which exit status."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from components.errors import IntaglioError
from components.inference.image_paths import Inputs, listed_paths
from components.inference.predictor import Prediction, Predictor
from flows.cli.app import run_command
from flows.prediction.predict_to_file import predict_to_file
from flows.prediction.request import PredictionRequest

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def pictures(folder: Path, images: list[str]) -> Path:
    """a.png, deep/b.png, an image that is none, and a file without an image's name."""
    (folder / "in" / "deep").mkdir(parents=True)
    (folder / "in" / "a.png").write_bytes(Path(images[0]).read_bytes())
    (folder / "in" / "deep" / "b.png").write_bytes(Path(images[-1]).read_bytes())
    (folder / "in" / "bad.png").write_text("not an image")
    (folder / "in" / "notes.txt").write_text("not even an image's name")
    return folder / "in"


@pytest.fixture
def predict(bundle: Path, capsys: Capture) -> Any:
    """Run the command with the bundle; returns its exit status, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = run_command(["predict", "--bundle", str(bundle), "--device", "cpu", "--force", *arguments])
        return status, *capsys.readouterr()

    return run


def expected(bundle: Path, path: str | Path, top: int = 1) -> Prediction:
    predictor = Predictor.load(bundle, "cpu")
    with Image.open(path) as image:
        (found,) = predictor.predict([image.convert("RGB")], top=top, force=True)
    return found


def test_a_table_and_complaints_on_stderr(predict: Any, bundle: Path, pictures: Path) -> None:
    status, out, err = predict("in", "--top", "2")
    assert status == 1
    rows = [line.split() for line in out.splitlines()]
    found = expected(bundle, pictures / "a.png", top=2)
    assert rows[1] == ["in/a.png", found.task, f"{found.task_probability:.0%}", found.label, f"{found.probability:.0%}"]
    assert rows[2] == [found.top[1][0], found.top[1][1], f"{found.top[1][2]:.0%}"]
    assert rows[3][0] == "in/deep/b.png"
    (line,) = err.splitlines()
    assert line.startswith("in/bad.png: not an image")
    assert predict("in/a.png")[0] == 0


def test_json_lines(predict: Any, bundle: Path, pictures: Path) -> None:
    (pictures.parent / "empty").mkdir()
    names = ["in/*.png", "in/**/b.png", "nowhere.png", "no*.gif", "a**b", "empty"]
    status, out, err = predict(*names, "--json")
    assert (status, err) == (1, "")
    rows = {row["path"]: row for row in map(json.loads, out.splitlines())}
    found, row = expected(bundle, pictures / "a.png"), rows["in/a.png"]
    assert (row["task"], row["label"]) == (found.task, found.label)
    assert row["probability"] == pytest.approx(found.probability, abs=1e-5)
    assert row["p_values"] == pytest.approx(dict(found.p_values))
    assert row["top"][0]["label"] == found.label
    assert {path: row["error"] for path, row in rows.items() if "error" in row} == {
        "in/bad.png": rows["in/bad.png"]["error"],
        "nowhere.png": "no such file",
        "no*.gif": "no such file, and no file matches",
        "a**b": "no such file, and no file matches",
        "empty": "no images in this folder",
    }


def test_a_file_of_every_format_says_the_same(predict: Any, pictures: Path) -> None:
    tables = []
    for name, read in (("o.parquet", pd.read_parquet), ("o.csv", pd.read_csv), ("o.jsonl", pd.read_json)):
        status, out, err = predict("in", "nowhere.png", "--output", name)
        assert (status, out) == (0, "")  # a broken image stops nothing
        assert f"{name}: 4 images in" in err
        assert "2 could not be read: see the column `error`" in err
        tables.append(read(name, lines=True) if name == "o.jsonl" else read(name))
    for table in tables:
        assert list(table.columns) == [
            "path",
            "task",
            "label",
            "task_probability",
            "probability",
            "p_value",
            "error",
        ]
        pd.testing.assert_frame_equal(table, tables[0], check_dtype=False)
    assert list(tables[0]["path"]) == ["in/a.png", "in/bad.png", "in/deep/b.png", "nowhere.png"]
    assert list(tables[0]["error"].isna()) == [True, False, True, False]
    assert predict("in", "--output", "top.csv", "--top", "3")[0] == 0
    assert [len(json.loads(cell)) for cell in pd.read_csv("top.csv")["top"]] == [3, 0, 2]


def test_lists_and_standard_input(
    predict: Any, images: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = images[:5] + images[:1]
    Path("list.txt").write_text("\n".join(some))
    pd.DataFrame({"where": some}).to_csv("list.csv")
    assert predict("--list", "list.txt", "--output", "a.csv")[0] == 0
    assert predict("--list", "list.csv", "--column", "where", "--output", "b.csv")[0] == 0
    assert predict("--list", "a.csv", "--output", "c.csv")[0] == 0  # a list is also what was written
    for arguments in (("-",), ("--list", "-")):
        content = io.BytesIO(os.fsencode("\n".join(some)))
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=content))
        assert predict(*arguments, "--output", f"stdin-{len(arguments)}.csv")[0] == 0
    contents = {Path(name).read_text() for name in ("a.csv", "b.csv", "c.csv", "stdin-1.csv", "stdin-2.csv")}
    assert len(contents) == 1
    assert list(listed_paths(Path("a.csv"))) == some


def test_a_run_that_is_complete_is_not_repeated_and_not_overwritten(predict: Any, pictures: Path) -> None:
    assert predict("in", "--output", "o.csv", "--resume")[0] == 0  # begins, where there is nothing to resume
    before = Path("o.csv").read_text()
    status, _, err = predict("in", "--output", "o.csv")
    assert status == 1
    assert "error: o.csv: exists already; remove it or choose another name" in err
    assert predict("in", "--output", "o.csv", "--resume")[0] == 0
    assert Path("o.csv").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in", "--resume"], "--resume needs --output FILE"),
        (["in", "--json", "--output", "o.csv"], "--json prints to the terminal"),
        (["in", "--output", "o.xls"], "o.xls: expected a name that ends with .parquet, .csv, .jsonl"),
        (["in", "--engine", "spark"], "--engine 'spark': expected local or dask"),
        (["in", "--scheduler", "tcp://x:1"], "--scheduler is the address of a Dask cluster; it needs --engine dask"),
        (["--list", "nowhere.txt"], "nowhere.txt: no such file; expected a list of paths"),
        (["in", "--device", "tpu"], "device: 'tpu' is not available"),
    ],
)
def test_wrong_requests(predict: Any, pictures: Path, arguments: list[str], message: str) -> None:
    status, out, err = predict(*arguments)
    assert (status, out) == (1, "")
    assert message in err
    assert not list(pictures.parent.glob("o.*"))


def test_an_interrupted_run_says_how_to_go_on_and_goes_on(
    predict: Any, images: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("list.txt").write_text("\n".join(images))
    whole = predict("--list", "list.txt", "--output", "whole.csv")
    assert whole[0] == 0

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    original, calls = Predictor.predict_pixels, []

    def second_time(*arguments: Any) -> list[Prediction]:
        calls.append(arguments)
        return interrupt() or [] if len(calls) == 2 else original(*arguments)

    monkeypatch.setattr(Predictor, "predict_pixels", second_time)
    status, _, err = predict("--list", "list.txt", "--output", "o.csv")
    assert status == 130
    assert "what is done lies in o.csv.parts/part-*.csv, readable as it is; the same command with --resume" in err
    assert not Path("o.csv").exists()
    assert len(pd.read_csv("o.csv.parts/part-000000.csv")) == 64
    status, _, err = predict("--list", "list.txt", "--output", "o.csv")
    assert (status, "add --resume to go on" in err) == (1, True)
    status, _, err = predict("--list", "list.txt", "--output", "o.csv", "--resume", "--top", "2")
    assert (status, "the interrupted run had top 1, not 2" in err) == (1, True)
    assert "the same command" not in err  # it would be refused again
    Path("list.txt").write_text("\n".join(reversed(images)))  # the same images in another order
    status, _, err = predict("--list", "list.txt", "--output", "o.csv", "--resume")
    assert status == 0
    assert "after 64 of an earlier run" in err
    assert sorted(listed_paths(Path("o.csv"))) == sorted(images)
    tables = [pd.read_csv(name).sort_values("path", ignore_index=True) for name in ("o.csv", "whole.csv")]
    pd.testing.assert_frame_equal(*tables, atol=1e-4)


def test_rows_of_images_that_are_named_no_longer_are_kept_and_mentioned(
    predict: Any, images: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("list.txt").write_text("\n".join(images))
    original = Predictor.predict_pixels
    monkeypatch.setattr(
        Predictor, "predict_pixels", lambda *_: (_ for _ in ()).throw(IntaglioError("the disk is full"))
    )
    assert predict("--list", "list.txt", "--output", "o.csv")[0] == 1
    monkeypatch.setattr(Predictor, "predict_pixels", original)
    from components.inference.resumable_output import parts_folder

    part = parts_folder(Path("o.csv")) / "part-000000.csv"
    part.write_text("path,task,label,task_probability,probability,p_value,error\ngone.png,,,,,,no such file\n")
    status, _, err = predict("--list", "list.txt", "--output", "o.csv", "--resume")
    assert status == 0
    assert "warning: 1 rows of the earlier run are of images that the inputs no longer name" in err
    assert len(pd.read_csv("o.csv")) == len(images) + 1


def test_the_bundle_is_part_of_a_run(
    predict: Any, bundle: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = pictures.parent / "other"
    shutil.copytree(bundle, other)
    index = json.loads((other / "bundle.json").read_text())
    (other / "bundle.json").write_text(json.dumps(index | {"tasks": dict(reversed(index["tasks"].items()))}))
    monkeypatch.setattr(Predictor, "predict_pixels", lambda *_: (_ for _ in ()).throw(IntaglioError("out of memory")))
    status, _, err = predict("in", "--output", "o.parquet")
    assert (status, "error: out of memory" in err) == (1, True)
    status, _, err = predict("in", "--output", "o.parquet", "--resume", "--bundle", str(other))
    assert status == 1
    assert re.search(r"the interrupted run had bundle '\w{64}', not '\w{64}'; repeat it as it was, or remove", err)


def test_a_bar_on_a_terminal(predict: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # what rich takes for a terminal
    status, out, err = predict("in", "--output", "o.csv")
    assert (status, out) == (0, "")
    assert "3/3" in err
    assert "images/s" in err


def test_a_line_now_and_then_where_there_is_no_terminal(bundle: Path, pictures: Path, capsys: Capture) -> None:
    request = PredictionRequest(Inputs(("in",)), bundle, device="cpu")
    assert predict_to_file(request, Path("o.csv"), log_seconds=0.0) == 0
    assert re.search(r"^3 images, [\d.,]+ images/s$", capsys.readouterr().err, re.MULTILINE)
