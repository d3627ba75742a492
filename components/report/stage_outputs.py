"""What the report reads: the outputs of the earlier stages, checked for belonging to one stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from components.config import Config
from components.data.task_data import read_manifest
from components.errors import IntaglioError
from components.io import read_json, read_table

CURVES = ("epoch", "train_loss", "val_loss", "val_accuracy")
PREDICTIONS = ("task", "path", "label", "retrieved_task", "predicted_label", "probability", "correct")
PROJECTION = ("kind", "task", "label", "x", "y", "cov_xx", "cov_xy", "cov_yy")


@dataclass(frozen=True)
class StageOutputs:
    """The outputs of the earlier stages; mappings are by task, in order of arrival.

    Attributes:
        metrics: Of the stage evaluate.
        predictions: A row for each test image, with the columns PREDICTIONS.
        projection: A row for each point and centroid, with the columns PROJECTION.
        manifests: A row for each image of the task.
        validation: Verdict and findings.
        finetune: Facts of the training.
        curves: A row for each epoch, with the columns CURVES, float64; what was not measured is NaN.
    """

    metrics: Mapping[str, Any]
    predictions: pd.DataFrame
    projection: pd.DataFrame
    manifests: Mapping[str, pd.DataFrame]
    validation: Mapping[str, Mapping[str, Any]]
    finetune: Mapping[str, Mapping[str, Any]]
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
    return StageOutputs(
        metrics=metrics,
        predictions=predictions[predictions["task"].isin(tasks)],
        projection=_table(reports / "projection.parquet", PROJECTION),
        manifests={task: read_manifest(root, task) for task in tasks},
        validation={task: read_json(reports / "validation" / task / "result.json") for task in tasks},
        finetune={task: read_json(reports / "finetune" / f"{task}.json") for task in tasks},
        curves={task: _curve(reports / "finetune" / f"{task}.csv") for task in tasks},
    )


def _table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    table = read_table(path)
    missing = [column for column in columns if column not in table]
    if missing:
        raise IntaglioError(f"{path}: columns {missing} are missing; run the stage evaluate")
    return table


def _curve(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
        return table.reindex(columns=CURVES).astype("float64")
    except FileNotFoundError:
        raise IntaglioError(f"{path}: file not found; run the stage that writes it") from None
    except (OSError, ValueError) as error:
        raise IntaglioError(f"{path}: not a table of numbers ({' '.join(str(error).split())})") from None
