"""The stage `evaluate`: every metric, and the prediction of every test image, from one pass over the test images."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components.arrays import Indices
from components.config import Config
from components.evaluation.metric_report import metric_report
from components.evaluation.projection import project
from components.evaluation.retrieve import retrieve
from components.evaluation.test_scores import KnownTasks, TestScores, score_test_images
from components.io import write_json, write_table, write_text


def evaluate(root: Path, config: Config) -> None:
    """Write reports/metrics.json, the predictions, the tables of the plots and the 2-D projection."""
    scores = score_test_images(root, config)
    known = scores.with_known(config.shortlist, len(scores.signatures))
    metrics = metric_report(scores, known, config)
    predictions = prediction_table(scores, known, config)
    write_json(root / "reports/metrics.json", metrics)
    write_table(root / "reports/predictions.parquet", predictions)
    write_table(root / "reports/projection.parquet", project(scores, config.seed))
    for name, table in _plots(metrics, predictions).items():
        text = io.StringIO()
        table.to_csv(text, index=False, lineterminator="\n")
        write_text(root / f"reports/plots/{name}.csv", text.getvalue())
    print(f"accuracy_final {metrics['accuracy_final']:.4f}, retrieval_accuracy {metrics['retrieval_accuracy']:.4f}")


def prediction_table(scores: TestScores, known: KnownTasks, config: Config) -> pd.DataFrame:
    """Return the prediction of every test image, also of an unknown one, with the scores that it rests on.

    Args:
        scores: of the test images.
        known: the images where all tasks are known (`with_known`).
        config: of the project.

    Returns:
        A row for each image: truth, prediction, their probabilities, and log p(k | x) of every task.
    """
    rows, names, found = np.arange(len(scores.task)), scores.names, known.retrieval
    log_task, retrieved = retrieve(scores, known, config)
    task_probability = np.exp(log_task[rows, retrieved])
    best_class = known.best_class[rows, retrieved]
    table = {
        "task": [names[k] for k in scores.task],
        "path": scores.paths,
        "label": _labels(scores, scores.task, scores.label),
        "retrieved_task": [names[k] for k in retrieved],
        "predicted_label": _labels(scores, retrieved, best_class),
        "task_probability": task_probability,
        "probability": task_probability * np.exp(known.class_log_probability[rows, retrieved]),
        "p_value": found.p_value,
        "unknown": found.unknown,
        "early": found.decided_by_trunk,
        "correct": scores.correct(retrieved, known),
        "retrieved": retrieved == scores.task,
    }
    return pd.DataFrame(table | {f"log_p:{name}": log_task[:, k] for k, name in enumerate(names)})


def _labels(scores: TestScores, tasks: Indices, classes: Indices) -> list[str]:
    """Return the names of classes (n,), each of a task (n,)."""
    return [scores.signatures[k].classes[c] for k, c in zip(tasks, classes, strict=True)]


def _plots(metrics: dict[str, Any], predictions: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the tables of DVC's plots: accuracies by task, and true beside retrieved task of every image."""
    columns = ["accuracy", "retrieval_accuracy", "task_aware_accuracy"]
    accuracy = pd.DataFrame.from_dict(metrics["per_task"], orient="index")[columns].rename_axis("task").reset_index()
    confusion = predictions[["task", "retrieved_task"]].rename(columns={"retrieved_task": "retrieved"})
    return {"accuracy": accuracy, "retrieval": confusion}
