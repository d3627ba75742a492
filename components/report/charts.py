"""Geometry of the report's charts: tables and arrays become shades and SVG coordinates; the template draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

HUES = 7  # colours in the template's palette; a longer stream goes round it again
MAX_POINTS = 4000  # drawn in the picture of the signatures, over all tasks
MAX_CENTROIDS = 1000
NUMBERED_ABOVE = 12  # with more tasks than this, names give way to numbers in the picture
LONG = 20  # characters of a name in the picture
RINGS = (24.0, 40.0, 60.0, 85.0, 115.0)  # distances from its task at which a label may stand
ACROSS, UPPER, LOWER = (34.0, 230.0), (66.0, 16.0), (134.0, 84.0)  # the two strips of a training panel
SWITCH = 0.7  # shade above which text on a cell changes colour; the template's colours have 4.5:1 on both sides of it

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MatrixCell:
    """One cell of a matrix: its text, its shade in [0, 1], what the pointer shows, and whether it is an error."""

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
    strangers = sorted(set(predictions["retrieved_task"]) - set(tasks))
    columns = (*tasks, *strangers)
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
class Ellipse:
    """A component of a signature: centre, its two-sigma half axes, and the angle of the first in degrees."""

    x: float
    y: float
    rx: float
    ry: float
    angle: float
    label: str


@dataclass(frozen=True)
class Label:
    """A task's name beside its cloud, and the line from the name's edge to the cloud."""

    text: str
    x: float
    y: float
    line: tuple[float, float, float, float]


@dataclass(frozen=True)
class Cloud:
    """One task in the picture: its points as one SVG path of dots, its components, its label."""

    task: str
    hue: int
    path: str
    ellipses: tuple[Ellipse, ...]
    label: Label


@dataclass(frozen=True)
class Map:
    """The 2-D picture of the signatures, in a frame of `width` x `height` user units."""

    width: int
    height: int
    clouds: tuple[Cloud, ...]
    points: int
    outside: int
    numbered: bool


def signature_map(projection: pd.DataFrame, tasks: Sequence[str], width: int = 880) -> Map | None:
    """Lay out points, centroids and spreads with one scale for both axes; None when there is nothing to draw.

    The frame holds the inner 99 % of the points along each axis and every centroid with its spread.
    """
    table = projection[projection["task"].isin(tasks) & projection["kind"].isin(["point", "centroid"])]
    table = table[np.isfinite(table[["x", "y"]].to_numpy(dtype=np.float64)).all(axis=1)]
    if table.empty:
        return None
    points, centroids = (table[table["kind"] == kind] for kind in ("point", "centroid"))
    origin, scale, height = _frame(points, centroids, width)
    placed = []
    for task in tasks:
        dots = (_xy(points, task) - origin) * scale
        dots = dots[_thin(len(dots), MAX_POINTS // len(tasks))]
        placed.append((task, dots, _ellipses(centroids[centroids["task"] == task], origin, scale, len(tasks))))
    numbered = len(tasks) > NUMBERED_ABOVE
    short = [task if len(task) <= LONG else task[: LONG - 1] + "\u2026" for task in tasks]
    names = [str(number) if numbered else name for number, name in enumerate(short, start=1)]
    every = np.concatenate([dots for _, dots, _ in placed])
    tips = [_tip(dots, ellipses) for _, dots, ellipses in placed]
    ink = np.concatenate([every, *(np.array([(e.x, e.y)] * 4) for _, _, ellipses in placed for e in ellipses)])
    labels = _labels(names, tips, ink, np.array([width, height], dtype=np.float64))
    clouds = [
        Cloud(task, number % HUES, _dots(dots), ellipses, labels[number])
        for number, (task, dots, ellipses) in enumerate(placed)
        if len(dots) or ellipses
    ]
    outside = int(((every < 0) | (every > (width, height))).any(axis=1).sum())
    return Map(width, height, tuple(clouds), len(every), outside, numbered)


def _frame(points: pd.DataFrame, centroids: pd.DataFrame, width: int) -> tuple[Floats, Floats, int]:
    """Origin in data units, scale per axis (y points down), and height of the frame."""
    inner = points[["x", "y"]].quantile([0.005, 0.995]).to_numpy(dtype=np.float64)
    inner = inner[np.isfinite(inner).all(axis=1)]
    middles = centroids[["x", "y"]].to_numpy(dtype=np.float64)
    # Ellipses too, unless a component without data, as wide as its prior, would shrink all others to dots.
    reach = 2 * np.sqrt(np.maximum(centroids[["cov_xx", "cov_yy"]].fillna(0.0).to_numpy(dtype=np.float64), 0.0))
    reach = np.minimum(reach, 0.4 * np.ptp(np.concatenate([inner, middles]), axis=0))
    corners = np.concatenate([inner, middles - reach, middles + reach])
    low, high = corners.min(axis=0), corners.max(axis=0)
    span = np.maximum(high - low, max(float((high - low).max()) * 1e-3, 1e-9)) * 1.08
    height = int(np.clip(width * span[1] / span[0], 0.45 * width, 0.62 * width))
    factor = min(width / span[0], height / span[1])
    scale = np.array([factor, -factor])
    centre = (low + high) / 2
    origin = centre - np.array([width, height]) / 2 / scale
    return origin, scale, height


def _xy(table: pd.DataFrame, task: str) -> Floats:
    return table.loc[table["task"] == task, ["x", "y"]].to_numpy(dtype=np.float64).reshape(-1, 2)


def _thin(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` (at least one) of `count` indices, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, max(most, 1))).astype(np.int64))


def _ellipses(centroids: pd.DataFrame, origin: Floats, scale: Floats, tasks: int) -> tuple[Ellipse, ...]:
    chosen = centroids.iloc[_thin(len(centroids), MAX_CENTROIDS // tasks)]
    ellipses = []
    for row in chosen.itertuples():
        x, y = (np.array([row.x, row.y], dtype=np.float64) - origin) * scale
        spread = np.array([[row.cov_xx, row.cov_xy], [row.cov_xy, row.cov_yy]], dtype=np.float64)
        spread = spread * np.outer(scale, scale) if np.isfinite(spread).all() else np.zeros((2, 2))
        variances, axes = np.linalg.eigh(spread)
        ry, rx = 2 * np.sqrt(np.maximum(variances, 0))
        angle = math.degrees(math.atan2(axes[1, 1], axes[0, 1])) % 180
        label = row.label if isinstance(row.label, str) else ""
        ellipses.append(Ellipse(round(x, 1), round(y, 1), round(rx, 1), round(ry, 1), round(angle, 1), label))
    return tuple(ellipses)


def _dots(dots: Floats) -> str:
    """A path of zero-length segments: round caps make each a dot, in a tenth of the bytes of circles."""
    return "".join(f"M{x:.1f} {y:.1f}h0" for x, y in dots)


def _tip(dots: Floats, ellipses: Sequence[Ellipse]) -> tuple[float, float]:
    """Where a task's label points to: its most central centroid, or the middle of its points."""
    spots = np.array([(ellipse.x, ellipse.y) for ellipse in ellipses]) if ellipses else dots
    if not len(spots):
        return 0.0, 0.0
    x, y = spots[np.abs(spots - np.median(spots, axis=0)).sum(axis=1).argmin()].round(1).tolist()
    return x, y


