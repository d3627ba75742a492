"""One seed and one order of a stream: the tasks as they arrive, and test images that no method learns from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.arrays import Indices
from components.lab.embedded_images import EmbeddedImages, ImageRows

VAL_SHARE = 0.15


@dataclass(frozen=True)
class Labelled:
    """Images with their classes (n,), indices into the task's own."""

    images: ImageRows
    labels: Indices

    def __len__(self) -> int:
        """Return the number of images n."""
        return len(self.labels)


@dataclass(frozen=True)
class ArrivingTask:
    """What a method gets of a task when it arrives, and never again afterwards."""

    name: str
    classes: int
    train: Labelled
    val: Labelled


@dataclass(frozen=True)
class TaskSequence:
    """The tasks in order of arrival; `test[k]` belongs to `tasks[k]`."""

    tasks: tuple[ArrivingTask, ...]
    test: tuple[Labelled, ...]


@dataclass(frozen=True)
class Caps:
    """Images per task at most, drawn evenly over its classes; None: all."""

    train: int | None = None
    test: int | None = None


def task_order(names: Sequence[str], order: int) -> list[str]:
    """Permute tasks: order 0 is the declared one, the others are drawn from their number."""
    if order == 0:
        return list(names)
    return [names[position] for position in np.random.default_rng(order).permutation(len(names))]


def make_task_sequence(
    table: pd.DataFrame, embedded: EmbeddedImages, seed: int, order: int, caps: Caps
) -> TaskSequence:
    """Split every task's training images by `seed` into train and validation, and put the tasks in an order.

    Validation and training share no group. An image that is also a test image of any task is not trained on.

    Args:
        table: all images of the stream, as `build_stream` returns them.
        embedded: the same images, embedded.
        seed: draws the validation split.
        order: number of the permutation of the tasks.
        caps: images per task at most.
    """
    tested = set(table.loc[table["split"] == "test", "sha256"])
    tasks, tests = [], []
    for name in task_order(list(dict.fromkeys(table["task"])), order):
        own = table[table["task"] == name]
        classes = sorted(own.loc[own["split"] == "train", "label"].unique())
        known = own[own["label"].isin(classes)]
        fresh = known[(known["split"] == "train") & ~known["sha256"].isin(tested)]
        learned = _capped(fresh, caps.train)
        held_out = _validation(learned, seed)
        train, val = (_labelled(learned[mask], classes, embedded) for mask in (~held_out, held_out))
        tasks.append(ArrivingTask(name, len(classes), train, val))
        tests.append(_labelled(_capped(known[known["split"] == "test"], caps.test), classes, embedded))
    return TaskSequence(tuple(tasks), tuple(tests))


def _labelled(rows: pd.DataFrame, classes: Sequence[str], embedded: EmbeddedImages) -> Labelled:
    labels = np.array([classes.index(label) for label in rows["label"]], dtype=np.int64)
    return Labelled(ImageRows(embedded, embedded.rows(rows["sha256"].tolist())), labels)


def _capped(rows: pd.DataFrame, limit: int | None) -> pd.DataFrame:
    """At most `limit` rows, evenly over the classes, drawn by their content alone."""
    if limit is None or len(rows) <= limit:
        return rows
    turn = rows.sort_values("sha256").groupby("label").cumcount()
    chosen = turn.sort_values(kind="stable").index[:limit]
    return rows.loc[rows.index.isin(chosen)]


def _validation(rows: pd.DataFrame, seed: int) -> NDArray[np.bool_]:
    """Choose the rows (n,) of validation: of each class a share of its groups, at least one and never all.

    Groups that span classes (a writer) are drawn once for all classes, so that they stay whole.
    """
    draw = {group: hashlib.sha256(f"{seed}|{group}".encode()).digest() for group in rows["group"].unique()}
    spanning = rows.groupby("group")["label"].nunique().max() > 1
    held_out: set[str] = set()
    for _, own in [("", rows)] if spanning else rows.groupby("label"):
        groups = sorted(own["group"].unique(), key=lambda group: draw[group])
        count = min(len(groups) - 1, max(1, round(VAL_SHARE * len(groups))))
        held_out |= set(groups[:count])
    return np.asarray(rows["group"].isin(held_out), dtype=bool)
