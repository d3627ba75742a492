"""Retrieval by prototypes: scores against their formula, confusion against the theory, and the choice of a task."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from components.retrieval.pooled import LinearRetriever, PooledRetriever, choose_task, log_posterior
from components.signatures.scatter import shrunk_covariance
from components.signatures.statistics import Statistics
from tests.components.signatures.test_signature import clusters


def test_scores_are_mahalanobis_distances_and_task_order_changes_nothing() -> None:
    parts = [clusters(seed, 3, 20, 6) for seed in range(3)]
    tasks = [Statistics.fit(h, labels, 3) for h, labels in parts]
    h = np.concatenate([part[0] for part in parts])
    retriever = PooledRetriever.fit(tasks)
    degrees_of_freedom = 3 * (60 - 3)
    inverse = np.linalg.inv(shrunk_covariance(sum(task.scatter for task in tasks), degrees_of_freedom))
    means = np.concatenate([task.means for task in tasks])
    delta = h[:, None, :].astype(np.float64) - means
    np.testing.assert_allclose(
        retriever.class_scores(h), -0.5 * np.einsum("ncd,de,nce->nc", delta, inverse, delta), atol=1e-6
    )
    order = [2, 0, 1]
    other = PooledRetriever.fit([tasks[number] for number in order])
    np.testing.assert_allclose(other.scores(h), retriever.scores(h)[:, order], atol=1e-9)
    served = LinearRetriever.from_arrays(retriever.linear().to_arrays())
    np.testing.assert_allclose(log_posterior(served.scores(h)), log_posterior(retriever.scores(h)), atol=1e-2)


def test_two_classes_at_distance_delta_are_confused_as_the_theory_says() -> None:
    rng, delta, count = np.random.default_rng(0), 2.0, 200_000
    statistics = [
        Statistics(np.array([1e9]), mean[None], np.eye(4) * 1e9) for mean in (np.zeros(4), np.eye(4)[0] * delta)
    ]
    x = rng.normal(size=(count, 4)).astype(np.float32)
    confused = (PooledRetriever.fit(statistics).scores(x).argmax(axis=1) == 1).mean()
    expected = norm.cdf(-delta / 2)
    assert confused == pytest.approx(expected, abs=5 * np.sqrt(expected / count))


def test_soft_choice_weighs_the_class_too() -> None:
    scores = np.log(np.array([[0.55, 0.45]]))
    assert choose_task(scores).tolist() == [0]
    assert choose_task(scores, np.log(np.array([[0.4, 0.9]]))).tolist() == [1]
    assert np.exp(log_posterior(scores)).sum() == pytest.approx(1)
