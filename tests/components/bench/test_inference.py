"""The benchmark on a learned stream: what it measures is the same method at another price."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from components.bench.inference import ENGINES, bench_inference
from components.bench.machine import peak_memory_of
from components.bench.retrieval import bench_retrieval, multiply
from components.bench.synthetic_tasks import stretch
from components.config import Config
from components.evaluation.certificate import distances
from components.inference.predictor import Predictor
from components.io import read_arrays
from components.params import load_config
from components.retrieval.pooled import PooledRetriever
from components.signatures.fit import fit_signature
from components.signatures.storage import read_signature


@pytest.mark.parametrize("shared", ["base", "low"])
def test_every_engine_is_measured_beside_what_it_answers(learned: Path, shared: str) -> None:
    params = learned / "params.yaml"
    params.write_text(params.read_text().replace("shared: base", f"shared: {shared}"))
    config = load_config(params)
    for task in config.tasks if shared != "base" else ():
        fit_signature(learned, config, task)
    kept: list[int] = []
    found = bench_inference(learned, [2, 5], 16, 1, memory=False, keep=lambda found: kept.append(len(found["rows"])))
    assert kept == [len(ENGINES), 2 * len(ENGINES)]
    assert [(row["tasks"], row["engine"]) for row in found["rows"]] == [(t, e) for t in (2, 5) for e in ENGINES]
    for row in found["rows"]:
        assert row["images_per_second"] > 0
        if row["engine"] == "backbone":
            assert row["ratio_to_backbone"] == 1
        if row["engine"] in ("exact", "shortlist", "shortlist_bf16"):
            assert row["agreement_with_exact"] >= 0.9
            assert row["accuracy_final"] > 0.5


def test_memory_is_that_of_a_process_with_one_engine(learned: Path, config: Config, tmp_path: Path) -> None:
    stretch(learned, config, 2, tmp_path)
    # It holds at least torch, and here little else.
    assert 100 < peak_memory_of("components.bench.inference", "shortlist", tmp_path, learned, 2) < 4000


def test_retrieval_alone_is_measured_against_scoring_every_class(learned: Path) -> None:
    rows = bench_retrieval(learned, tasks=[3, 40], images=20, rounds=1)
    assert [(row["tasks"], row["way"]) for row in rows] == [(t, w) for t in (3, 40) for w in ("exact", "coarse_search")]
    assert all(row["ms_per_image"] > 0 and row["agreement_with_exact"] == 1 for row in rows)


def test_mirrored_tasks_keep_their_shape(learned: Path, config: Config) -> None:
    real = [read_signature(learned / "models/signatures", task).statistics for task in config.tasks]
    few, many = PooledRetriever.fit(real), multiply(real, 7)
    assert len(many.task_of_class) == 2 * len(few.task_of_class) + 3
    np.testing.assert_allclose(many.centers[: len(few.centers)], few.centers, atol=1e-8)
    np.testing.assert_allclose(distances(many)[8:11, 8:11], distances(few)[:3, :3], rtol=1e-6, atol=1e-4)


def test_a_synthetic_task_is_a_real_one_elsewhere(learned: Path, config: Config, tmp_path: Path) -> None:
    stretched = stretch(learned, config, 5, tmp_path)
    assert stretched.tasks[:3] == config.tasks
    real, moved = (read_signature(tmp_path / "models/signatures", task) for task in ("low", "synthetic-4"))
    np.testing.assert_allclose(moved.statistics.counts, real.statistics.counts)
    inside = [np.linalg.norm(s.statistics.means - s.statistics.means[0], axis=1) for s in (real, moved)]
    np.testing.assert_allclose(inside[0], inside[1], rtol=1e-4)
    assert np.linalg.norm(real.statistics.means - moved.statistics.means) > 1
    # A point amid the moved support is as typical of the moved task as its image is of the real one, but for the
    # rounding of the moved axes.
    here, there = (s.support.mixture.centroids.astype(np.float32) for s in (real, moved))
    np.testing.assert_allclose(
        real.support.mixture.log_density(here), moved.support.mixture.log_density(there), rtol=4e-3
    )
    folders = [
        tmp_path / "models/modules" / task / "adapter/adapter_model.safetensors" for task in ("low", "synthetic-4")
    ]
    one, other = (read_arrays(path) for path in folders)
    for name, array in one.items():
        np.testing.assert_allclose(np.linalg.norm(array), np.linalg.norm(other[name]), rtol=1e-5)
    assert len(Predictor.load(tmp_path / "models/bundle", "cpu").tasks) == 5


@pytest.mark.parametrize("tasks", [1, 3])
def test_a_stream_within_its_own_tasks_is_the_project_itself(
    learned: Path, config: Config, tmp_path: Path, tasks: int
) -> None:
    assert stretch(learned, config, tasks, tmp_path).tasks == config.tasks[:tasks]
