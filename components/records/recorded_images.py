"""The test images of a task as evaluation sees them from now on: no picture, but h_0 and the logits of its classifier.

Retrieval reads h_0, and the class comes from the task's own module. Neither ever changes, so every metric of a longer
stream follows from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.arrays import Arrays, Embeddings, Labels, Mask, Matrix


@dataclass(frozen=True)
class RecordedImages:
    """The n test images of one task.

    Attributes:
        task: its name.
        names: paths relative to the folder that they came from, posix.
        digests: hex sha256.
        labels: (n,) int64, places among the task's C classes.
        h0: (n, d) float32.
        logits: discriminants of the task's own classifier, (n, C) float64, with the digits of float32.
        frozen_correct: whether LDA on the frozen part of h_0 is right where the task is given, (n,) bool.
    """

    task: str
    names: tuple[str, ...]
    digests: tuple[str, ...]
    labels: Labels
    h0: Embeddings
    logits: Matrix
    frozen_correct: Mask

    def __len__(self) -> int:
        """Return the number n of images."""
        return len(self.names)

    def to_arrays(self) -> Arrays:
        """Return the arrays of a safetensors file."""
        logits: NDArray[Any] = self.logits.astype(np.float32)
        return {"h0": self.h0, "logits": logits, "frozen_correct": self.frozen_correct}

    def to_table(self) -> pd.DataFrame:
        """Return the table beside the arrays, a row for each image."""
        return pd.DataFrame({"path": self.names, "sha256": self.digests, "label": self.labels})

    @classmethod
    def of_files(cls, task: str, table: pd.DataFrame, arrays: Mapping[str, NDArray[Any]]) -> RecordedImages:
        """Read what `to_table` and `to_arrays` returned.

        Args:
            task: name of the task.
            table: of the images.
            arrays: of the same images.
        """
        return cls(
            task,
            tuple(table["path"]),
            tuple(table["sha256"]),
            table["label"].to_numpy(np.int64),
            arrays["h0"],
            arrays["logits"].astype(np.float64),
            arrays["frozen_correct"],
        )
