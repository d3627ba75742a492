"""The report: rendered from made-up results of 1, 6 and 50 tasks, then read as a browser would."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from components.config import Config, Stream, Task
from components.errors import IntaglioError
from components.io import read_json, write_json, write_table
from components.params import load_config
from components.records.card import Card
from components.records.record import image_counts
from components.records.storage import record_folder
from components.report.examples import examples_of
from components.report.report import number, percent, points, title, write_report

ROOT = Path(__file__).parents[3]
SPLITS = {"train": 12, "val": 4, "test": 6}  # images per class
MEGABYTE = 1024 * 1024


def make_config(tasks: Sequence[str]) -> Config:
    """The project's params.yaml with another stream."""
    previous = ["base", *tasks]
    stream = {
        name: Task(folder=f"data/raw/{name}", previous=before) for name, before in zip(tasks, previous, strict=False)
    }
    return load_config(ROOT / "params.yaml").model_copy(update={"stream": Stream(tasks=stream)})


def make_results(root: Path, tasks: Sequence[str], classes: Sequence[str] = ("oak", "elm", "fir", "ash")) -> Config:
    """Write everything that the report reads: images, manifests, predictions and the outputs of every stage."""
    rng = np.random.default_rng(7)
    manifests = {task: _images(root, task, classes, rng) for task in tasks}
    predictions = pd.concat([_predictions(manifests[task], task, tasks, rng) for task in tasks], ignore_index=True)
    write_table(root / "reports/predictions.parquet", predictions)
    write_table(root / "reports/projection.parquet", _projection(tasks, classes, rng))
    for task in tasks:
        write_json(record_folder(root, task) / "card.json", _card(task, manifests[task], rng).to_json())
    write_json(root / "reports/metrics.json", _metrics(predictions, tasks, len(classes), rng))
    return make_config(tasks)


