"""The signatures as a picture: two dimensions in which every task can be seen."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.arrays import Matrix
from components.evaluation.test_scores import TestScores
from components.retrieval.pooled import PooledRetriever


def project(scored: TestScores, seed: int, limit: int = 150) -> pd.DataFrame:
    """The signatures in two dimensions, as seen from the centre of all class means in the whitened space of h_0.

    Only directions from the centre are shown: distances between domains are so much larger than those within one that
    a linear map would show the domains alone. The axes are the two principal ones of the class means' directions.

    Returns:
        At most `limit` test images of each task (kind "point"), and every class mean (kind "centroid") with the
        covariance of its own test images in the picture.
    """
    retriever = PooledRetriever.fit([signature.statistics for signature in scored.signatures])
    center = retriever.centers.mean(axis=0)
    # Only within the span of the class means: elsewhere is nothing but noise, of which 1,500 dimensions have plenty.
    _, _, span = np.linalg.svd(retriever.centers - center, full_matrices=False)
    means = _directions((retriever.centers - center) @ span.T)
    _, _, axes = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
    axes = np.vstack([axes, np.zeros((2, axes.shape[1]))])[:2]
    axes *= np.where(axes.sum(axis=1, keepdims=True) < 0, -1, 1)  # SVD leaves the sign open
    means = means @ axes.T
    images = _directions((scored.h0.astype(np.float64) @ retriever.whitener - center) @ span.T) @ axes.T
    random = np.random.default_rng(seed)
    records: list[dict[str, Any]] = []
    for number, signature in enumerate(scored.signatures):
        rows = np.flatnonzero(scored.task == number)
        for row in np.sort(random.choice(rows, min(limit, len(rows)), replace=False)):
            label = signature.classes[scored.label[row]]
            records.append(_record("point", signature.task, label, images[row]))
        for column, label in enumerate(signature.classes):
            own = images[rows[scored.label[rows] == column]]
            spread = np.cov(own.T) if len(own) > 1 else np.zeros((2, 2))
            place = means[np.flatnonzero(retriever.task_of_class == number)[column]]
            covariance = {"cov_xx": spread[0, 0], "cov_xy": spread[0, 1], "cov_yy": spread[1, 1]}
            records.append(_record("centroid", signature.task, label, place) | covariance)
    return pd.DataFrame(records)


def _directions(vectors: Matrix) -> Matrix:
    return cast(Matrix, vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def _record(kind: str, task: str, label: str, place: NDArray[np.float64]) -> dict[str, Any]:
    return {"kind": kind, "task": task, "label": label, "x": place[0], "y": place[1]}
