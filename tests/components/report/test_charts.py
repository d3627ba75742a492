"""Geometry and colours of the report's charts."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components.report import charts

STYLE = Path(charts.__file__).parent / "templates/report.css"
COLUMNS = ["kind", "task", "label", "x", "y", "cov_xx", "cov_xy", "cov_yy"]


def cloud(task: str, x: float, y: float, count: int = 40) -> list[tuple[object, ...]]:
    """A round cloud of points with one centroid of unit variance."""
    dots = np.random.default_rng(0).normal((x, y), 1.0, (count, 2))
    rows: list[tuple[object, ...]] = [("point", task, "a", *dot, np.nan, np.nan, np.nan) for dot in dots.tolist()]
    return [*rows, ("centroid", task, "a", x, y, 1.0, 0.0, 1.0)]


def drawn(rows: list[tuple[object, ...]], tasks: list[str]) -> charts.Map:
    picture = charts.signature_map(pd.DataFrame(rows, columns=COLUMNS), tasks)
    assert picture is not None
    return picture


def test_accuracy_matrix_is_a_triangle_shaded_from_the_lowest_tenth() -> None:
    matrix = charts.accuracy_matrix([[0.95], [0.62, None]], ["a", "b"])
    (_, first), (_, second) = matrix.rows
    assert matrix.low == pytest.approx(0.6)
    assert first[1] is None
    assert first[0] is not None
    assert (first[0].text, first[0].strong) == ("95.0", True)
    assert second[0] is not None
    assert (second[0].text, second[0].strong) == ("62.0", False)
    assert second[1] is not None
    assert second[1].title == "b after b: not measured"


def test_long_streams_get_a_dense_matrix_without_decimals() -> None:
    tasks = [f"t{index}" for index in range(20)]
    matrix = charts.accuracy_matrix([[0.913] * (row + 1) for row in range(20)], tasks)
    assert matrix.dense
    assert matrix.rows[0][1][0] is not None
    assert matrix.rows[0][1][0].text == "91"


def test_retrieval_matrix_shares_rows_and_keeps_strangers() -> None:
    pairs = [("a", "a")] * 2999 + [("a", "b")] + [("b", "b")] * 3 + [("b", "unknown")]
    matrix = charts.retrieval_matrix(pd.DataFrame(pairs, columns=["task", "retrieved_task"]), ["a", "b", "c"])
    assert matrix.columns == ("a", "b", "c", "unknown")
    cells = dict(matrix.rows)
    assert [cell.text if cell else None for cell in cells["a"]] == ["100.0", "<0.1", None, None]
    assert [cell.text if cell else None for cell in cells["b"]] == [None, "75.0", None, "25.0"]
    assert cells["c"] == (None,) * 4
    right, wrong = cells["b"][1], cells["b"][3]
    assert right is not None
    assert wrong is not None
    assert (right.wrong, wrong.wrong) == (False, True)
    assert wrong.title.endswith("1 of 4 images")
    assert wrong.shade == pytest.approx(0.5)


def test_ellipses_are_two_sigma_and_turned_like_the_covariance() -> None:
    rows = cloud("a", 0, 0) + cloud("a", 20, 0)
    rows.append(("centroid", "a", "long", 10, 0, 2.5, 1.5, 2.5))  # variances 4 along y = x and 1 across
    picture = drawn(rows, ["a"])
    round_one, _, long = picture.clouds[0].ellipses
    assert round_one.rx == pytest.approx(round_one.ry)
    assert long.rx == pytest.approx(2 * long.ry, rel=0.02)
    assert long.rx == pytest.approx(2 * round_one.rx, rel=0.02)
    assert long.angle == pytest.approx(135)  # y points down on the screen
    assert long.x == pytest.approx(picture.width / 2, abs=picture.width * 0.05)


def test_frame_ignores_stray_points_but_counts_them() -> None:
    rows = cloud("a", 0, 0, count=1000)
    rows.append(("point", "a", "a", 1e6, 0, np.nan, np.nan, np.nan))
    picture = drawn(rows, ["a"])
    assert picture.outside >= 1
    assert picture.clouds[0].ellipses[0].rx > 100


def test_a_component_as_wide_as_its_prior_does_not_shrink_the_others() -> None:
    rows = [*cloud("a", 0, 0), ("centroid", "a", "empty", 0, 0, 1e6, 0.0, 1e6)]
    assert drawn(rows, ["a"]).clouds[0].ellipses[0].rx > 50


def test_labels_stay_in_the_frame_and_apart() -> None:
    tasks = [*(f"task_number_{index}" for index in range(9)), "a" * 63]
    picture = drawn([row for index, task in enumerate(tasks) for row in cloud(task, 2.0 * (index % 4), index)], tasks)
    labels = [part.label for part in picture.clouds]
    assert all(0 < label.x < picture.width and 0 < label.y < picture.height for label in labels)
    assert labels[-1].text == "a" * 19 + "\u2026"
    for first, second in itertools.combinations(labels, 2):
        assert abs(first.y - second.y) > 18 or abs(first.x - second.x) > 8 * len(first.text)


def test_many_tasks_are_numbered_and_thinned() -> None:
    tasks = [f"t{index}" for index in range(40)]
    picture = drawn([row for index, task in enumerate(tasks) for row in cloud(task, index, 0, count=200)], tasks)
    assert picture.numbered
    assert picture.clouds[12].label.text == "13"
    assert picture.points == charts.MAX_POINTS
    assert {part.hue for part in picture.clouds} == set(range(charts.HUES))


def test_points_alone_a_centroid_alone_and_nothing() -> None:
    empty = (np.nan, np.nan, np.nan)
    picture = drawn([("point", "a", None, 1, 1, *empty), ("centroid", "b", None, 3, 1, *empty)], ["a", "b", "c"])
    assert [part.task for part in picture.clouds] == ["a", "b"]
    assert picture.clouds[0].ellipses == ()
    assert picture.clouds[1].ellipses[0].rx == 0
    assert picture.clouds[1].ellipses[0].label == ""
    assert picture.clouds[1].path == ""
    single = drawn([("point", "a", None, 5, 5, *empty)], ["a"])
    assert single.clouds[0].path == f"M{single.width / 2:.1f} {single.height / 2:.1f}h0"
    nowhere = pd.DataFrame([("point", "a", "a", np.nan, 1, *empty)], columns=COLUMNS)
    assert charts.signature_map(nowhere, ["a"]) is None


def test_curves_share_their_axes_and_mark_the_best_epoch() -> None:
    long = pd.DataFrame(
        {
            "epoch": [1, 2, 3],
            "train_loss": [2, 1, 0.5],
            "val_loss": [2.5, 1.5, np.nan],
            "val_accuracy": [0.55, 0.8, 0.7],
        }
    )
    short = long.head(1)
    curves = charts.training_curves([("a", long, 2), ("b", short, 9), ("c", short, None)])
    assert (curves.low, curves.high_loss, curves.first, curves.last) == (0.5, 2.5, 1, 3)
    first, second, third = curves.panels
    assert first.best == charts.Best(epoch=2, accuracy=0.8, x=132.0, y=36.0)
    assert first.accuracy.startswith("M34.0 61.0L132.0 36.0")
    assert first.val_loss == "M34.0 84.0L132.0 104.0"
    assert second.best is None
    assert third.accuracy == "M34.0 61.0h0"


def test_curves_without_epochs_are_empty() -> None:
    columns = ["epoch", "train_loss", "val_loss", "val_accuracy"]
    curves = charts.training_curves([("a", pd.DataFrame(columns=columns, dtype="float64"), None)])
    assert curves.panels[0].accuracy == ""
    assert (curves.low, curves.high_loss) == (0.9, 1.0)


def _luminance(colour: str) -> float:
    if colour.startswith("#"):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        values = [int(digits[i : i + 2], 16) for i in (0, 2, 4)]
    else:
        values = [round(float(part)) for part in colour.split()]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (value / 255 for value in values)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(first: str, second: str) -> float:
    low, high = sorted([_luminance(first), _luminance(second)])
    return (high + 0.05) / (low + 0.05)


def _blend(colour: str, ground: str, share: float) -> str:
    base = [int(ground[i : i + 2], 16) for i in (1, 3, 5)]
    top = [int(part) for part in colour.split()]
    return " ".join(str(share * a + (1 - share) * b) for a, b in zip(top, base, strict=True))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_contrast(scheme: int) -> None:
    """4.5:1 (WCAG AA) on the page and on every shade of a matrix."""
    css = STYLE.read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): ([^;]+);", blocks[scheme]))
    for ground in ("page", "surface"):
        for name in ("ink", "soft", "accent", "warn", "good", *(f"hue{hue}" for hue in range(charts.HUES))):
            assert _contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    for shade in np.linspace(0, 1, 101).round(3).tolist():
        text = colours["on-strong" if charts.MatrixCell("", shade, "").strong else "on-pale"]
        for name in ("right", "wrong"):
            cell = _blend(colours[name], colours["cell"], shade)
            assert _contrast(text, cell) >= 4.5, (name, shade)
