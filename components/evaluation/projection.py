"""A picture of the signatures: images and class means in two dimensions."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.arrays import Matrix
from components.evaluation.stream_scores import StreamScores


def project(scores: StreamScores, seed: int, limit: int = 150) -> pd.DataFrame:
    """Project test images and class means onto two axes, as seen from the centre of all class means.

    In the whitened space of h_0 every vector from the centre is scaled to length 1. Distances between domains are so
    much larger than those within one that a linear map would show the domains alone. The axes are the two principal
    ones of the scaled class means.

    Args:
        scores: of the test images.
        seed: of the choice of images.
        limit: images of each task at most.

    Returns:
        At most `limit` test images of each task (kind "point"), and every class mean (kind "centroid") with the
        covariance of its own test images in the picture.
    """
    retriever = scores.retriever
    center = retriever.centers.mean(axis=0)
    # The span of the class means: the other dimensions, a thousand of them, hold noise alone.
    _, _, span = np.linalg.svd(retriever.centers - center, full_matrices=False)
    means = _directions((retriever.centers - center) @ span.T)
    _, _, axes = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
    axes = np.vstack([axes, np.zeros((2, axes.shape[1]))])[:2]
    axes *= np.where(axes.sum(axis=1, keepdims=True) < 0, -1, 1)  # SVD leaves the sign open
    means = means @ axes.T
    images = _directions((scores.h0.astype(np.float64) @ retriever.whitener - center) @ span.T) @ axes.T
    random = np.random.default_rng(seed)
    records: list[dict[str, Any]] = []
    for number, signature in enumerate(scores.signatures):
        rows = np.flatnonzero(scores.task == number)
        for row in np.sort(random.choice(rows, min(limit, len(rows)), replace=False)):
            label = signature.classes[scores.label[row]]
            records.append(_record("point", signature.task, label, images[row]))
        for column, label in enumerate(signature.classes):
            own = images[rows[scores.label[rows] == column]]
            spread = np.cov(own.T) if len(own) > 1 else np.zeros((2, 2))
            place = means[np.flatnonzero(retriever.task_of_class == number)[column]]
            covariance = {"cov_xx": spread[0, 0], "cov_xy": spread[0, 1], "cov_yy": spread[1, 1]}
            records.append(_record("centroid", signature.task, label, place) | covariance)
    return pd.DataFrame(records)


def _directions(vectors: Matrix) -> Matrix:
    """Scale rows (n, d) to length 1."""
    return cast(Matrix, vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def _record(kind: str, task: str, label: str, place: NDArray[np.float64]) -> dict[str, Any]:
    return {"kind": kind, "task": task, "label": label, "x": place[0], "y": place[1]}
