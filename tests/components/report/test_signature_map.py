"""Geometry of the picture of the signatures."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from components.report.signature_map import HUES, MAX_POINTS, SignatureMap, signature_map

COLUMNS = ["kind", "task", "label", "x", "y", "cov_xx", "cov_xy", "cov_yy"]


def cloud(task: str, x: float, y: float, count: int = 40) -> list[tuple[object, ...]]:
    """A round cloud of points with one centroid of unit variance."""
    dots = np.random.default_rng(0).normal((x, y), 1.0, (count, 2))
    rows: list[tuple[object, ...]] = [("point", task, "a", *dot, np.nan, np.nan, np.nan) for dot in dots.tolist()]
    return [*rows, ("centroid", task, "a", x, y, 1.0, 0.0, 1.0)]


def drawn(rows: list[tuple[object, ...]], tasks: list[str]) -> SignatureMap:
    picture = signature_map(pd.DataFrame(rows, columns=COLUMNS), tasks)
    assert picture is not None
    return picture


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
    assert picture.points == MAX_POINTS
    assert {part.hue for part in picture.clouds} == set(range(HUES))


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
    assert signature_map(nowhere, ["a"]) is None
