"""Matrices and training curves of the report: tables become shades and SVG coordinates, which the template draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

NUMBERED_ABOVE = 12  # tasks; with more, cells are small, and numbers take the place of names in pictures
ACROSS, UPPER, LOWER = (34.0, 230.0), (66.0, 16.0), (134.0, 84.0)  # the two strips of a training panel
SWITCH = 0.7  # shade above which text on a cell changes colour; the template's colours have 4.5:1 on both sides of it

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MatrixCell:
    """One cell of a matrix: its text, its shade in [0, 1], its tooltip, and whether it counts errors."""

    text: str
    shade: float
    title: str
    wrong: bool = False

    @property
    def strong(self) -> bool:
        """Whether text needs the colour for dark ground (light ground in dark mode)."""
        return self.shade > SWITCH


@dataclass(frozen=True)
class ShadedMatrix:
    """A table of shaded cells; None is an empty cell."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[MatrixCell | None, ...]], ...]
    low: float = 0.0

    @property
    def dense(self) -> bool:
        """Whether cells must be small to stay legible as a whole."""
        return len(self.columns) > NUMBERED_ABOVE


def accuracy_matrix(values: Sequence[Sequence[float | None]], tasks: Sequence[str]) -> ShadedMatrix:
    """Shade R[t,j], j <= t, from the lowest accuracy (rounded down to a tenth, at most 0.8) to one."""
    known = [value for row in values for value in row if value is not None]
    low = min([0.8, *(math.floor(value * 10) / 10 for value in known)])
    digits = 0 if len(tasks) > NUMBERED_ABOVE else 1

    def cell(after: str, task: str, value: float | None) -> MatrixCell:
        title = f"{task} after {after}"
        if value is None:
            return MatrixCell("?", 0.0, f"{title}: not measured")
        shade = 0.06 + 0.94 * (value - low) / (1 - low)
        return MatrixCell(f"{100 * value:.{digits}f}", round(shade, 3), f"{title}: {100 * value:.1f}%")

    rows = [
        (after, tuple(cell(after, task, value) for task, value in zip(tasks, row, strict=False)))
        for after, row in zip(tasks, values, strict=False)
    ]
    return ShadedMatrix(
        tuple(tasks), tuple((name, cells + (None,) * (len(tasks) - len(cells))) for name, cells in rows), low
    )


def retrieval_matrix(predictions: pd.DataFrame, tasks: Sequence[str]) -> ShadedMatrix:
    """Share of every task's test images (rows) by the task retrieved for them (columns).

    The shade is the square root of the share, so that a few stray images can be seen.
    """
    counts = predictions.groupby(["task", "retrieved_task"]).size()
    others = sorted(set(predictions["retrieved_task"]) - set(tasks))  # such as `unknown`
    columns = (*tasks, *others)
    digits = 0 if len(columns) > NUMBERED_ABOVE else 1

    def row(task: str) -> tuple[MatrixCell | None, ...]:
        found = [int(counts.get((task, column), 0)) for column in columns]
        total = sum(found)
        return tuple(_share(task, column, count, total, digits) for column, count in zip(columns, found, strict=True))

    return ShadedMatrix(columns, tuple((task, row(task)) for task in tasks))


def _share(task: str, retrieved: str, count: int, total: int, digits: int) -> MatrixCell | None:
    if not count:
        return None
    share = count / total
    text = f"{100 * share:.{digits}f}" if 100 * share >= 0.1**digits else f"<{0.1**digits:g}"
    title = f"{task} → {retrieved}: {count} of {total} images"
    return MatrixCell(text, round(math.sqrt(share), 3), title, wrong=task != retrieved)


@dataclass(frozen=True)
class BestEpoch:
    """The epoch whose module is kept, its accuracy, and the place of that in the panel."""

    epoch: int
    accuracy: float
    x: float
    y: float


@dataclass(frozen=True)
class TrainingPanel:
    """One task's training, in a frame of 240 x 150 user units: validation accuracy above, losses below.

    Attributes:
        task: Its name.
        epochs: Number of epochs.
        accuracy: SVG path of the validation accuracy.
        val_loss: SVG path of the validation loss.
        train_loss: SVG path of the training loss.
        best: The epoch whose module is kept, where it is known.
    """

    task: str
    epochs: int
    accuracy: str
    val_loss: str
    train_loss: str
    best: BestEpoch | None


@dataclass(frozen=True)
class TrainingCurves:
    """Small multiples with the same axes in every panel.

    Attributes:
        panels: One for each task.
        low: The accuracy at the lower end of its axis.
        high_loss: The loss at the upper end of its axis.
        first: The first epoch.
        last: The last epoch of any task.
    """

    panels: tuple[TrainingPanel, ...]
    low: float
    high_loss: float
    first: int
    last: int


def training_curves(curves: Sequence[tuple[str, pd.DataFrame, int | None]]) -> TrainingCurves:
    """Lay out the training of every task.

    Args:
        curves: (task, table of epoch, train_loss, val_loss, val_accuracy, best epoch) of each.
    """
    every = pd.concat([table for _, table, _ in curves], ignore_index=True)
    first, last = (every["epoch"].min(), every["epoch"].max()) if len(every) else (1, 1)
    low = math.floor(10 * min([0.9, *every["val_accuracy"].dropna()])) / 10
    high = max([0.0, *every["train_loss"].dropna(), *every["val_loss"].dropna()]) or 1.0

    def panel(task: str, table: pd.DataFrame, best: int | None) -> TrainingPanel:
        x = _scale(table, "epoch", (first, max(last, first + 1)), ACROSS)
        y = _scale(table, "val_accuracy", (low, 1.0), UPPER)
        val_loss, train_loss = (_scale(table, name, (0.0, high), LOWER) for name in ("val_loss", "train_loss"))
        spots = np.flatnonzero((table["epoch"] == best).to_numpy() & np.isfinite(y))
        kept = None
        if best is not None and len(spots):
            spot = int(spots[0])
            accuracy = float(table["val_accuracy"].to_numpy()[spot])
            kept = BestEpoch(best, accuracy, round(float(x[spot]), 1), round(float(y[spot]), 1))
        return TrainingPanel(task, len(table), _line(x, y), _line(x, val_loss), _line(x, train_loss), kept)

    return TrainingCurves(tuple(panel(*curve) for curve in curves), low, high, int(first), int(last))


def _scale(table: pd.DataFrame, column: str, values: tuple[float, float], frame: tuple[float, float]) -> Floats:
    """Scale a column so that the two `values` fall on the two ends of `frame`."""
    share = (table[column].to_numpy(dtype=np.float64) - values[0]) / (values[1] - values[0])
    return np.asarray(frame[0] + share * (frame[1] - frame[0]), dtype=np.float64)


def _line(x: Floats, y: Floats) -> str:
    """Draw a polyline through the finite points; a single point becomes a dot."""
    pairs = [f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True) if np.isfinite(a) and np.isfinite(b)]
    return "M" + "L".join(pairs) + ("h0" if len(pairs) == 1 else "") if pairs else ""
