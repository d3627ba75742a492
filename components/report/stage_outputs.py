"""What the report reads: the outputs of the earlier stages, checked for belonging to one stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from components.config import Config
from components.errors import IntaglioError
from components.io import read_json, read_table
from components.records.card import Card
from components.records.storage import read_cards

CURVES = ("epoch", "train_loss", "val_loss", "val_accuracy")
PREDICTIONS = (
    "task", "path", "label", "retrieved_task", "predicted_label", "task_probability", "probability", "correct",
)  # fmt: skip
PROJECTION = ("kind", "task", "label", "x", "y", "cov_xx", "cov_xy", "cov_yy")


@dataclass(frozen=True)
class StageOutputs:
    """The outputs of the earlier stages; mappings are by task, in order of arrival.

    Attributes:
        metrics: of the stage evaluate.
        predictions: a row for each test image, with the columns PREDICTIONS.
        projection: a row for each point and centroid, with the columns PROJECTION.
        cards: facts about the tasks.
        curves: a row for each epoch, with the columns CURVES, float64; what was not measured is NaN.
    """

    metrics: Mapping[str, Any]
    predictions: pd.DataFrame
    projection: pd.DataFrame
    cards: Mapping[str, Card]
    curves: Mapping[str, pd.DataFrame]


def read_stage_outputs(root: Path, config: Config) -> StageOutputs:
    """Read what the report shows.

    Raises:
        IntaglioError: an output is missing, is corrupt, or belongs to another stream of tasks.
    """
    reports, tasks = root / "reports", config.tasks
    metrics = read_json(reports / "metrics.json")
    known = metrics.get("tasks") if isinstance(metrics, Mapping) else None
    if known is None or list(known) != list(tasks):
        raise IntaglioError(
            f"{reports / 'metrics.json'}: is about the tasks {known}, but params.yaml has {list(tasks)}; "
            "run the stage evaluate"
        )
    predictions = _table(reports / "predictions.parquet", PREDICTIONS)
    cards = read_cards(root, config)
    return StageOutputs(
        metrics=metrics,
        predictions=predictions[predictions["task"].isin(tasks)],
        projection=_table(reports / "projection.parquet", PROJECTION),
        cards=cards,
        curves={task: _curve(card) for task, card in cards.items()},
    )


def _table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    table = read_table(path)
    missing = [column for column in columns if column not in table]
    if missing:
        raise IntaglioError(f"{path}: columns {missing} are missing; run the stage evaluate")
    return table


def _curve(card: Card) -> pd.DataFrame:
    return pd.DataFrame(card.training.get("curve") or [], columns=list(CURVES)).astype("float64")
