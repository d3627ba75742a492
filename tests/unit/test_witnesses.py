"""Several linear witnesses of a class: together they are one classifier, and each of them is heard."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from test_signature import clusters

from components.config import Config
from components.errors import IntaglioError
from components.modules import Head, read_head
from components.sign import sign
from components.signature import Classifier
from components.signature_files import read_classifier
from components.witnesses import fit_witnesses, spreads, together

WIDTH, ADAPTED = 10, 6


def a_task(seed: int = 0) -> tuple[np.ndarray, np.ndarray, Head]:
    h, labels = clusters(seed, 4, 40, WIDTH, spread=1.0)
    weight = np.random.default_rng(seed).normal(size=(4, ADAPTED)).astype(np.float32)
    return h, labels, Head(weight, np.arange(4, dtype=np.float32))


def centred(scores: np.ndarray) -> np.ndarray:
    centred: np.ndarray = scores - scores.mean(axis=1, keepdims=True)
    return centred


def test_together_they_say_the_sum_of_what_each_says_in_one_measure() -> None:
    h, labels, head = a_task()
    trunk = Classifier.fit(h[:, :-ADAPTED], labels, 4).discriminants(h[:, :-ADAPTED])
    own = Classifier.fit(h[:, -ADAPTED:], labels, 4).discriminants(h)
    trained = h[:, -ADAPTED:] @ head.weight.T + head.bias
    found = fit_witnesses(h, labels, 4, head)
    measured = [centred(scores) / centred(scores).std() for scores in (own, trained, trunk)]
    expected = np.sum(measured, axis=0) * centred(own).std()
    merged = together(found, spreads(found, h))
    np.testing.assert_allclose(centred(merged.discriminants(h)), expected, rtol=1e-5, atol=1e-5)


def test_a_trunk_without_a_part_in_the_embedding_is_not_heard() -> None:
    h, labels, head = a_task()
    found = fit_witnesses(h[:, -ADAPTED:], labels, 4, head)
    assert [witness.coef.shape for witness in found] == [(4, ADAPTED)] * 2


def test_a_head_that_learned_nothing_changes_nothing() -> None:
    h, labels, head = a_task()
    silent = Head(np.zeros_like(head.weight), np.zeros_like(head.bias))
    found = fit_witnesses(h[:, -ADAPTED:], labels, 4, silent)
    merged = together(found, spreads(found, h[:, -ADAPTED:]))
    np.testing.assert_array_equal(merged.coef, found[0].coef)


def test_the_signature_hears_the_head_of_its_module(learned: Path, config: Config) -> None:
    before = read_classifier(learned / "models/signatures/middle")
    head = read_head(learned / "models/modules/middle")
    assert head.weight.shape[0] == len(before.coef)
    assert np.abs(head.weight).max() > 0
    assert before.coef.shape[1] > head.weight.shape[1]  # the trunk's part of an embedding is heard too
    sign(learned, config, "middle")
    np.testing.assert_array_equal(read_classifier(learned / "models/signatures/middle").coef, before.coef)


def test_a_missing_or_damaged_head_is_refused(learned: Path, config: Config) -> None:
    path = learned / "models/modules/low/head.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(IntaglioError, match=r"head.safetensors: missing or damaged .*'finetune'"):
        read_head(path.parent)
    shutil.move(path, path.with_suffix(".gone"))
    with pytest.raises(IntaglioError, match="missing or damaged"):
        sign(learned, config, "low")
