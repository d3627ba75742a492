"""The retrieved task of every test image: as it is served, and with every task scored in full."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from components.arrays import Indices, Matrix
from components.config import Config
from components.evaluation.stream_scores import KnownTasks, StreamScores
from components.retrieval.pooled import choose_task, log_posterior

if TYPE_CHECKING:  # it imports torch, which evaluation by the rule `pooled` does without
    from components.evaluation.all_modules import AllModules

Retrieve = Callable[[KnownTasks], tuple[Matrix, Indices]]
"""Return log p(k | x) of the known tasks (n, known), and the retrieved task (n,), also of an unknown image."""


def needs_all_modules(config: Config) -> bool:
    """Return whether the settings ask for more than h_0 and an image's own module."""
    return config.retrieval.rule == "dpgmm" or config.retrieval.prediction == "soft"


def retrieve_pooled(known: KnownTasks) -> tuple[Matrix, Indices]:
    """Retrieve as it is served by the rule `pooled` and the prediction `hard`, of which h_0 is enough."""
    log_task = known.retrieval.log_posterior
    return log_task, log_task.argmax(axis=1)


def retrieve_exactly(scores: StreamScores, config: Config, modules: AllModules | None) -> Indices:
    """Retrieve with every task scored in full: the reference for `retrieve_pooled` and `retrieve_with`, (n,).

    Args:
        scores: of the test images.
        config: its `retrieval` and `shortlist.temperature` count.
        modules: the images under every module; None where h_0 is enough.
    """
    if modules is None:
        return choose_task(scores.pooled_scores)
    dpgmm = config.retrieval.rule == "dpgmm"
    if config.retrieval.prediction == "hard":
        return choose_task(modules.log_density if dpgmm else scores.pooled_scores)
    task_scores = modules.log_density if dpgmm else scores.pooled_scores / config.shortlist.temperature
    everything = scores.with_known(config.shortlist, len(scores.signatures))
    return choose_task(task_scores, modules.class_log_probability(scores, everything))


def retrieve_with(modules: AllModules, scores: StreamScores, config: Config) -> Retrieve:
    """Return how images are retrieved by a rule, or a prediction, that needs them under every module.

    Args:
        modules: the images under every module.
        scores: of the same images.
        config: its `retrieval` names the rule and the kind of prediction.
    """

    def retrieve(known: KnownTasks) -> tuple[Matrix, Indices]:
        log_task, shortlist = known.retrieval.log_posterior, known.retrieval.shortlist
        count, tasks = shortlist.shape
        if config.retrieval.rule == "dpgmm":
            log_task = log_posterior(np.where(shortlist, modules.log_density[:count, :tasks], -np.inf))
        if config.retrieval.prediction == "soft":
            best = log_task + modules.class_log_probability(scores, known)
            return log_task, np.where(shortlist, best, -np.inf).argmax(axis=1)
        return log_task, log_task.argmax(axis=1)

    return retrieve
