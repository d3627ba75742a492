"""The kinds of arrays that the project passes around, each named once; docstrings of their users give the shapes."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

# By what they hold.
Pixels: TypeAlias = NDArray[np.uint8]  # images, (n, height, width, 3), RGB
Embeddings: TypeAlias = NDArray[np.float32]  # h_0 or h_k, (n, d)
Labels: TypeAlias = NDArray[np.int64]  # class indices of one task, (n,)
Indices: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]
Arrays: TypeAlias = dict[str, NDArray[Any]]  # by name, as a safetensors file holds them

# By their form: statistics are computed in float64.
Vector: TypeAlias = NDArray[np.float64]
Matrix: TypeAlias = NDArray[np.float64]

# By their precision: weights, and what files hold.
Float32: TypeAlias = NDArray[np.float32]
Float16: TypeAlias = NDArray[np.float16]
Int8: TypeAlias = NDArray[np.int8]
