"""The metrics of a stream, by their definitions (docs/reference/metrics.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def stream_metrics(matrix: Sequence[Sequence[float]], sizes: Sequence[int]) -> dict[str, float | None]:
    """The metrics of docs/method.md that R[t][j] (j <= t) and the tasks' test sizes determine.

    `forgetting` and `backward_transfer` are None for a single task: there is nothing to forget.
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


def _mean(values: Any) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None
