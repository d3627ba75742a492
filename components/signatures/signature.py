"""All that a task leaves for retrieval and prediction."""

from __future__ import annotations

from dataclasses import dataclass

from components.signatures.classifier import Classifier
from components.signatures.mixture import Mixture
from components.signatures.statistics import Statistics
from components.signatures.support import Support


@dataclass(frozen=True)
class Signature:
    """All that retrieval and prediction know of a task; `trunk_support` lies in the trunk's part of h_0, if any."""

    task: str
    classes: tuple[str, ...]
    statistics: Statistics
    mixture: Mixture
    support: Support
    trunk_support: Support | None
    classifier: Classifier
