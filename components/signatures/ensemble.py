"""Who names the class within a task: linear witnesses, heard as the one classifier that they add up to.

So together they cost a prediction what one of them does (docs/method.md, section 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import logsumexp

from components.arrays import Embeddings, Labels, Matrix, Vector
from components.modules.low_rank import Head
from components.signatures.classifier import Classifier
from components.signatures.statistics import subsample

Ensemble = Sequence[Classifier]

_PULL = 0.1  # nats


def fit_ensemble(h: Embeddings, labels: Labels, classes: int, head: Head) -> Ensemble:
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


def fit_ensemble_weights(witnesses: Ensemble, h: Embeddings, labels: Labels | None) -> Sequence[float]:
    """By how much to multiply what each witness says before all of it is added up.

    Each is stretched to the first one's spread over some images h (n, d), so that none shouts the others down. Then the
    factors go where the images' labels are likelier, pulled back towards an even hearing: they minimise the mean loss
    in nats, its temperature free, plus _PULL times the variance of their logarithms. In use the discriminants of the
    trunk with the pooled covariance are heard as well, as they are; those with the task's own stand in for them.

    Args:
        witnesses: as `fit_witnesses` returns them.
        h: one image at least; 1,024 of them are enough.
        labels: (n,), where no witness was fitted on h; None hears all evenly.
    """
    some = subsample(len(h))
    said = [_centred(witness.discriminants(h[some])) for witness in witnesses]
    first, *others = (float(np.sqrt((own**2).mean())) for own in said)
    stretch = np.array([1.0, *(first / own if own > 0 else 0.0 for own in others)])
    if labels is not None:
        pooled = said[2:]  # of the trunk, where there is one
        heard = [own * factor for own, factor in zip(said, stretch, strict=True)]
        factors = _likeliest(np.stack([*heard, *pooled]), labels[some])
        stretch *= factors[: len(said)] / (factors[-1] if pooled else 1.0)
    return [float(factor) for factor in stretch]


def fold_ensemble(witnesses: Ensemble, factors: Sequence[float]) -> Classifier:
    """The sum of what they say, each multiplied by its factor."""
    coef = sum(factor * witness.coef for factor, witness in zip(factors, witnesses, strict=True))
    intercept = sum(factor * witness.intercept for factor, witness in zip(factors, witnesses, strict=True))
    return Classifier(np.asarray(coef), np.asarray(intercept), 1.0)


def _likeliest(said: Matrix, labels: Labels) -> Vector:
    """Factors (m,) of scores (m, n, C), of geometric mean 1: see `weigh`."""
    count, images, _ = said.shape
    right = said[:, np.arange(images), labels].mean(axis=1)

    def loss(logs: Vector) -> tuple[float, Vector]:
        factors, off = np.exp(logs), logs - logs.mean()
        scores = np.tensordot(factors, said, axes=1)
        total = logsumexp(scores, axis=1)
        expected = np.einsum("mnc,nc->m", said, np.exp(scores - total[:, None])) / images
        value = total.mean() - factors @ right + _PULL * (off**2).mean()
        return float(value), factors * (expected - right) + 2 * _PULL * off / count

    def evenly(log: float) -> float:
        return loss(np.full(count, log))[0]

    unit = -np.log(max(float(said.sum(axis=0).std()), 1e-12))  # where scores of this spread are neither sure nor silent
    even = minimize_scalar(evenly, bounds=(unit - 8, unit + 8), method="bounded").x
    found = minimize(loss, np.full(count, even), jac=True, method="L-BFGS-B", bounds=[(unit - 12, unit + 12)] * count)
    return cast(Vector, np.exp(found.x - found.x.mean()))


def _linear(head: Head) -> Classifier:
    return Classifier(head.weight.astype(np.float64), head.bias.astype(np.float64), 1.0)


def _placed(witness: Classifier, before: int, after: int) -> Classifier:
    """The same, with so many coordinates more that it does not look at."""
    return Classifier(np.pad(witness.coef, ((0, 0), (before, after))), witness.intercept, witness.temperature)


def _centred(scores: Matrix) -> Matrix:
    return cast(Matrix, scores - scores.mean(axis=1, keepdims=True))
