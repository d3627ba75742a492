"""The picture of the signatures in two dimensions: points, centroids and spreads become SVG coordinates.

The template draws what is laid out here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.report.charts import NUMBERED_ABOVE

HUES = 7  # colours in the template's palette; a longer stream goes round it again
MAX_POINTS = 4000  # drawn over all tasks
MAX_CENTROIDS = 1000
LONG = 20  # characters of a name
RINGS = (24.0, 40.0, 60.0, 85.0, 115.0)  # distances from its task at which a label may stand

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ellipse:
    """A component of a signature.

    Attributes:
        x: Of the centre, in user units.
        y: Of the centre, in user units.
        rx: First half axis, two standard deviations, in user units.
        ry: Second half axis.
        angle: Of the first axis, in degrees.
        label: The component's class, or "".
    """

    x: float
    y: float
    rx: float
    ry: float
    angle: float
    label: str


@dataclass(frozen=True)
class CloudLabel:
    """A task's name beside its cloud, and the line from the name's edge to the cloud."""

    text: str
    x: float
    y: float
    line: tuple[float, float, float, float]


@dataclass(frozen=True)
class Cloud:
    """One task in the picture.

    Attributes:
        task: Its name.
        hue: Number of its colour in the palette.
        path: Its points, as one SVG path of dots.
        ellipses: The components of its signature.
        label: Its name or number, and where it stands.
    """

    task: str
    hue: int
    path: str
    ellipses: tuple[Ellipse, ...]
    label: CloudLabel


@dataclass(frozen=True)
class SignatureMap:
    """The picture of the signatures in two dimensions.

    Attributes:
        width: Of the frame, in user units.
        height: Of the frame, in user units.
        clouds: One for each task that has points or components.
        points: Number of points that are drawn.
        outside: Of these, the number outside the frame.
        numbered: Whether numbers take the place of names.
    """

    width: int
    height: int
    clouds: tuple[Cloud, ...]
    points: int
    outside: int
    numbered: bool


def signature_map(projection: pd.DataFrame, tasks: Sequence[str], width: int = 880) -> SignatureMap | None:
    """Lay out points, centroids and spreads with one scale for both axes; None when there is nothing to draw.

    The frame holds the inner 99 % of the points along each axis and every centroid with its spread.

    Args:
        projection: columns kind (point or centroid), task, label, x, y, cov_xx, cov_xy, cov_yy.
        tasks: in the order of arrival, which gives hues and numbers.
        width: of the frame, in user units.
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
    return SignatureMap(width, height, tuple(clouds), len(every), outside, numbered)


def _frame(points: pd.DataFrame, centroids: pd.DataFrame, width: int) -> tuple[Floats, Floats, int]:
    """Return the origin in data units, the scale of each axis (y points down), and the height of the frame."""
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
    """Choose at most `most` (at least one) of `count` indices, evenly spread."""
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
    """Draw dots as zero-length segments of one path with round caps, in a tenth of the bytes of circles."""
    return "".join(f"M{x:.1f} {y:.1f}h0" for x, y in dots)


def _tip(dots: Floats, ellipses: Sequence[Ellipse]) -> tuple[float, float]:
    """Choose the point that a task's label points to: its most central centroid, or the middle of its points."""
    spots = np.array([(ellipse.x, ellipse.y) for ellipse in ellipses]) if ellipses else dots
    if not len(spots):
        return 0.0, 0.0
    x, y = spots[np.abs(spots - np.median(spots, axis=0)).sum(axis=1).argmin()].round(1).tolist()
    return x, y


def _labels(names: Sequence[str], tips: Sequence[tuple[float, float]], ink: Floats, frame: Floats) -> list[CloudLabel]:
    """Put every name near its tip, where it covers the least ink, no other name, and nothing of the frame's edge.

    Args:
        names: of the n tasks.
        tips: n pairs (x, y), in user units.
        ink: (m, 2), the places of everything that is drawn.
        frame: (2,), its width and height.
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
        labels.append(CloudLabel(name, x, y, (edge_x, edge_y, *tip)))
    return labels


def _inside(spots: Floats, others: Floats, half: Floats) -> NDArray[np.bool_]:
    """Mark, in an array (spots, others), which of `others` lie in the box of half size `half` around each spot."""
    return np.asarray((np.abs(spots[:, None] - others[None]) < half).all(axis=2), dtype=np.bool_)
