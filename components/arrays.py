"""The kinds of arrays that the project passes around, each named once; their users' docstrings give the shapes."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8]  # images, (n, height, width, 3)
Embeddings: TypeAlias = NDArray[np.float32]  # (n, d)
Vector: TypeAlias = NDArray[np.float64]
Matrix: TypeAlias = NDArray[np.float64]
Labels: TypeAlias = NDArray[np.int64]  # class indices of one task, (n,)
Indices: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]
Arrays: TypeAlias = dict[str, NDArray[Any]]  # by name, as safetensors holds them
