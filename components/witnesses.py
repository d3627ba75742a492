"""Who names the class within a task: linear witnesses, heard as the one classifier that they add up to.

So together they cost a prediction what one of them does (docs/method.md, section 5).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from components.modules import Head
from components.signature import Classifier, Embeddings, Labels

Witnesses = Sequence[Classifier]


def fit_witnesses(h: Embeddings, labels: Labels, classes: int, head: Head) -> Witnesses:
    """Of embeddings h (n, d) with labels (n,) in range(classes); each of them reads all d coordinates.

    The discriminants on what the module adapts, the last coordinates; the `head` of training on the same; and the
    discriminants on the trunk's coordinates, where there are any.
    """
    width = h.shape[1] - head.weight.shape[1]
    own = Classifier.fit(h[:, width:], labels, classes)
    found = [_placed(own, width, 0), _placed(_linear(head), width, 0)]
    if width:
        found.append(_placed(Classifier.fit(h[:, :width], labels, classes), 0, h.shape[1] - width))
    return found


def spreads(witnesses: Witnesses, h: Embeddings) -> Sequence[float]:
    """How far apart each one's scores of an image's classes lie, over images h (n, d) that none was fitted on."""
    return [_spread(witness, h) for witness in witnesses]


def together(witnesses: Witnesses, spread: Sequence[float]) -> Classifier:
    """The sum of what they say, each stretched to the first one's `spread`: none may shout the others down."""
    scale = [spread[0] / own if own > 0 else 0.0 for own in spread]
    coef = sum(factor * witness.coef for factor, witness in zip(scale, witnesses, strict=True))
    intercept = sum(factor * witness.intercept for factor, witness in zip(scale, witnesses, strict=True))
    return Classifier(np.asarray(coef), np.asarray(intercept), 1.0)


def _linear(head: Head) -> Classifier:
    return Classifier(head.weight.astype(np.float64), head.bias.astype(np.float64), 1.0)


def _placed(witness: Classifier, before: int, after: int) -> Classifier:
    """The same, with so many coordinates more that it does not look at."""
    return Classifier(np.pad(witness.coef, ((0, 0), (before, after))), witness.intercept, witness.temperature)


def _spread(witness: Classifier, h: Embeddings) -> float:
    said = witness.discriminants(h)
    return float(np.sqrt(((said - said.mean(axis=1, keepdims=True)) ** 2).mean()))
