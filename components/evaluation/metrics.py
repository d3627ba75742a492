"""The metrics of a stream that its accuracy matrix determines (docs/reference/metrics.md).

R[t][j] is the accuracy on task j's test images with tasks 0..t known, the task of an image unknown; T tasks in all:

    accuracy_final        mean over j of R[T-1][j]
    accuracy_incremental  mean over t of the mean over j <= t of R[t][j]
    forgetting            mean over j < T-1 of (max over t of R[t][j]) - R[T-1][j]
    backward_transfer     mean over j < T-1 of R[T-1][j] - R[j][j]     (Lopez-Paz and Ranzato, 2017)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def stream_metrics(matrix: Sequence[Sequence[float]], sizes: Sequence[int]) -> dict[str, float | None]:
    """Compute the metrics of this file.

    Args:
        matrix: R[t][j], j <= t.
        sizes: test images of each task, the weights of accuracy_final_weighted.

    Returns:
        Name -> value; None for forgetting and backward_transfer of a single task, which has nothing to forget.
    """
    last = len(matrix) - 1
    earlier = range(last)
    return {
        "accuracy_final": float(np.mean(matrix[last])),
        "accuracy_final_weighted": float(np.average(matrix[last], weights=sizes)),
        "accuracy_incremental": float(np.mean([np.mean(row) for row in matrix])),
        "forgetting": _mean(max(matrix[t][j] for t in range(j, last + 1)) - matrix[last][j] for j in earlier),
        "backward_transfer": _mean(matrix[last][j] - matrix[j][j] for j in earlier),
    }


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None