def _labels(names: Sequence[str], tips: Sequence[tuple[float, float]], ink: Floats, frame: Floats) -> list[Label]:
    """Put every name near its tip, where it covers the least ink, no other name, and nothing of the frame's edge.

    names: (n,), tips: (n,) pairs, ink: (m, 2) everything drawn, frame: (2,) width and height.
    """
    angles = np.arange(-4, 12) * np.pi / 8  # straight up first: among equals the first wins
    rings = np.array([(np.cos(angle) * far * 1.5, np.sin(angle) * far) for far in RINGS for angle in angles])
    effort = np.repeat(RINGS, len(angles)) * 0.06
    centres, halves = np.empty((0, 2)), np.empty((0, 2))
    labels = []
    for name, tip in zip(names, tips, strict=True):
        half = np.array([4.5 * len(name) + 5, 11.0])
        spots = np.array(tip) + rings
        covered = _inside(spots, ink, half).sum(axis=1)
        clashes = _inside(spots, centres, half + halves).sum(axis=1)
        cut = ((spots < half) | (spots > frame - half)).any(axis=1)
        spot = spots[(covered + effort + 1000.0 * clashes + 5000.0 * cut).argmin()]
        centres, halves = np.vstack([centres, spot]), np.vstack([halves, half])
        way = np.array(tip) - spot
        edge = spot + way * min(1.0, float((half / np.maximum(np.abs(way), 1e-9)).min()))
        x, y, edge_x, edge_y = np.concatenate([spot, edge]).round(1).tolist()
        labels.append(Label(name, x, y, (edge_x, edge_y, *tip)))
    return labels