def _images(root: Path, task: str, classes: Sequence[str], rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for kind, label in enumerate(classes):
        for split, count in SPLITS.items():
            for index in range(count):
                path = f"class{kind}/{split}_{index}.png"
                size = 28 if len(task) % 2 else 120
                rows.append((path, label, split, f"{task}{path}", 900, size, size, "RGB", "PNG", True, ""))
                if split == "test":
                    _draw(root / "data/raw" / task / path, size, kind, rng)
    rows.append(("broken.png", classes[0], "train", "x", 3, 0, 0, "", "", False, "not an image"))
    names = ["path", "label", "split", "sha256", "bytes", "width", "height", "mode", "format", "readable", "error"]
    return pd.DataFrame(rows, columns=names)


def _draw(path: Path, size: int, kind: int, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (size, size), tuple(int(value) for value in rng.integers(170, 256, 3)))
    corners = [tuple(point) for point in rng.uniform(0.05, 0.95, (3 + kind, 2)) * size]
    ImageDraw.Draw(image).polygon(corners, fill=tuple(int(value) for value in rng.integers(0, 150, 3)))
    image.save(path, compress_level=1)


def _predictions(manifest: pd.DataFrame, task: str, tasks: Sequence[str], rng: np.random.Generator) -> pd.DataFrame:
    table = manifest[manifest["split"] == "test"][["path", "label"]].copy()
    lost = (rng.random(len(table)) < 0.08) & (len(tasks) > 1)
    neighbour = tasks[(list(tasks).index(task) + 1) % len(tasks)]
    table.insert(0, "task", task)
    table["retrieved_task"] = np.where(lost, neighbour, task)
    labels = sorted(set(manifest["label"]))
    swapped = [labels[(labels.index(label) + 1) % len(labels)] for label in table["label"]]
    confused = (rng.random(len(table)) < 0.14) & (len(labels) > 1)
    table["predicted_label"] = np.where(confused, swapped, table["label"])
    table["task_probability"] = rng.uniform(0.5, 1, len(table))
    table["probability"] = rng.uniform(0.3, 1, len(table))
    table["task_score"] = rng.normal(size=len(table))
    table["correct"] = ~lost & ~confused
    table["retrieved"] = ~lost
    return table


def _projection(tasks: Sequence[str], classes: Sequence[str], rng: np.random.Generator) -> pd.DataFrame:
    rows: list[tuple[Any, ...]] = []
    for task in tasks:
        home = rng.normal(scale=9, size=2)
        for label in classes:
            centre = home + rng.normal(scale=2.5, size=2)
            mix = rng.normal(scale=0.7, size=(2, 2))
            cov = mix @ mix.T + 0.1 * np.eye(2)
            cloud = rng.multivariate_normal(centre, cov, 30)
            rows += [("point", task, label, x, y, np.nan, np.nan, np.nan) for x, y in cloud]
            rows.append(("centroid", task, label, *centre, cov[0, 0], cov[0, 1], cov[1, 1]))
    return pd.DataFrame(rows, columns=["kind", "task", "label", "x", "y", "cov_xx", "cov_xy", "cov_yy"])


def _card(task: str, manifest: pd.DataFrame, rng: np.random.Generator) -> Card:
    epochs = np.arange(1, 1 + int(rng.integers(6, 11)))
    accuracy = np.round(0.95 - 0.5 * np.exp(-epochs / 2) + rng.normal(scale=0.01, size=len(epochs)), 4)
    train = 2 * np.exp(-epochs / 3) + 0.5
    table = pd.DataFrame({"epoch": epochs, "train_loss": train, "val_loss": train + 0.15, "val_accuracy": accuracy})
    facts: dict[str, Any] = {"epochs": len(epochs), "best_epoch": int(epochs[accuracy.argmax()])}
    facts |= {"reused_directions": 31, "adapter_rank": 24, "truncation_error": 0.0123}
    warnings = ["1 image is unreadable: broken.png"] if task.endswith("1") else []
    return Card(
        task=task,
        classes=tuple(sorted(set(manifest["label"]))),
        images=image_counts(manifest),
        unreadable=1,
        sizes=[[28, 28], [120, 120]],
        frozen_width=4,
        trunk_width=2,
        validation={"success": True, "critical_failures": [], "warnings": warnings, "expectations": 12},
        training=facts | {"curve": table.to_dict("records")},
        digests={},
        updates=(),
        note="",
        licence="",
        software="test",
    )


def change_card(root: Path, task: str, **values: Any) -> None:
    """Write other facts into the card of a task."""
    path = record_folder(root, task) / "card.json"
    write_json(path, read_json(path) | values)


def _metrics(predictions: pd.DataFrame, tasks: Sequence[str], classes: int, rng: np.random.Generator) -> dict[str, Any]:
    shares = predictions.groupby("task")[["correct", "retrieved"]].mean()
    right, found = ({str(task): float(share) for task, share in shares[name].items()} for name in shares)
    per_task = {
        task: {
            "accuracy": right[task],
            "retrieval_accuracy": found[task],
            "task_aware_accuracy": 0.9,
            "frozen_task_aware_accuracy": 0.84 + 0.1 * rng.random(),
            "test_images": int((predictions["task"] == task).sum()),
        }
        for task in tasks
    }
    final = [right[task] for task in tasks]
    later = len(tasks) > 1
    return {
        "tasks": list(tasks),
        "classes": classes * len(tasks),
        "test_images": len(predictions),
        "accuracy_final": float(np.mean(final)),
        "accuracy_incremental": 0.93,
        "forgetting": 0.021 if later else None,
        "backward_transfer": -0.02 if later else None,
        "retrieval_accuracy": float(np.mean(list(found.values()))),
        "task_aware_accuracy": 0.9,
        "accuracy_matrix": [
            [min(1.0, final[j] + 0.003 * (len(tasks) - 1 - t)) for j in range(t + 1)] for t in range(len(tasks))
        ],
        "baselines": {
            "nearest_class_mean": {"accuracy_final": 0.61, "retrieval_accuracy": 0.8},
            "my_own_ridge": {"accuracy_final": 0.74},
        },
        "rules": {
            "pooled": {"accuracy_final": float(np.mean(final)), "retrieval_accuracy": 0.92},
            "dpgmm": {"accuracy_final": 0.71, "retrieval_accuracy": 0.78},
        },
        "per_task": per_task,
        "certificate": {
            "tasks": {
                task: {
                    "held_out_images": 100,
                    "coverage_promised": 0.98,
                    "coverage": 0.973,
                    "nearest": tasks[number - 1],
                    "delta": 12.34,
                    "bound": 1.5e-10,
                    "measured": 0.0253,
                }
                for number, task in enumerate(tasks)
            }
        },
        "rejection": {
            way: {"auroc": 0.938, "fpr95": 0.26, "left_out": {task: {"auroc": 0.876, "fpr95": 0.692} for task in tasks}}
            for way in ("conformal", "mahalanobis")
        },
    }


STREAMS = {
    1: ["animals"],
    6: ["digits_low", "animals", "textiles1", "digits_high", "emoji", "pixels"],
    50: [f"task_{count:02}" for count in range(1, 51)],
}

VOID = {"meta", "link", "img", "br", "path", "circle", "ellipse"}


class Page(HTMLParser):
    """A page's elements in order, its text, and whether every element that was opened was closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.elements, self.text = html, list[tuple[str, dict[str, str | None]]](), ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    @classmethod
    def at(cls, root: Path) -> Page:
        return cls((root / "reports/report.html").read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module", params=STREAMS)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a stream of 1, 6 and 50 tasks."""
    root = tmp_path_factory.mktemp("stream")
    write_report(root, make_results(root, STREAMS[request.param]))
    return Page.at(root)


@pytest.fixture
def one(tmp_path: Path) -> tuple[Path, Config]:
    """The inputs of a one-task stream, to be changed by a test."""
    return tmp_path, make_results(tmp_path, STREAMS[1])


def test_page_fetches_nothing(page: Page) -> None:
    assert not {"script", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            assert re.match(r"data:|#", attributes.get(name) or "#")
    assert "http://" not in page.html
    assert "https://" not in page.html
    assert "url(" not in page.html
    assert "@import" not in page.html


def test_every_link_in_the_page_has_a_target(page: Page) -> None:
    targets = {attributes.get("id") for _, attributes in page.elements}
    assert {str(link["href"])[1:] for link in page.all("a")} <= targets


def test_page_can_be_read_without_seeing_it(page: Page) -> None:
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    assert all(image["alt"] for image in page.all("img"))
    assert all(cell.get("scope") for cell in page.all("th"))
    assert all(svg.get("aria-label") or svg.get("width") for svg in page.all("svg"))  # those in the legend are hidden
    assert all(box["aria-label"] for tag, box in page.elements if box.get("role") == "region")


def test_page_is_small_and_says_nothing_of_the_machine(page: Page) -> None:
    assert len(page.html) < MEGABYTE
    assert str(ROOT) not in page.html
    assert "/tmp" not in page.html


def test_page_shows_what_was_measured(tmp_path: Path) -> None:
    write_report(tmp_path, make_results(tmp_path, STREAMS[6]))
    text = " ".join(Page.at(tmp_path).text.split())
    metrics = read_json(tmp_path / "reports/metrics.json")
    for key in ("accuracy_final", "retrieval_accuracy", "task_aware_accuracy", "forgetting"):
        assert percent(metrics[key]) in text
    for words in ("Nearest class mean", "61.0%", "My own ridge", "74.0%", "in use", "1 image is unreadable", "31"):
        assert words in text
    for words in ("97.3%", "12.3", "1.5e-10", "2.5%", "Mahalanobis distance", "87.6% (69.2%)", "93.8% (26.0%)"):
        assert words in text
    assert "vit_small_patch14_dinov2" in text
    assert "head_learning_rate" in text


def test_most_images_still_make_a_page_under_three_megabytes(tmp_path: Path) -> None:
    config = make_results(tmp_path, STREAMS[50])
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")  # nothing compresses worse
    for path in (tmp_path / "data/raw").rglob("*.png"):
        path.write_bytes(buffer.getvalue())
    write_report(tmp_path, config)
    assert MEGABYTE < (tmp_path / "reports/report.html").stat().st_size < 3 * MEGABYTE


def test_one_task_has_no_forgetting(one: tuple[Path, Config]) -> None:
    write_report(*one)
    text = Page.at(one[0]).text
    assert "Needs at least two tasks." in text
    assert re.search(r"Forgetting\s*\u2014", text)


def test_equal_inputs_give_equal_bytes_in_another_process_and_folder(one: tuple[Path, Config], tmp_path: Path) -> None:
    root, config = one
    write_report(root, config)
    expected = hashlib.sha256((root / "reports/report.html").read_bytes()).hexdigest()
    twin = tmp_path / "twin"
    shutil.copytree(root / "data", twin / "data")
    shutil.copytree(root / "models", twin / "models")
    shutil.copytree(root / "reports", twin / "reports", ignore=shutil.ignore_patterns("*.html"))
    (twin / "config.json").write_text(config.model_dump_json())
    code = """
import hashlib, pathlib, sys
from components.config import Config
from components.report.report import write_report
root = pathlib.Path(sys.argv[1])
write_report(root, Config.model_validate_json((root / "config.json").read_text()))
assert "torch" not in sys.modules
print(hashlib.sha256((root / "reports/report.html").read_bytes()).hexdigest())
"""
    environment = os.environ | {"PYTHONHASHSEED": "4"}
    command = [sys.executable, "-c", code, str(twin)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == expected


def test_names_with_markup_stay_text(tmp_path: Path) -> None:
    evil = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b", "{{ config }}"]
    config = make_results(tmp_path, ["animals", "emoji"], classes=evil)
    change_card(tmp_path, "animals", validation={"success": False, "critical_failures": ["<b>bad</b>"]})
    write_report(tmp_path, config)
    page = Page.at(tmp_path)
    assert page.all("script") == []
    assert all(str(image["src"]).startswith("data:image/webp;base64,") for image in page.all("img"))
    assert not any("onerror" in attributes for _, attributes in page.elements)
    for name in evil:
        assert name in page.text
    assert "<b>bad</b>" in page.text
    assert "failed" in page.text


def test_images_that_are_gone_or_damaged_are_left_out_and_counted(one: tuple[Path, Config]) -> None:
    root, config = one
    write_report(root, config)
    shown = len(Page.at(root).all("img"))
    for index, path in enumerate(sorted((root / "data/raw").rglob("*.png"))):
        path.unlink() if index % 2 else path.write_bytes(b"not an image")
    write_report(root, config)
    page = Page.at(root)
    assert page.all("img") == []
    assert f"{shown} more would be shown here, but their image files are gone." in page.text


def test_examples_show_every_class_and_the_surest_mistakes(one: tuple[Path, Config]) -> None:
    root, config = one
    predictions = pd.read_parquet(root / "reports/predictions.parquet")
    shown = examples_of(root, config, "animals", predictions)
    assert {example.label for example in shown["right"]} == {"oak", "elm", "fir", "ash"}
    assert all(example.tiny for example in shown["right"])  # 28 pixels
    wrong = predictions[~predictions["correct"]]["probability"].sort_values(ascending=False)
    assert [example.probability for example in shown["wrong"]] == wrong.head(8).tolist()


def test_a_task_without_mistakes_and_one_without_test_images(one: tuple[Path, Config]) -> None:
    root, config = one
    predictions = pd.read_parquet(root / "reports/predictions.parquet")
    write_table(root / "reports/predictions.parquet", predictions.assign(correct=True))
    write_report(root, config)
    assert "None." in Page.at(root).text
    write_table(root / "reports/predictions.parquet", predictions.head(0))
    write_report(root, config)
    assert "0 right, 0 wrong" in Page.at(root).text


def test_only_what_is_there_is_shown(one: tuple[Path, Config]) -> None:
    root, config = one
    write_json(root / "reports/metrics.json", {"tasks": ["animals"], "baselines": {"odd": 0.5, "RanPAC": {}}})
    change_card(root, "animals", training={}, validation={})
    projection = pd.read_parquet(root / "reports/projection.parquet")
    write_table(root / "reports/projection.parquet", projection.head(0))
    write_report(root, config)
    text = Page.at(root).text
    assert "RanPAC" in text
    assert "Odd" not in text
    assert "The projection holds no points." in text


def test_results_of_another_stream_are_refused(one: tuple[Path, Config]) -> None:
    root, _ = one
    with pytest.raises(IntaglioError, match=r"about the tasks .*run the stage evaluate"):
        write_report(root, make_config(["animals", "emoji"]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("../models/records/animals/card.json", None, "file not found"),
        ("../models/records/animals/card.json", "{", "not valid JSON"),
        ("../models/records/animals/card.json", '{"format": 1}', "is not the card of a task"),
        ("../models/records/animals/card.json", '{"format": 99}', "has format 99, this version reads 1 at most"),
        ("metrics.json", "[]", "run the stage evaluate"),
        ("projection.parquet", "x", "not a parquet file"),
    ],
)
def test_a_broken_input_is_named_in_one_line(
    one: tuple[Path, Config], name: str, content: str | None, message: str
) -> None:
    path = one[0] / "reports" / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(IntaglioError, match=message) as caught:
        write_report(*one)
    assert Path(name).name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_without_its_columns_is_refused(one: tuple[Path, Config]) -> None:
    write_table(one[0] / "reports/predictions.parquet", pd.DataFrame({"task": ["animals"]}))
    with pytest.raises(IntaglioError, match=r"predictions.parquet: columns \['path', .*\] are missing"):
        write_report(*one)


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (percent, 0.91234, "91.2%"),
        (percent, None, "\u2014"),
        (percent, float("nan"), "\u2014"),
        (percent, "0.5", "\u2014"),
        (points, 0.0312, "+3.1"),
        (points, -0.0312, "\u22123.1"),
        (points, -0.0001, "0.0"),
        (points, None, "\u2014"),
        (number, 12345, "12,345"),
        (number, -2, "\u22122"),
        (number, 0.01234, "0.0123"),
        (number, 412.7, "413"),
        (number, True, "\u2014"),
        (title, "random_projection", "Random projection"),
        (title, "", ""),
    ],
)
def test_numbers_read_well(write: Any, value: object, text: str) -> None:
    assert write(value) == text


if __name__ == "__main__":  # python -m tests.components.report.test_report FOLDER: pages to look at
    for count, names in STREAMS.items():
        folder = Path(sys.argv[1]) / str(count)
        shutil.rmtree(folder, ignore_errors=True)
        write_report(folder, make_results(folder, names))
