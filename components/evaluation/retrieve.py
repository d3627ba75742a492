"""The retrieved task of every test image: as it is served, and with every task scored in full."""

from __future__ import annotations

import numpy as np

from components.arrays import Indices, Matrix
from components.config import Config
from components.evaluation.test_scores import KnownTasks, TestScores
from components.retrieval.pooled import choose_task, log_posterior

RULES = ("pooled", "dpgmm")


def retrieve(scores: TestScores, known: KnownTasks, config: Config) -> tuple[Matrix, Indices]:
    """Retrieve as it is served, except that every image gets a task, also an unknown one.

    Args:
        scores: of the test images.
        known: the images where only some tasks are known (`with_known`).
        config: its `retrieval` names the rule and the kind of prediction.

    Returns:
        log p(k | x) of the known tasks (n, known), and the retrieved task (n,).
    """
    log_task, shortlist = known.retrieval.log_posterior, known.retrieval.shortlist
    if config.retrieval.rule == "dpgmm":
        log_task = log_posterior(np.where(shortlist, scores.log_density[:, : shortlist.shape[1]], -np.inf))
    if config.retrieval.prediction == "soft":
        return log_task, np.where(shortlist, log_task + known.class_log_probability, -np.inf).argmax(axis=1)
    return log_task, log_task.argmax(axis=1)


def retrieve_exactly(scores: TestScores, known: KnownTasks, config: Config, rule: str) -> Indices:
    """Retrieve with every task scored in full: the reference for `retrieve`.

    Args:
        scores: of the test images.
        known: the images where all tasks are known (`with_known`).
        config: its `retrieval.prediction` and `shortlist.temperature` count.
        rule: one of RULES.

    Returns:
        The retrieved task (n,).
    """
    task_scores = scores.task_scores(rule, len(scores.signatures))
    if config.retrieval.prediction == "hard":
        return choose_task(task_scores)
    temperature = config.shortlist.temperature
    return choose_task(task_scores / temperature if rule == "pooled" else task_scores, known.class_log_probability)


def accuracy_matrix(scores: TestScores, config: Config) -> list[list[float]]:
    """Return R[t][j], j <= t: accuracy on task j's test images with tasks 0..t known, the task of an image unknown."""
    stages = (scores.with_known(config.shortlist, count + 1) for count in range(len(scores.signatures)))
    rows = [scores.per_task(scores.correct(retrieve(scores, known, config)[1], known)) for known in stages]
    return [row[: count + 1] for count, row in enumerate(rows)]