def _inside(spots: Floats, others: Floats, half: Floats) -> NDArray[np.bool_]:
    """(spots, others): whether each of `others` lies in the box of half size `half` around each spot."""
    return np.asarray((np.abs(spots[:, None] - others[None]) < half).all(axis=2), dtype=np.bool_)


@dataclass(frozen=True)
class Best:
    """The epoch whose module is kept, and where its accuracy stands in the panel."""

    epoch: int
    accuracy: float
    x: float
    y: float


@dataclass(frozen=True)
class Panel:
    """One task's training: validation accuracy above, losses below, as SVG paths in a 240 x 150 frame."""

    task: str
    epochs: int
    accuracy: str
    val_loss: str
    train_loss: str
    best: Best | None


@dataclass(frozen=True)
class Curves:
    """Small multiples with the same axes in every panel."""

    panels: tuple[Panel, ...]
    low: float
    high_loss: float
    first: int
    last: int


def training_curves(curves: Sequence[tuple[str, pd.DataFrame, int | None]]) -> Curves:
    """Lay out (task, table of epoch, train_loss, val_loss, val_accuracy; best epoch) for every task."""
    every = pd.concat([table for _, table, _ in curves], ignore_index=True)
    first, last = (every["epoch"].min(), every["epoch"].max()) if len(every) else (1, 1)
    low = math.floor(10 * min([0.9, *every["val_accuracy"].dropna()])) / 10
    high = max([0.0, *every["train_loss"].dropna(), *every["val_loss"].dropna()]) or 1.0

    def panel(task: str, table: pd.DataFrame, best: int | None) -> Panel:
        x = _scale(table, "epoch", (first, max(last, first + 1)), ACROSS)
        y = _scale(table, "val_accuracy", (low, 1.0), UPPER)
        val_loss, train_loss = (_scale(table, name, (0.0, high), LOWER) for name in ("val_loss", "train_loss"))
        spots = np.flatnonzero((table["epoch"] == best).to_numpy() & np.isfinite(y))
        kept = None
        if best is not None and len(spots):
            spot = int(spots[0])
            accuracy = float(table["val_accuracy"].to_numpy()[spot])
            kept = Best(best, accuracy, round(float(x[spot]), 1), round(float(y[spot]), 1))
        return Panel(task, len(table), _line(x, y), _line(x, val_loss), _line(x, train_loss), kept)

    return Curves(tuple(panel(*curve) for curve in curves), low, high, int(first), int(last))


def _scale(table: pd.DataFrame, column: str, values: tuple[float, float], frame: tuple[float, float]) -> Floats:
    """Map a column so that the two `values` fall on the two ends of `frame`."""
    share = (table[column].to_numpy(dtype=np.float64) - values[0]) / (values[1] - values[0])
    return np.asarray(frame[0] + share * (frame[1] - frame[0]), dtype=np.float64)


def _line(x: Floats, y: Floats) -> str:
    """A polyline through the finite points; a single point becomes a dot."""
    pairs = [f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True) if np.isfinite(a) and np.isfinite(b)]
    return "M" + "L".join(pairs) + ("h0" if len(pairs) == 1 else "") if pairs else ""
