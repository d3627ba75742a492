"""The certificate: a bound that holds under the fitted model, the separation of tasks, and what the metrics report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from components.config import Config
from components.evaluation.certificate import confusion_bound, distances, measured_confusion, separation
from components.io import read_json
from components.retrieval.pooled import PooledRetriever
from components.signatures.statistics import Statistics


def retriever(seed: int, spread: float) -> PooledRetriever:
    rng = np.random.default_rng(seed)
    means = [rng.normal(size=(classes, 5)) * spread for classes in (2, 3, 1)]
    return PooledRetriever.fit([Statistics(np.full(len(m), 1e8), m, np.eye(5) * len(m) * 1e8) for m in means])


@pytest.mark.parametrize("spread", [0.7, 1.5, 3.0])
def test_the_bound_holds_on_samples_from_the_fitted_model(spread: float) -> None:
    model, rng, count = retriever(3, spread), np.random.default_rng(1), 60_000
    rows, truth = [], []
    for task in range(3):
        own = np.flatnonzero(model.task_of_class == task)
        rows.append(model.centers[rng.choice(own, count)] + rng.normal(size=(count, 5)))
        truth += [task] * count
    h0 = (np.concatenate(rows) @ np.linalg.inv(model.whitener)).astype(np.float32)
    measured, bound = measured_confusion(model.scores(h0), np.array(truth)), confusion_bound(model)
    assert (measured <= bound + 4 * np.sqrt(0.25 / count)).all()
    assert measured.max() > 0.001


def test_separation_is_the_distance_of_the_closest_classes() -> None:
    model = retriever(4, 2.0)
    between = distances(model)
    delta = np.linalg.norm(model.centers[:, None] - model.centers, axis=2)
    np.testing.assert_allclose(between, delta, atol=1e-6)
    assert separation(model)[0, 2] == pytest.approx(delta[:2, 5].min())
    assert np.allclose(np.diag(confusion_bound(model)), 0)


def test_the_metrics_hold_the_certificate_and_the_rejection(learned: Path, config: Config) -> None:
    metrics = read_json(learned / "reports/metrics.json")
    for task, facts in metrics["certificate"]["tasks"].items():
        assert facts["nearest"] in set(config.tasks) - {task}
        assert facts["coverage_promised"] == pytest.approx(1 - config.shortlist.epsilon)
        assert 0 <= facts["bound"] <= 0.5
    assert 0 <= metrics["shortlist_coverage"] <= 1
    assert 0 <= metrics["shortlist_size"] <= len(config.tasks)
    ways = metrics["rejection"]
    assert set(ways) == {"conformal", "mahalanobis", "max_softmax"}
    for way in ways.values():
        assert set(way["left_out"]) == set(config.tasks)
        assert way["auroc"] == pytest.approx(np.mean([row["auroc"] for row in way["left_out"].values()]))
        assert 0 <= way["fpr95"] <= 1
