"""An ensemble of linear classifiers: it folds into one of them, and its weights are those of the smallest loss."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from components.config import Config
from components.errors import IntaglioError
from components.modules.low_rank import Head, read_head
from components.signatures.classifier import Classifier
from components.signatures.ensemble import (
    LabelledEmbeddings,
    fit_ensemble,
    fit_ensemble_weights,
    fit_task_classifier,
    fold_ensemble,
)
from components.signatures.fit import fit_signature
from components.signatures.storage import read_classifier
from tests.components.signatures.test_signature import clusters

WIDTH, ADAPTED = 10, 6


def a_task(seed: int = 0, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray, Head]:
    h, labels = clusters(seed, 4, 40, WIDTH, spread=spread)
    weight = np.random.default_rng(seed).normal(size=(4, ADAPTED)).astype(np.float32)
    return h, labels, Head(weight, np.arange(4, dtype=np.float32))


def centred(scores: np.ndarray) -> np.ndarray:
    centred: np.ndarray = scores - scores.mean(axis=1, keepdims=True)
    return centred


def test_folded_logits_are_the_sum_of_the_members_logits_at_one_scale() -> None:
    h, labels, head = a_task()
    trunk = Classifier.fit(h[:, :-ADAPTED], labels, 4).discriminants(h[:, :-ADAPTED])
    own = Classifier.fit(h[:, -ADAPTED:], labels, 4).discriminants(h)
    trained = h[:, -ADAPTED:] @ head.weight.T + head.bias
    found = fit_ensemble(h, labels, 4, head)
    measured = [centred(scores) / centred(scores).std() for scores in (own, trained, trunk)]
    expected = np.sum(measured, axis=0) * centred(own).std()
    joint = centred(Classifier.fit(h, labels, 4).discriminants(h))
    expected += 0.5 * expected.std() * joint / joint.std()
    merged = fold_ensemble(found, fit_ensemble_weights(found, h, None))
    np.testing.assert_allclose(centred(merged.discriminants(h)), expected, rtol=1e-5, atol=1e-5)


def loss(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean, in nats, at the best temperature."""

    def at(log_scale: float) -> float:
        chosen = log_softmax(np.exp(log_scale) * scores, axis=1)[np.arange(len(labels)), labels]
        return -float(chosen.mean())

    return float(minimize_scalar(at, bounds=(-12, 6), method="bounded", options={"xatol": 1e-8}).fun)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_the_weights_are_those_of_the_smallest_penalised_loss(seed: int) -> None:
    every, truths, head = a_task(seed, spread=0.5)
    h, labels, held_out, truth = every[::2], truths[::2], every[1::2], truths[1::2]
    found = fit_ensemble(h, labels, 4, head)
    even, factors = (np.array(fit_ensemble_weights(found, held_out, known)[:3]) for known in (None, truth))
    logits = [centred(member.discriminants(held_out)) for member in found[:3]]

    def cost(logs: np.ndarray) -> float:  # of the three fitted members; what is averaged in in use has weight 1
        scores = np.tensordot(even * np.exp(logs), logits, axes=1) + logits[2]
        return loss(scores, truth) + 0.1 * float(np.append(logs, 0.0).var())

    logs = np.log(factors / even)
    assert cost(logs) <= cost(np.zeros(3)) + 1e-6
    for step in np.vstack([np.eye(3), -np.eye(3)]):  # convex enough: no neighbour is better
        assert cost(logs) <= cost(logs + 0.05 * step) + 1e-6


def test_the_joint_member_has_half_the_spread_of_the_others_sum() -> None:
    every, truths, head = a_task()
    found = fit_ensemble(every[::2], truths[::2], 4, head)
    for known in (None, truths[1::2]):
        weights = fit_ensemble_weights(found, every[1::2], known)
        *fitted, joint = [
            weight * centred(member.discriminants(every[1::2])) for weight, member in zip(weights, found, strict=True)
        ]
        assert joint.std() == pytest.approx(0.5 * sum(fitted).std(), rel=1e-6)


