"""The classifier of one task: an ensemble of linear classifiers whose weighted logits fold into one classifier.

    logits(h) = sum_i f_i (W_i h + b_i) = (sum_i f_i W_i) h + (sum_i f_i b_i)

So the ensemble costs a prediction what one linear classifier costs. Its members look at different parts of an
embedding h_k = [trunk's part | adapted part], or were fitted differently:

    1. discriminants on the adapted part           class means and covariance under the task's module
    2. the head of training on the adapted part    what gradient descent on the loss arrived at
    3. discriminants on the trunk's part           the same as 1, on the part that no module changes
    4. discriminants on both parts together        what they say of each other; its weight is fixed

In use a fifth classifier is averaged in: discriminants on the trunk's part with the covariance of all tasks so far
(docs/explanation/method.md, section 5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import logsumexp

from components.arrays import Embeddings, Labels, Matrix, Vector
from components.modules.low_rank import Head
from components.signatures.class_sums import ClassSums
from components.signatures.classifier import Classifier
from components.signatures.statistics import Statistics, subsample

Ensemble = Sequence[Classifier]

_WEIGHT_PENALTY = 0.1  # nats per unit of variance of the weights' logarithms
_FITTED = 3  # members whose weights are fitted
_JOINT = 0.5  # spread of the fourth member's logits, as a share of that of the others' sum


@dataclass(frozen=True)
class LabelledEmbeddings:
    """Embeddings h (n, d) float32 under a task's module, and the labels (n,) int64 of their images."""

    h: Embeddings
    labels: Labels


def fit_task_classifier(
    train: LabelledEmbeddings, val: LabelledEmbeddings, head: Head, classes: int, *, learn_val: bool = True
) -> Classifier:
    """Fit the ensemble of a task and fold it into one classifier, with a temperature and rounded as files hold it.

    The validation images weigh and calibrate an ensemble of the training images alone. Then an ensemble of both is
    folded with the same weights. The fifth classifier, which later tasks change, is represented by discriminants with
    this task's own covariance.

    Args:
        train: of the training images.
        val: of the validation images; may be empty.
        head: the head that was trained with the module.
        classes: number of classes C.
        learn_val: whether the discriminants are fitted on the validation images too, in the end.
    """
    ensemble = fit_ensemble(train.h, train.labels, classes, head)
    weights, temperature = _weights_and_temperature(ensemble, val, train.h)
    h, labels = train.h, train.labels
    if learn_val:
        h, labels = np.concatenate([h, val.h]), np.concatenate([labels, val.labels])
        ensemble = fit_ensemble(h, labels, classes, head)
    return replace(fold_ensemble(ensemble, weights), temperature=temperature).rounded(h.mean(axis=0))


def fit_classifier_from_sums(train: ClassSums, val: LabelledEmbeddings, head: Head, trunk_width: int) -> Classifier:
    """Fit what `fit_task_classifier` fits, from sums over the training images in place of their embeddings.

    Args:
        train: of the training images, on h_k.
        val: of the validation images, at least one.
        head: the head that was trained with the module; classes that it lacks are added (`extended_head`).
        trunk_width: width of the trunk's part of h_k.
    """

    def head_of(adapted: Classifier) -> Head:
        return extended_head(head, adapted, val.h[:, trunk_width:])

    weights, temperature = _weights_and_temperature(ensemble_of(train.statistics(), head_of, trunk_width), val, val.h)
    every = train.add(val.h, val.labels, len(train.counts))
    folded = fold_ensemble(ensemble_of(every.statistics(), head_of, trunk_width), weights)
    return replace(folded, temperature=temperature).rounded(every.mean)


