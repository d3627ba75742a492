"""The accuracy matrix R[t,j] and every metric of docs/method.md, from one pass over the test images."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components.arrays import Indices, Matrix
from components.config import Config
from components.evaluation.baselines import baselines, frozen_task_aware, result_row
from components.evaluation.certificate import confusion_bound, measured_confusion, separation
from components.evaluation.metrics import stream_metrics
from components.evaluation.projection import project
from components.evaluation.test_scores import KnownTasks, TestScores, score_test_images
from components.evaluation.unknown_tasks import rejection
from components.io import write_json, write_table, write_text
from components.retrieval.pooled import PooledRetriever, choose_task, log_posterior

RULES = ("pooled", "dpgmm")


def evaluate(root: Path, config: Config) -> None:
    """The `evaluate` stage: reports/metrics.json, the predictions, the plots' tables and the 2-D projection."""
    scored = score_test_images(root, config)
    view = scored.view(config.shortlist, len(scored.signatures))
    metrics = summarise(scored, view, config)
    predictions = predict_all(scored, view, config)
    write_json(root / "reports/metrics.json", metrics)
    write_table(root / "reports/predictions.parquet", predictions)
    write_table(root / "reports/projection.parquet", project(scored, config.seed))
    confusion = predictions[["task", "retrieved_task"]].rename(columns={"retrieved_task": "retrieved"})
    columns = ["accuracy", "retrieval_accuracy", "task_aware_accuracy"]
    accuracy = pd.DataFrame.from_dict(metrics["per_task"], orient="index")[columns].rename_axis("task").reset_index()
    for name, table in {"accuracy": accuracy, "retrieval": confusion}.items():
        text = io.StringIO()
        table.to_csv(text, index=False, lineterminator="\n")
        write_text(root / f"reports/plots/{name}.csv", text.getvalue())
    print(f"accuracy_final {metrics['accuracy_final']:.4f}, retrieval_accuracy {metrics['retrieval_accuracy']:.4f}")


def retrieve(scored: TestScores, view: KnownTasks, config: Config) -> tuple[Matrix, Indices]:
    """As it is served, with only the tasks of `view` known and every image answered.

    Returns:
        log p(k|x) of the tasks asked (n, known), and the retrieved task (n,).
    """
    log_task, shortlist = view.found.log_posterior, view.found.shortlist
    if config.retrieval.rule == "dpgmm":
        log_task = log_posterior(np.where(shortlist, scored.density[:, : shortlist.shape[1]], -np.inf))
    if config.retrieval.prediction == "soft":
        return log_task, np.where(shortlist, log_task + view.confidence, -np.inf).argmax(axis=1)
    return log_task, log_task.argmax(axis=1)


def retrieve_exactly(scored: TestScores, view: KnownTasks, config: Config, rule: str) -> Indices:
    """The retrieved task (n,) with every task scored in full: what `retrieve` is held against."""
    scores = scored.scores(rule, len(scored.signatures))
    if config.retrieval.prediction == "hard":
        return choose_task(scores)
    return choose_task(scores / config.shortlist.temperature if rule == "pooled" else scores, view.confidence)


def accuracy_matrix(scored: TestScores, config: Config) -> list[list[float]]:
    """R[t][j], j <= t: accuracy on task j's test images with tasks 0..t known, the task of an image unknown."""
    views = (scored.view(config.shortlist, known + 1) for known in range(len(scored.signatures)))
    rows = [scored.per_task(scored.correct(retrieve(scored, view, config)[1], view)) for view in views]
    return [row[: known + 1] for known, row in enumerate(rows)]


def summarise(scored: TestScores, view: KnownTasks, config: Config) -> dict[str, Any]:
    """All of reports/metrics.json; `view` knows all tasks."""
    names = [signature.task for signature in scored.signatures]
    sizes = np.bincount(scored.task, minlength=len(names))
    matrix = accuracy_matrix(scored, config)
    retrieved = retrieve(scored, view, config)[1]
    right_task = retrieved == scored.task
    columns = {
        "accuracy": scored.per_task(scored.correct(retrieved, view)),
        "retrieval_accuracy": scored.per_task(right_task),
        "task_aware_accuracy": scored.per_task(scored.correct(scored.task, view)),
        "frozen_task_aware_accuracy": scored.per_task(frozen_task_aware(scored)),
    }
    return {
        "tasks": names,
        "classes": sum(len(signature.classes) for signature in scored.signatures),
        "test_images": len(scored.task),
        **stream_metrics(matrix, sizes.tolist()),
        "retrieval_accuracy": float(right_task.mean()),
        "task_aware_accuracy": float(np.mean(columns["task_aware_accuracy"])),
        "frozen_task_aware_accuracy": float(np.mean(columns["frozen_task_aware_accuracy"])),
        **shortlist_metrics(scored, config.shortlist.epsilon),
        **serving_metrics(scored, view, config, retrieved),
        "accuracy_matrix": matrix,
        "rules": {name: _rule_row(scored, view, config, name) for name in RULES},
        "baselines": baselines(scored),
        "rejection": rejection(scored),
        "certificate": certificate(scored, config.shortlist.epsilon),
        "per_task": {
            name: {key: values[row] for key, values in columns.items()} | {"test_images": int(sizes[row])}
            for row, name in enumerate(names)
        },
    }


