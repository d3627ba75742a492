"""The guarantees: conformal coverage whatever the distribution, and the bound under the fitted model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.config import Config
from components.evaluation.certificate import confusion_bound, distances, measured_confusion, separation
from components.evaluation.test_scores import score_test_images
from components.io import read_json
from components.retrieval.pooled import PooledRetriever
from components.signatures.conformal import Calibration
from components.signatures.statistics import Statistics

DISTRIBUTIONS = {
    "gaussian": lambda rng, n: rng.normal(size=n),
    "heavy-tailed": lambda rng, n: rng.standard_cauchy(size=n),
    "skewed": lambda rng, n: rng.lognormal(sigma=2, size=n),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("held_out", [20, 99])
@pytest.mark.parametrize("epsilon", [0.05, 0.1])
def test_coverage_is_what_was_promised(name: str, held_out: int, epsilon: float) -> None:
    """1 - epsilon <= E[coverage] <= 1 - epsilon + 1/(n+1), over many calibration and test splits."""
    rng, splits, tested = np.random.default_rng(0), 400, 200
    covered = []
    for _ in range(splits):
        calibration = Calibration.of(DISTRIBUTIONS[name](rng, held_out))
        covered.append((calibration.p_values(DISTRIBUTIONS[name](rng, tested)) > epsilon).mean())
    error = 4 * np.std(covered) / np.sqrt(splits)
    assert 1 - epsilon - error <= np.mean(covered) <= 1 - epsilon + 1 / (held_out + 1) + error


def test_coverage_on_real_embeddings(learned: Path, config: Config) -> None:
    """Random halves of a task's images that the mixture was not fitted on: exchangeable, so the promise holds."""
    scored = score_test_images(learned, config)
    rng, epsilon = np.random.default_rng(0), 0.2
    support = scored.signatures[0].support
    scores = support.mixture.log_density(scored.h0[scored.task == 0])
    half, covered = len(scores) // 2, []
    for _ in range(300):
        order = rng.permutation(scores)
        covered.append((Calibration.of(order[:half]).p_values(order[half:]) > epsilon).mean())
    error = 4 * np.std(covered) / np.sqrt(300)
    assert 1 - epsilon - error <= np.mean(covered) <= 1 - epsilon + 1 / (half + 1) + error


@given(scores=st.lists(st.floats(-1e6, 1e6), max_size=30), new=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=10))
def test_p_values_are_shares(scores: list[float], new: list[float]) -> None:
    x = np.array(new)
    p = Calibration.of(np.array(scores)).p_values(x)
    expected = [(1 + sum(score <= value for score in scores)) / (len(scores) + 1) for value in new]
    np.testing.assert_allclose(p, expected)
    typicality = Calibration.of(np.array(scores)).typicality(x)
    assert (np.diff(typicality[np.argsort(x)]) >= 0).all()


def retriever(seed: int, spread: float) -> PooledRetriever:
    rng = np.random.default_rng(seed)
    means = [rng.normal(size=(classes, 5)) * spread for classes in (2, 3, 1)]
    return PooledRetriever.fit([Statistics(np.full(len(m), 1e8), m, np.eye(5) * len(m) * 1e8) for m in means])


@pytest.mark.parametrize("spread", [0.7, 1.5, 3.0])
def test_the_bound_holds_on_samples_from_the_fitted_model(spread: float) -> None:
    model, rng, count = retriever(3, spread), np.random.default_rng(1), 60_000
    rows, truth = [], []
    for task in range(3):
        own = np.flatnonzero(model.owner == task)
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
