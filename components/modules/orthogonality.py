"""How a new component is kept orthogonal to the past: its factors lose what lies in the span of the past's.

    A_k (I - V V^T),   (I - U U^T) B_k

V and U are orthonormal bases of the rows of A_past and of the columns of B_past. So the new component is orthogonal to
the past, <B_k A_k, B_past D A_past>_F = 0 for every diagonal D, at every step and by construction
(docs/explanation/method.md, section 1).
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from components.arrays import Float32


def orthonormal_basis(columns: NDArray[Any]) -> Float32:
    """Return an orthonormal basis (n, q) of the span of `columns` (n, m), by SVD, without directions of no energy."""
    if columns.shape[1] == 0 or not columns.any():
        return np.zeros((columns.shape[0], 0), dtype=np.float32)
    u, sigma, _ = np.linalg.svd(columns.astype(np.float64), full_matrices=False)
    return cast(Float32, u[:, sigma > sigma[0] * 1e-6].astype(np.float32))


def outside(factor: Tensor, basis: Tensor) -> Tensor:
    """Return a factor (r, n) without its part in the span of a basis V (n, q): F (I - V V^T), float32."""
    return factor - (factor @ basis) @ basis.T if basis.shape[1] else factor