def shortlist_metrics(scored: TestScores, epsilon: float) -> dict[str, float]:
    """How often the true task stays in question (promised: at least 1 - epsilon), and how many tasks do."""
    shortlist = scored.p_values > epsilon
    return {
        "shortlist_coverage": float(shortlist[np.arange(len(shortlist)), scored.task].mean()),
        "shortlist_size": float(shortlist.sum(axis=1).mean()),
    }


def serving_metrics(scored: TestScores, view: KnownTasks, config: Config, retrieved: Indices) -> dict[str, float]:
    """What constant cost costs: images called unknown, images that the trunk alone decided, images whose shortlist was
    cut to the cap, and the share whose whole answer is the one with every task scored in full.
    """
    found, exact = view.found, retrieve_exactly(scored, view, config, config.retrieval.rule)
    unknown = ~(scored.p_values > config.shortlist.epsilon).any(axis=1)
    return {
        "unknown_rate": float(found.unknown.mean()),
        "early_share": float(found.decided_by_trunk.mean()),
        "cap_rate": float(found.capped.mean()),
        "agreement_with_exact": float(((retrieved == exact) & (found.unknown == unknown)).mean()),
    }


def certificate(scored: TestScores, epsilon: float) -> dict[str, Any]:
    """What is promised and what is measured, per task and for every pair (matrices in the order of the tasks)."""
    retriever = PooledRetriever.fit([signature.statistics for signature in scored.signatures])
    delta, bound = separation(retriever), confusion_bound(retriever)
    measured = measured_confusion(retriever.scores(scored.h0), scored.task)
    coverage = scored.per_task(scored.p_values[np.arange(len(scored.task)), scored.task] > epsilon)
    tasks: dict[str, dict[str, Any]] = {}
    for row, signature in enumerate(scored.signatures):
        held_out = len(signature.support.calibration.scores)
        facts: dict[str, Any] = {"coverage_promised": 1 - epsilon, "coverage": coverage[row]}
        if others := [column for column in range(len(delta)) if column != row]:
            near = min(others, key=lambda column: float(delta[row, column]))
            facts |= {"nearest": scored.signatures[near].task, "delta": float(delta[row, near])}
            facts |= {"bound": float(bound[row, near]), "measured": float(measured[row, near])}
        tasks[signature.task] = facts | {"held_out_images": held_out}
    return {"tasks": tasks, "delta": delta.tolist(), "bound": bound.tolist(), "measured": measured.tolist()}


def _rule_row(scored: TestScores, view: KnownTasks, config: Config, rule: str) -> dict[str, float]:
    """What one retrieval rule reaches with the same modules and classifiers, every task scored in full."""
    retrieved = retrieve_exactly(scored, view, config, rule)
    return result_row(scored, retrieved, scored.correct(retrieved, view))


def predict_all(scored: TestScores, view: KnownTasks, config: Config) -> pd.DataFrame:
    """The prediction of every test image, also where it would be called unknown, with what it rests on."""
    rows, names = np.arange(len(scored.task)), [signature.task for signature in scored.signatures]
    found, (log_task, retrieved) = view.found, retrieve(scored, view, config)
    task_probability = np.exp(log_task[rows, retrieved])
    best = view.best[rows, retrieved]
    table = {
        "task": [names[task] for task in scored.task],
        "path": scored.paths,
        "label": [scored.signatures[k].classes[c] for k, c in zip(scored.task, scored.label, strict=True)],
        "retrieved_task": [names[task] for task in retrieved],
        "predicted_label": [scored.signatures[k].classes[c] for k, c in zip(retrieved, best, strict=True)],
        "task_probability": task_probability,
        "probability": task_probability * np.exp(view.confidence[rows, retrieved]),
        "p_value": found.p_value,
        "unknown": found.unknown,
        "early": found.decided_by_trunk,
        "correct": scored.correct(retrieved, view),
        "retrieved": retrieved == scored.task,
    }
    return pd.DataFrame(table | {f"log_p:{name}": log_task[:, column] for column, name in enumerate(names)})
