"""A scatter in few bytes: what it keeps exactly, what it approximates, and that retrieval does not notice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.io import read_arrays, write_arrays
from components.retrieval.pooled import PooledRetriever
from components.signatures.scatter import CompactScatter, from_int8, in_int8
from components.signatures.statistics import Statistics


def scatter_of(seed: int, images: int, width: int) -> np.ndarray:
    spread = np.geomspace(10, 0.1, width)
    x = np.random.default_rng(seed).normal(size=(images, width)) * spread
    x = x @ np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(width, width)))[0]
    return x.T @ x


@given(seed=st.integers(0, 999), images=st.integers(2, 60), width=st.integers(2, 24), rank=st.integers(1, 30))
def test_it_is_a_scatter_with_the_same_diagonal(seed: int, images: int, width: int, rank: int) -> None:
    scatter = scatter_of(seed, images, width)
    compact = CompactScatter.of(scatter, rank)
    matrix, scale = compact.matrix(), np.diag(scatter).max()
    assert np.linalg.eigvalsh(matrix).min() >= -1e-9 * scale
    # Where rounding overshoots, the diagonal is the rounded one: never lower, at most by the rounding.
    np.testing.assert_allclose(np.diag(matrix), np.diag(scatter), atol=0.03 * scale)
    assert (np.diag(matrix) >= np.diag(scatter) - 1e-5 * scale).all()


@given(seed=st.integers(0, 999), rows=st.integers(1, 6), width=st.integers(1, 30), scale=st.sampled_from([0, 1e-3, 50]))
def test_int8_rows_are_half_a_step_away_and_stay_where_they_are(seed: int, rows: int, width: int, scale: float) -> None:
    x = np.random.default_rng(seed).normal(size=(rows, width)) * scale
    whole, step = in_int8(x)
    rounded = from_int8(whole, step)
    assert (np.abs(rounded - x) <= 0.501 * step[:, None]).all()
    np.testing.assert_array_equal(from_int8(*in_int8(rounded)), rounded)


def test_only_directions_whose_rounding_would_count_are_kept_in_more_than_a_byte() -> None:
    width, rank = 400, 40
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0]
    energy = np.concatenate([np.geomspace(2e3, 1, rank), np.full(width - rank, 0.1)])  # as steep as embeddings
    scatter = (basis * energy) @ basis.T
    compact = CompactScatter.of(scatter, rank)
    assert 0 < len(compact.major) < rank // 2
    assert len(compact.major) + len(compact.minor) == rank
    # What tells classes apart are distances in the inverse: these are kept, and would not be with bytes alone.
    x = np.random.default_rng(1).normal(size=(50, width)) @ (basis * np.sqrt(energy)).T
    whole, step = in_int8(basis.T[:rank])
    coarse = (from_int8(whole, step).T * energy[:rank]) @ from_int8(whole, step)
    coarse[np.diag_indices(width)] += np.maximum(np.diag(scatter) - np.diag(coarse), 0)
    distances = [np.einsum("nd,nd->n", x, np.linalg.solve(s, x.T).T) for s in (scatter, compact.matrix(), coarse)]
    error = [np.abs(found / distances[0] - 1).mean() for found in distances[1:]]
    assert error[0] < 0.15
    assert error[1] > 2 * error[0]


@pytest.mark.parametrize("images", [0, 20])
def test_no_more_directions_than_images_are_kept(images: int, tmp_path: Path) -> None:
    scatter = scatter_of(0, images, 300)
    compact = CompactScatter.of(scatter, 128)
    assert len(compact.major) + len(compact.minor) == images
    np.testing.assert_allclose(compact.matrix(), scatter, atol=0.02 * scatter.max(initial=1e-9))
    write_arrays(tmp_path / "scatter.safetensors", compact.to_arrays())
    again = CompactScatter.from_arrays(read_arrays(tmp_path / "scatter.safetensors"))
    np.testing.assert_array_equal(again.matrix(), compact.matrix())


@given(seed=st.integers(0, 999), width=st.integers(2, 24))
def test_with_every_direction_only_rounding_is_lost(seed: int, width: int) -> None:
    scatter = scatter_of(seed, 40, width)
    matrix = CompactScatter.of(scatter, width).matrix()
    assert np.linalg.norm(matrix - scatter) <= 0.03 * np.linalg.norm(scatter)


def test_it_comes_back_from_its_arrays_and_adds_up_like_any_scatter() -> None:
    parts = [CompactScatter.of(scatter_of(seed, 30, 12), 6) for seed in (0, 5)]
    again = [CompactScatter.from_arrays(part.to_arrays()).matrix() for part in parts]
    np.testing.assert_array_equal(sum(again), sum(part.matrix() for part in parts))
    for part in parts:
        np.testing.assert_allclose(part.first(5).matrix(), part.matrix()[:5, :5], rtol=1e-12)
    assert sum(array.nbytes for array in parts[0].to_arrays().values()) < 12 * 13 / 2 * 4


def test_retrieval_from_compact_scatters_is_that_from_full_ones() -> None:
    width, classes, basis = 64, 5, np.linalg.qr(np.random.default_rng(9).normal(size=(64, 64)))[0]
    spread = np.where(np.arange(width) < 12, 4.0, 0.5)  # a few strong directions, as in embeddings
    centers = np.random.default_rng(8).normal(size=(4, classes, width)) * 0.25
    tasks, images, truth = [], [], []
    for task in range(4):
        rng = np.random.default_rng(task)
        labels = np.repeat(np.arange(classes), 60)
        h = (centers[task][labels] + rng.normal(size=(300, width)) * spread @ basis).astype(np.float32)
        tasks.append(Statistics.fit(h[::2], labels[::2], classes))
        images.append(h[1::2])
        truth += [task] * 150
    compact = [Statistics(t.counts, t.means, CompactScatter.of(t.scatter, 16)) for t in tasks]
    found = [PooledRetriever.fit(way).scores(np.concatenate(images)).argmax(axis=1) for way in (tasks, compact)]
    accuracy = [(one == np.array(truth)).mean() for one in found]
    assert 0.5 < accuracy[0] < 1
    assert accuracy[1] >= accuracy[0] - 0.02
