"""Test images with their predictions: some right ones, and the wrong ones that were most confident."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from components.config import Config
from components.data.images import ImageError, Limits, open_image
from components.data.task_data import image_folders
from components.io import sha256_bytes

THUMBNAIL = 96  # pixels, the longer side
TINY = 48  # images smaller than this are shown as crisp squares instead of being smoothed
EXAMPLES = 240  # thumbnails on the page, over all tasks
EXAMPLES_PER_SIDE = 8  # of one task: at most so many right and so many wrong ones


@dataclass(frozen=True)
class Example:
    """One test image with its prediction.

    Attributes:
        picture: Thumbnail as a data URI; "" if the image cannot be read.
        tiny: Whether it is shown as crisp squares.
        label: Its true class.
        predicted: The predicted class; "" where another task was retrieved.
        retrieved: The retrieved task where that is another one; else "".
        probability: Of the prediction: of task and class, or of the other task.
    """

    picture: str
    tiny: bool
    label: str
    predicted: str
    retrieved: str
    probability: float


def examples_of(root: Path, config: Config, task: str, predictions: pd.DataFrame) -> dict[str, Any]:
    """Choose right predictions, spread over the classes, and the wrong ones that were most confident.

    Args:
        root: the project, in which the images lie.
        config: its settings.
        task: whose test images are shown.
        predictions: of all tasks' test images.

    Returns:
        task, count_right, count_wrong, the Examples `right` and `wrong` whose images are there, and how many are gone.
    """
    side = min(EXAMPLES_PER_SIDE, max(1, EXAMPLES // (2 * len(config.tasks))))
    table = predictions[predictions["task"] == task]
    correct = table["correct"].astype(bool)
    right, wrong = table[correct], table[~correct]
    right = right.assign(draw=[sha256_bytes(str(path).encode()) for path in right["path"]]).sort_values("draw")
    right = right.assign(turn=right.groupby("label").cumcount()).sort_values(["turn", "draw"])
    wrong = wrong.assign(sure=wrong["probability"].fillna(wrong["task_probability"]))
    wrong = wrong.sort_values(["sure", "path"], ascending=[False, True])
    folders, limits = image_folders(root, config, task), Limits.of(config.data)
    shown = {
        "right": [_example(folders, limits, row) for row in right.head(side).itertuples()],
        "wrong": [_example(folders, limits, row) for row in wrong.head(side).itertuples()],
    }
    return {
        "task": task,
        "count_right": len(right),
        "count_wrong": len(wrong),
        **{name: [example for example in examples if example.picture] for name, examples in shown.items()},
        "gone": sum(not example.picture for examples in shown.values() for example in examples),
    }


def _example(folders: Sequence[Path], limits: Limits, row: Any) -> Example:
    elsewhere = row.retrieved_task != row.task
    retrieved = str(row.retrieved_task) if elsewhere else ""
    found = [folder / str(row.path) for folder in folders if (folder / str(row.path)).is_file()]
    picture, tiny = _thumbnail(found[0], limits) if found else ("", False)
    predicted, probability = ("", row.task_probability) if elsewhere else (str(row.predicted_label), row.probability)
    return Example(picture, tiny, str(row.label), predicted, retrieved, float(probability))


def _thumbnail(path: Path, limits: Limits) -> tuple[str, bool]:
    """Return a data URI ("" where the image is gone or cannot be decoded), and whether the image is tiny."""
    try:
        image = open_image(path, limits)
    except (ImageError, OSError):
        return "", False
    tiny = max(image.size) < TINY
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=tiny, quality=78, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode(), tiny
