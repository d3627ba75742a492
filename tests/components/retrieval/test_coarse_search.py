"""The coarse search against scoring every class."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.retrieval.coarse_search import CoarseSearch
from components.retrieval.pooled import PooledRetriever
from components.signatures.statistics import Statistics


def retriever(seed: int, classes: list[int], width: int = 12, spread: float = 2.0) -> PooledRetriever:
    rng = np.random.default_rng(seed)
    tasks = []
    for count in classes:
        root = rng.normal(size=(width, width))
        tasks.append(Statistics(np.full(count, 50.0), rng.normal(size=(count, width)) * spread, 20 * root @ root.T))
    return PooledRetriever.fit(tasks)


@given(st.integers(0, 1000), st.lists(st.integers(1, 4), min_size=1, max_size=6))
@settings(max_examples=30)
def test_with_every_class_a_candidate_it_is_exact(seed: int, classes: list[int]) -> None:
    model = retriever(seed, classes)
    h = np.random.default_rng(seed).normal(size=(25, 12)).astype(np.float32) * 3
    wanted = model.scores(h).argmax(axis=1)
    np.testing.assert_array_equal(CoarseSearch.of(model, dims=3).best_task(h, candidates=100), wanted)


def test_few_candidates_in_all_dimensions_find_the_best_class() -> None:
    model = retriever(1, [1] * 30)  # a task of one class scores as its class does
    h = np.random.default_rng(2).normal(size=(200, 12)).astype(np.float32) * 3
    search = CoarseSearch.of(model, dims=12)
    np.testing.assert_array_equal(search.best_task(h, candidates=1), model.scores(h).argmax(axis=1))


def test_images_near_their_class_are_found_in_few_dimensions() -> None:
    model = retriever(3, [2] * 400, width=64, spread=10.0)
    rng = np.random.default_rng(4)
    drawn = rng.integers(0, len(model.task_of_class), 300)
    whitened = model.centers[drawn] + rng.normal(size=(300, 64))
    h = (whitened @ np.linalg.inv(model.whitener)).astype(np.float32)
    found = CoarseSearch.of(model, dims=16).best_task(h, candidates=16)
    assert (found == model.scores(h).argmax(axis=1)).mean() > 0.98
    assert (found == model.task_of_class[drawn]).mean() == pytest.approx(1.0, abs=0.02)