def extended_head(head: Head, adapted: Classifier, h: Embeddings) -> Head:
    """Add the classes that a head was not trained on, in closed form.

    Over the classes that it knows, the head's logits H are close to a multiple of the discriminants L, both centred
    over those classes. The least-squares multiple a predicts the logit of a new class:

        H_new(h) = mean over known c of H_c(h) + a (L_new(h) - mean over known c of L_c(h))

    Args:
        head: of C' classes on the adapted part, p wide.
        adapted: discriminants of C >= C' classes on the same part, the known ones first.
        h: the adapted part of held-out embeddings, (n, p) float32.
    """
    known = len(head.bias)
    if known == len(adapted.intercept):
        return head
    trained = Classifier(head.weight.astype(np.float64), head.bias.astype(np.float64), 1.0)
    own, other = _centred(trained.discriminants(h)), _centred(adapted.discriminants(h)[:, :known])
    energy = float((other**2).sum())
    factor = float((own * other).sum()) / energy if energy > 0 else 0.0
    coef = trained.coef.mean(axis=0) + factor * (adapted.coef[known:] - adapted.coef[:known].mean(axis=0))
    bias = trained.intercept.mean() + factor * (adapted.intercept[known:] - adapted.intercept[:known].mean())
    weight, offset = np.concatenate([trained.coef, coef]), np.concatenate([trained.intercept, bias])
    return Head(weight.astype(np.float32), offset.astype(np.float32))


def _weights_and_temperature(
    ensemble: Ensemble, val: LabelledEmbeddings, without_val: Embeddings
) -> tuple[Sequence[float], float]:
    """Fit the members' weights and the temperature on validation images; `without_val` stand in for none."""
    trunk_logits = ensemble[2].discriminants(val.h) if len(ensemble) > 2 else None
    if len(val.h):
        weights = fit_ensemble_weights(ensemble, val.h, val.labels)
    else:
        weights = fit_ensemble_weights(ensemble, without_val, None)
    return weights, fold_ensemble(ensemble, weights).calibrated(val.h, val.labels, trunk_logits).temperature


def fit_ensemble(h: Embeddings, labels: Labels, classes: int, head: Head) -> Ensemble:
    """Fit the members of a task's ensemble, as classifiers of all d coordinates each.

    Args:
        h: embeddings under the task's module, (n, d) float32.
        labels: (n,) int64 in range(classes).
        classes: number of classes C.
        head: the head of training; it reads the last, adapted coordinates, as the first member does.

    Returns:
        The members of this file's drawing, in that order; the last two where an embedding has a trunk's part.
    """
    return ensemble_of(Statistics.fit(h, labels, classes), lambda adapted: head, h.shape[1] - head.weight.shape[1])


def ensemble_of(statistics: Statistics, head_of: Callable[[Classifier], Head], trunk_width: int) -> Ensemble:
    """Return the members of this file's drawing as classifiers of all d coordinates each.

    Args:
        statistics: of the task's images on h_k.
        head_of: returns the head of training, given the discriminants on the adapted part.
        trunk_width: width of the trunk's part of h_k; with 0 there are two members.
    """
    adapted = Classifier.from_statistics(statistics.part(trunk_width))
    head = head_of(adapted)
    trained = Classifier(head.weight.astype(np.float64), head.bias.astype(np.float64), 1.0)
    ensemble = [_zero_padded(adapted, trunk_width, 0), _zero_padded(trained, trunk_width, 0)]
    if not trunk_width:
        return ensemble
    trunk = Classifier.from_statistics(statistics.first(trunk_width))
    return [*ensemble, _zero_padded(trunk, 0, adapted.coef.shape[1]), Classifier.from_statistics(statistics)]


