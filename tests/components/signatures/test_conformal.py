"""Conformal p-values: coverage whatever the distribution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.config import Config
from components.evaluation.stream_scores import read_stream_scores
from components.signatures.conformal import Calibration

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
    scored = read_stream_scores(learned, config)
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
