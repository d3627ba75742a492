"""The stage `evaluate`: every metric, and the prediction of every test image, from what the tasks left."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components.arrays import Indices
from components.config import Config
from components.evaluation.accuracy_matrix import accuracy_matrix
from components.evaluation.metric_report import agreement, metric_report
from components.evaluation.projection import project
from components.evaluation.retrieve import Retrieve, needs_all_modules, retrieve_pooled, retrieve_with
from components.evaluation.stream_scores import KnownTasks, StreamScores, read_stream_scores
from components.io import write_json, write_table, write_text


def evaluate(root: Path, config: Config) -> None:
    """Write reports/metrics.json, the predictions, the tables of the plots and the 2-D projection.

    Raises:
        IntaglioError: a record or a signature is missing or damaged.
    """
    scores = read_stream_scores(root, config)
    known = scores.with_known(config.shortlist, len(scores.signatures))
    modules = None
    if needs_all_modules(config):
        from components.evaluation.all_modules import embed_under_all_modules

        modules = embed_under_all_modules(root, config, scores)
    retrieve = retrieve_with(modules, scores, config) if modules else retrieve_pooled
    metrics = metric_report(scores, known, config, accuracy_matrix(root, scores, known, config, retrieve), retrieve)
    metrics["agreement_with_exact"] = agreement(scores, known, config, retrieve, modules)
    metrics["left_out"], metrics["replaces"] = left_out(config), _replaces(config)
    predictions = prediction_table(scores, known, retrieve)
    write_json(root / "reports/metrics.json", metrics)
    write_table(root / "reports/predictions.parquet", predictions)
    write_table(root / "reports/projection.parquet", project(scores, config.seed))
    for name, table in _plots(metrics, predictions).items():
        text = io.StringIO()
        table.to_csv(text, index=False, lineterminator="\n")
        write_text(root / f"reports/plots/{name}.csv", text.getvalue())
    print(f"accuracy_final {metrics['accuracy_final']:.4f}, retrieval_accuracy {metrics['retrieval_accuracy']:.4f}")


def left_out(config: Config) -> dict[str, str]:
    """Return the learned tasks that a person took out of retrieval, and how: name -> retired, replaced or dropped."""
    replaced = {task.replaces: name for name in config.tasks if (task := config.task(name)).replaces}
    found = dict.fromkeys(config.stream.dropped, "dropped")
    found |= {name: f"replaced by {by}" for name, by in replaced.items() if name is not None}
    return found | {name: "retired" for name in config.chain if config.task(name).retired}


def _replaces(config: Config) -> dict[str, str]:
    """Return the new generations: name -> the task that it replaces."""
    return {name: task.replaces for name in config.tasks if (task := config.task(name)).replaces}


def prediction_table(scores: StreamScores, known: KnownTasks, retrieve: Retrieve) -> pd.DataFrame:
    """Return the prediction of every test image, also of an unknown one, with the scores that it rests on.

    An image that went to another task has no class there: it never ran under that task's module.

    Args:
        scores: of the test images.
        known: the images where all tasks are known (`with_known`).
        retrieve: chooses the task of each image.

    Returns:
        A row for each image: truth, prediction, their probabilities, and log p(k | x) of every task.
    """
    rows, names, found = np.arange(len(scores.task)), scores.names, known.retrieval
    log_task, retrieved = retrieve(known)
    own = retrieved == scores.task
    task_probability = np.exp(log_task[rows, retrieved])
    labels = _labels(scores, scores.task, known.best_class)
    table = {
        "task": [names[k] for k in scores.task],
        "path": scores.paths,
        "label": _labels(scores, scores.task, scores.label),
        "retrieved_task": [names[k] for k in retrieved],
        "predicted_label": pd.Series(labels, dtype=object).where(own, None),
        "task_probability": task_probability,
        "probability": np.where(own, task_probability * np.exp(known.class_log_probability), np.nan),
        "p_value": found.p_value,
        "unknown": found.unknown,
        "early": found.decided_by_trunk,
        "correct": scores.correct(retrieved, known),
        "retrieved": own,
    }
    return pd.DataFrame(table | {f"log_p:{name}": log_task[:, k] for k, name in enumerate(names)})


def _labels(scores: StreamScores, tasks: Indices, classes: Indices) -> list[str]:
    """Return the names of classes (n,), each of a task (n,)."""
    return [scores.signatures[k].classes[c] for k, c in zip(tasks, classes, strict=True)]


def _plots(metrics: dict[str, Any], predictions: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the tables of DVC's plots: accuracies by task, and true beside retrieved task of every image."""
    columns = ["accuracy", "retrieval_accuracy", "task_aware_accuracy"]
    accuracy = pd.DataFrame.from_dict(metrics["per_task"], orient="index")[columns].rename_axis("task").reset_index()
    confusion = predictions[["task", "retrieved_task"]].rename(columns={"retrieved_task": "retrieved"})
    return {"accuracy": accuracy, "retrieval": confusion}