def fit_ensemble_weights(ensemble: Ensemble, h: Embeddings, labels: Labels | None) -> Sequence[float]:
    """Fit the weight of each member's logits in their sum.

    First each member is scaled to the spread that the first one's logits have over the images h, so that none
    outweighs the others by its unit. With labels, the weights then minimise the mean cross-entropy in nats plus
    _WEIGHT_PENALTY times the variance of the weights' logarithms, which pulls them towards equal weights. Their
    geometric mean, the inverse of a temperature, is free. In use the trunk's discriminants with the pooled covariance
    are averaged in as they are. The task's own stand for them here: their logits take part once more, and the weights
    are divided by the weight of that part.

    The fourth member is added last, with _JOINT times the spread of the others' sum. Its weight is not fitted: on few
    images that was worse (decision 28).

    Args:
        ensemble: as `fit_ensemble` returns it.
        h: embeddings of at least one image, (n, d) float32; 1,024 of them are enough.
        labels: (n,) int64, where no member was fitted on h; None gives equal weights after scaling.
    """
    if len(ensemble[0].intercept) == 1:  # one class: nothing to tell apart
        return [1.0] + [0.0] * (len(ensemble) - 1)
    some = subsample(len(h))
    logits = [_centred(member.discriminants(h[some])) for member in ensemble]
    logits, joint = logits[:_FITTED], logits[_FITTED:]
    first, *others = map(_spread, logits)
    weights = np.array([1.0, *(first / own if own > 0 else 0.0 for own in others)])
    if labels is not None:
        unweighted = logits[2:]  # the trunk's, where there is one
        scaled = [own * weight for own, weight in zip(logits, weights, strict=True)]
        factors = _most_likely_factors(np.stack([*scaled, *unweighted]), labels[some])
        weights *= factors[: len(logits)] / (factors[-1] if unweighted else 1.0)
    fitted = [float(weight) for weight in weights]
    summed = _spread(np.tensordot(weights, np.stack(logits), axes=1))
    return [*fitted, *(_JOINT * summed / spread if (spread := _spread(own)) > 0 else 0.0 for own in joint)]


def fold_ensemble(ensemble: Ensemble, weights: Sequence[float]) -> Classifier:
    """Return the one classifier whose logits are the weighted sum of the members' logits; its temperature is 1."""
    coef = sum(weight * member.coef for weight, member in zip(weights, ensemble, strict=True))
    intercept = sum(weight * member.intercept for weight, member in zip(weights, ensemble, strict=True))
    return Classifier(np.asarray(coef), np.asarray(intercept), 1.0)


def _most_likely_factors(logits: Matrix, labels: Labels) -> Vector:
    """Return factors (m,) of geometric mean 1 for logits (m, n, C): the minimum in `fit_ensemble_weights`."""
    count, images, _ = logits.shape
    of_label = logits[:, np.arange(images), labels].mean(axis=1)

    def loss(log_factors: Vector) -> tuple[float, Vector]:
        """Return the penalised cross-entropy and its gradient (m,)."""
        factors, deviation = np.exp(log_factors), log_factors - log_factors.mean()
        summed = np.tensordot(factors, logits, axes=1)
        log_norm = logsumexp(summed, axis=1)
        expected = np.einsum("mnc,nc->m", logits, np.exp(summed - log_norm[:, None])) / images
        value = log_norm.mean() - factors @ of_label + _WEIGHT_PENALTY * (deviation**2).mean()
        return float(value), factors * (expected - of_label) + 2 * _WEIGHT_PENALTY * deviation / count

    def loss_of_equal(log_factor: float) -> float:
        return loss(np.full(count, log_factor))[0]

    # At this scale a softmax of the summed logits is neither flat nor saturated.
    unit = -np.log(max(float(logits.sum(axis=0).std()), 1e-12))
    equal = minimize_scalar(loss_of_equal, bounds=(unit - 8, unit + 8), method="bounded").x
    bounds = [(unit - 12, unit + 12)] * count
    found = minimize(loss, np.full(count, equal), jac=True, method="L-BFGS-B", bounds=bounds)
    return cast(Vector, np.exp(found.x - found.x.mean()))


def _zero_padded(classifier: Classifier, before: int, after: int) -> Classifier:
    """Return the classifier as one of more coordinates, with zero coefficients for those `before` and `after`."""
    coef = np.pad(classifier.coef, ((0, 0), (before, after)))
    return Classifier(coef, classifier.intercept, classifier.temperature)


def _centred(logits: Matrix) -> Matrix:
    """Return logits (n, C) without their mean over the classes, which changes no probability."""
    return cast(Matrix, logits - logits.mean(axis=1, keepdims=True))


def _spread(logits: Matrix) -> float:
    """Return the root mean square of centred logits (n, C)."""
    return float(np.sqrt((logits**2).mean()))
