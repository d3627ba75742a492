"""What a task leaves for retrieval and prediction."""

from __future__ import annotations

from dataclasses import dataclass

from components.signatures.classifier import Classifier
from components.signatures.mixture import Mixture
from components.signatures.statistics import Statistics
from components.signatures.support import Support


@dataclass(frozen=True)
class Signature:
    """All that retrieval and prediction use of a task, beside its module.

    Attributes:
        task: name of the task.
        classes: names of its C classes; a label is an index into them.
        statistics: counts, class means and within-class scatter on h_0, d wide.
        mixture: density of the task's images on h_k, for the rule `dpgmm`.
        support: density and conformal calibration on h_0.
        trunk_support: the same on the trunk's part of h_0; None where h_0 has none.
        classifier: the task's classes on h_k.
        module: whether the task's module runs. Otherwise h_k is the frozen backbone's embedding.
    """

    task: str
    classes: tuple[str, ...]
    statistics: Statistics
    mixture: Mixture
    support: Support
    trunk_support: Support | None
    classifier: Classifier
    module: bool = True
