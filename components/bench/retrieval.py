"""What retrieval alone costs among up to thousands of tasks: every class scored, and the coarse search.

The real tasks' class means, then mirror images of them along the principal axes of the pooled covariance, which leave
that covariance and all distances within a task as they are (synthetic_tasks.py does so with whole tasks).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from components.arrays import Embeddings, Indices, Matrix
from components.bench.inference import Row, test_images
from components.modules.multi_module_vit import MultiModuleViT, embed_pixels
from components.params import load_config
from components.retrieval.coarse_search import CoarseSearch
from components.retrieval.pooled import PooledRetriever
from components.signatures.statistics import Statistics, pooled_covariance
from components.signatures.storage import read_signature
from components.vision.backbone import load_vit
from components.vision.pixel_batches import BATCH

TASKS = (100, 1000, 10_000)


def bench_retrieval(root: Path, tasks: Sequence[int] = TASKS, images: int = 256, rounds: int = 5) -> list[Row]:
    """Measure retrieval alone, on one thread; the ways take turns.

    Args:
        root: a project that has been run.
        tasks: numbers of tasks; beyond the project's own they are mirror images.
        images: real test images.
        rounds: turns; the figures are medians.

    Returns:
        One row for each number of tasks and way: milliseconds an image, its share of a pass over the frozen backbone,
        and how often an image gets the task that scoring every class gives it.
    """
    config = load_config(root / "params.yaml")
    statistics = [read_signature(root / "models/signatures", task).statistics for task in config.tasks]
    vit = load_vit(root / "models/backbone", config.backbone, config.embedding.depths, torch.device("cpu"))
    engine = MultiModuleViT.load(vit, root / "models/modules", [], shared=config.embedding.shared)
    pixels = test_images(root, config, len(config.tasks)).pixels[:images]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            starts = range(0, len(pixels), BATCH)
            h0 = np.concatenate([_embed(engine, pixels[first : first + BATCH]) for first in starts])
            backbone = _seconds({"backbone": lambda: _embed(engine, pixels[:BATCH])}, rounds)["backbone"] / BATCH
            return [row for count in tasks for row in _rows(statistics, count, h0, backbone, rounds)]
    finally:
        torch.set_num_threads(threads)


def _embed(engine: MultiModuleViT, pixels: Any) -> Embeddings:
    return embed_pixels(engine, pixels, (None,))[None]


def _rows(statistics: Sequence[Statistics], tasks: int, h0: Embeddings, backbone: float, rounds: int) -> list[Row]:
    many = multiply(statistics, tasks)
    exact, search = many.linear(), CoarseSearch.of(many)
    ways: dict[str, Callable[[Embeddings], Indices]] = {
        "exact": lambda h: exact.scores(h).argmax(axis=1),
        "coarse_search": search.best_task,
    }
    seconds = _seconds({name: lambda way=way: way(h0[:BATCH]) for name, way in ways.items()}, rounds)  # type: ignore[misc]
    starts = range(0, len(h0), BATCH)
    answers = {name: np.concatenate([way(h0[s : s + BATCH]) for s in starts]) for name, way in ways.items()}
    rows = [
        {
            "way": name,
            "tasks": tasks,
            "classes": len(many.task_of_class),
            "ms_per_image": round(1e3 * seconds[name] / BATCH, 4),
            "share_of_backbone": round(seconds[name] / BATCH / backbone, 4),
            "agreement_with_exact": round(float((answers[name] == answers["exact"]).mean()), 5),
        }
        for name in ways
    ]
    for row in rows:
        cost = f"{row['ms_per_image']:8.4f} ms an image, {row['share_of_backbone']:.4f} of the backbone"
        print(f"T = {tasks:>6}  {row['way']:<14} {cost}, agreement {row['agreement_with_exact']:.4f}", flush=True)
    return rows


def multiply(statistics: Sequence[Statistics], tasks: int, seed: int = 0) -> PooledRetriever:
    """Build the pooled retriever of many tasks: the given ones, then mirror images of them in turn.

    Args:
        statistics: of the given tasks.
        tasks: number of tasks in all.
        seed: of the mirrors.
    """
    real = PooledRetriever.fit(statistics)
    axes = np.linalg.eigh(pooled_covariance(statistics))[1]
    means = [task.means for task in statistics]
    middle = np.concatenate(means).mean(axis=0)
    random, placed = np.random.default_rng(seed), list[Matrix]()
    for number in range(tasks):
        around = means[number % len(means)] - middle
        if number >= len(means):
            around = ((around @ axes) * random.choice([-1.0, 1.0], len(axes))) @ axes.T
        placed.append((around + middle) @ real.whitener)
    task_of_class = np.repeat(np.arange(tasks), [len(centers) for centers in placed])
    return PooledRetriever(real.whitener, np.concatenate(placed), task_of_class)


def _seconds(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Measure median seconds of each way; the ways take turns, after one turn that warms up."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:
                found[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in found.items()}
