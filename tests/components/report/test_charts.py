"""Matrices, training curves, and the colours of all charts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components.report import charts
from components.report.charts import BestEpoch, MatrixCell, accuracy_matrix, retrieval_matrix, training_curves
from components.report.signature_map import HUES

STYLE = Path(charts.__file__).parent / "templates/report.css"


def test_accuracy_matrix_is_a_triangle_shaded_from_the_lowest_tenth() -> None:
    matrix = accuracy_matrix([[0.95], [0.62, None]], ["a", "b"])
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
    matrix = accuracy_matrix([[0.913] * (row + 1) for row in range(20)], tasks)
    assert matrix.dense
    assert matrix.rows[0][1][0] is not None
    assert matrix.rows[0][1][0].text == "91"


def test_retrieval_matrix_shares_rows_and_keeps_other_tasks() -> None:
    pairs = [("a", "a")] * 2999 + [("a", "b")] + [("b", "b")] * 3 + [("b", "unknown")]
    matrix = retrieval_matrix(pd.DataFrame(pairs, columns=["task", "retrieved_task"]), ["a", "b", "c"])
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
    curves = training_curves([("a", long, 2), ("b", short, 9), ("c", short, None)])
    assert (curves.low, curves.high_loss, curves.first, curves.last) == (0.5, 2.5, 1, 3)
    first, second, third = curves.panels
    assert first.best == BestEpoch(epoch=2, accuracy=0.8, x=132.0, y=36.0)
    assert first.accuracy.startswith("M34.0 61.0L132.0 36.0")
    assert first.val_loss == "M34.0 84.0L132.0 104.0"
    assert second.best is None
    assert third.accuracy == "M34.0 61.0h0"


def test_curves_without_epochs_are_empty() -> None:
    columns = ["epoch", "train_loss", "val_loss", "val_accuracy"]
    curves = training_curves([("a", pd.DataFrame(columns=columns, dtype="float64"), None)])
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
        for name in ("ink", "soft", "accent", "warn", "good", *(f"hue{hue}" for hue in range(HUES))):
            assert _contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    for shade in np.linspace(0, 1, 101).round(3).tolist():
        text = colours["on-strong" if MatrixCell("", shade, "").strong else "on-pale"]
        for name in ("right", "wrong"):
            cell = _blend(colours[name], colours["cell"], shade)
            assert _contrast(text, cell) >= 4.5, (name, shade)
