"""What a closed-form update of a task needs beside its signature: sums over its training images, and its held-out ones.

The sums are taken in the space of all that the task's retrieval and classifier read, side by side:

    z = [ h_0 | the adapted part of h_k ],   h_0 = [ trunk | frozen tail | tail under the shared module, if any ]

No embedding of a training image is kept. Validation images weigh the classifier's members and calibrate the shortlist.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from components.arrays import Arrays, Embeddings, Labels
from components.signatures.class_sums import ClassSums


@dataclass(frozen=True)
class UpdateBasis:
    """The sums of a task's training images, and the embeddings of its held-out ones.

    Attributes:
        sums: of the training images on z.
        val: z of the m validation images, (m, d + p) float32.
        val_labels: (m,) int64.
        test_adapted: the adapted part of h_k of the n test images, (n, p) float32.
    """

    sums: ClassSums
    val: Embeddings
    val_labels: Labels
    test_adapted: Embeddings

    def to_arrays(self) -> Arrays:
        """Return the arrays of a safetensors file."""
        held_out: Arrays = {"val": self.val, "val_labels": self.val_labels, "test_adapted": self.test_adapted}
        return {f"sums.{name}": array for name, array in self.sums.to_arrays().items()} | held_out

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> UpdateBasis:
        """Read what `to_arrays` returned."""
        sums = {name.removeprefix("sums."): array for name, array in arrays.items() if name.startswith("sums.")}
        val, labels = arrays["val"], arrays["val_labels"].astype(np.int64)
        return cls(ClassSums.from_arrays(sums), val, labels, arrays["test_adapted"])