def test_a_member_that_guesses_gets_a_smaller_weight() -> None:
    every, truths, head = a_task()
    h, labels, held_out, truth = every[::2], truths[::2], every[1::2], truths[1::2]
    own, _, trunk, _ = fit_ensemble(h, labels, 4, head)
    noise = np.random.default_rng(1).normal(size=(4, WIDTH))
    ensemble = [own, Classifier(noise, np.zeros(4), 1.0), trunk]
    even, factors = (np.array(fit_ensemble_weights(ensemble, held_out, known)) for known in (None, truth))
    weights = factors / even
    assert weights[1] < 0.8 * min(weights[0], weights[2])


def test_the_members_of_a_task_of_one_class_have_equal_weights() -> None:
    h, _, head = a_task()
    found = fit_ensemble(h, np.zeros(len(h), np.int64), 1, Head(head.weight[:1], head.bias[:1]))
    np.testing.assert_array_equal(
        fit_ensemble_weights(found, h, np.zeros(len(h), np.int64)), fit_ensemble_weights(found, h, None)
    )


def test_an_embedding_without_a_trunk_part_has_two_members() -> None:
    h, labels, head = a_task()
    found = fit_ensemble(h[:, -ADAPTED:], labels, 4, head)
    assert [member.coef.shape for member in found] == [(4, ADAPTED)] * 2


def test_a_head_that_learned_nothing_changes_nothing() -> None:
    h, labels, head = a_task()
    flat = Head(np.zeros_like(head.weight), np.zeros_like(head.bias))
    found = fit_ensemble(h[:, -ADAPTED:], labels, 4, flat)
    for known in (None, labels):
        merged = fold_ensemble(found, fit_ensemble_weights(found, h[:, -ADAPTED:], known))
        np.testing.assert_allclose(merged.coef, found[0].coef, rtol=1e-6)


def test_the_signature_uses_the_head_of_its_module(learned: Path, config: Config) -> None:
    before = read_classifier(learned / "models/signatures/middle")
    head = read_head(learned / "models/modules/middle")
    assert head.weight.shape[0] == len(before.coef)
    assert np.abs(head.weight).max() > 0
    assert before.coef.shape[1] > head.weight.shape[1]  # the trunk's part of an embedding counts too
    fit_signature(learned, config, "middle")
    np.testing.assert_array_equal(read_classifier(learned / "models/signatures/middle").coef, before.coef)


def test_a_task_classifier_learns_the_validation_images_only_where_it_is_asked_to() -> None:
    every, truths, head = a_task()
    train, val = (LabelledEmbeddings(every[start::2], truths[start::2]) for start in (0, 1))
    for learn_val, h, labels in ((False, train.h, train.labels), (True, every, truths)):
        found = fit_task_classifier(train, val, head, 4, learn_val=learn_val)
        weights = fit_ensemble_weights(fit_ensemble(train.h, train.labels, 4, head), val.h, val.labels)
        expected = fold_ensemble(fit_ensemble(h, labels, 4, head), weights)
        np.testing.assert_allclose(found.coef, expected.coef, atol=1e-3 * np.abs(expected.coef).max())
        assert 0 < found.temperature != 1


def test_a_task_without_validation_images_has_equal_weights_and_no_temperature() -> None:
    h, labels, head = a_task()
    train, none = LabelledEmbeddings(h, labels), LabelledEmbeddings(h[:0], labels[:0])
    found, ensemble = fit_task_classifier(train, none, head, 4), fit_ensemble(h, labels, 4, head)
    expected = fold_ensemble(ensemble, fit_ensemble_weights(ensemble, h, None)).rounded(h.mean(axis=0))
    np.testing.assert_array_equal(found.coef, expected.coef)
    assert found.temperature == 1


def test_a_missing_or_damaged_head_is_refused(learned: Path, config: Config) -> None:
    path = learned / "models/modules/low/head.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(IntaglioError, match=r"head.safetensors: missing or damaged .*'finetune'"):
        read_head(path.parent)
    shutil.move(path, path.with_suffix(".gone"))
    with pytest.raises(IntaglioError, match="missing or damaged"):
        fit_signature(learned, config, "low")
