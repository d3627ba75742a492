"""Tasks that do without their module: when, and what names their classes then.

A module that does harm is dropped: where the frozen network is better on the task's own validation images, and chance
alone would rarely make it look so (a one-sided sign test, McNemar, 1947). A task of one class needs none either.

On few validation images the test is rarely significant. Choosing by the accuracy or the likelihood of 16 to 38 images
was measured, and made the mean worse (decision 28). So a tie keeps the module.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from scipy.stats import binomtest

from components.arrays import Mask
from components.signatures.class_sums import ClassSums
from components.signatures.classifier import Classifier
from components.signatures.ensemble import LabelledEmbeddings

LEVEL = 0.05  # probability of dropping a module that is as good as none


def module_pays(adapted: Mask, frozen: Mask) -> bool:
    """Return whether a task keeps its module.

    Args:
        adapted: whether each validation image is right with the module, (m,) bool.
        frozen: the same without it.
    """
    gained, lost = int((adapted & ~frozen).sum()), int((frozen & ~adapted).sum())
    return gained + lost == 0 or bool(binomtest(lost, gained + lost, 0.5, alternative="greater").pvalue >= LEVEL)


def fit_frozen_classifier(train: ClassSums, val: LabelledEmbeddings, trunk_width: int, learn_val: bool) -> Classifier:
    """Fit discriminants on the frozen embedding, with a temperature and rounded as files hold it.

    Args:
        train: sums over the training images.
        val: the validation images, which calibrate; may be empty.
        trunk_width: width of the trunk's part, whose own logits stand for those that are averaged in in use.
        learn_val: whether the discriminants are fitted on the validation images too, in the end.
    """
    fitted = Classifier.from_statistics(train.statistics())
    trunk = Classifier.from_statistics(train.statistics(0, trunk_width)) if trunk_width else None
    logits = trunk.discriminants(val.h[:, :trunk_width]) if trunk else None
    temperature = fitted.calibrated(val.h, val.labels, logits).temperature
    every = train.add(val.h, val.labels, len(train.counts)) if learn_val and len(val.h) else train
    return replace(Classifier.from_statistics(every.statistics()), temperature=temperature).rounded(every.mean)


def is_right(classifier: Classifier, images: LabelledEmbeddings, trunk: Classifier | None, trunk_width: int) -> Mask:
    """Return whether each image is classified right as it would be in use, (n,) bool.

    Args:
        classifier: of the task.
        images: to classify.
        trunk: discriminants on the trunk's part, which are averaged in; None: not.
        trunk_width: its width.
    """
    logits = trunk.discriminants(images.h[:, :trunk_width]) if trunk else None
    return cast(Mask, classifier.log_probabilities(images.h, logits).argmax(axis=1) == images.labels)
