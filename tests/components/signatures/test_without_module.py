"""When a task does without its module, and that everything then works as with one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.config import Config
from components.evaluation.evaluate import evaluate
from components.inference.bundle import write_bundle
from components.inference.predictor import Predictor
from components.io import read_json
from components.records.record import record
from components.records.storage import read_recorded_images, read_update_basis
from components.records.update import update
from components.signatures import fit
from components.signatures.class_sums import ClassSums
from components.signatures.ensemble import LabelledEmbeddings
from components.signatures.storage import read_signature
from components.signatures.without_module import fit_frozen_classifier, module_pays
from tests.components.records.test_update import digits_in, with_update


@pytest.mark.parametrize(
    ("gained", "lost", "pays"), [(0, 0, True), (0, 4, True), (0, 5, False), (3, 9, True), (2, 12, False), (5, 0, True)]
)
def test_only_a_loss_that_chance_would_rarely_make_drops_a_module(gained: int, lost: int, pays: bool) -> None:
    adapted = np.array([True] * (gained + 10) + [False] * lost)
    frozen = np.array([False] * gained + [True] * (10 + lost))
    assert module_pays(adapted, frozen) is pays


def test_the_frozen_classifier_is_the_fit_on_all_images() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    h = (random.normal(size=(60, 12)) + 2 * np.eye(3, 12)[labels]).astype(np.float32)
    val = LabelledEmbeddings(h[40:], labels[40:])
    found = fit_frozen_classifier(ClassSums.fit(h[:40], labels[:40], 3), val, 4, learn_val=True)
    whole = fit_frozen_classifier(ClassSums.fit(h, labels, 3), LabelledEmbeddings(h[:0], labels[:0]), 4, learn_val=True)
    np.testing.assert_allclose(found.coef, whole.coef, atol=1e-3 * np.abs(whole.coef).max())
    assert found.temperature != 1
    assert whole.temperature == 1


def test_a_task_without_its_module_is_recorded_served_and_updated(
    learned: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "module_pays", lambda adapted, frozen: False)
    fit.fit_signature(learned, config, "middle")
    record(learned, config, "middle")
    signature = read_signature(learned / "models/signatures", "middle")
    assert not signature.module
    evaluate(learned, config)
    metrics = read_json(learned / "reports/metrics.json")
    write_bundle(learned, config)
    assert not (learned / "models/bundle/modules/middle").exists()
    shutil.rmtree(learned / "models/modules/middle")
    predictor = Predictor.load(learned / "models/bundle", "cpu")
    images = read_recorded_images(learned, config, "middle")
    pictures = [Image.open(learned / "images/middle" / name).convert("RGB") for name in images.names]
    answers = predictor.predict(pictures, force=True)
    right = [
        one.task == "middle" and one.label == signature.classes[label]
        for one, label in zip(answers, images.labels, strict=True)
    ]
    assert np.mean(right) == pytest.approx(metrics["per_task"]["middle"]["accuracy"])


def test_its_update_needs_no_module(learned: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "module_pays", lambda adapted, frozen: False)
    fit.fit_signature(learned, config, "low")
    record(learned, config, "low")
    shutil.rmtree(learned / "models/modules/low")
    digits_in(learned / "more", {0: 12})
    update(learned, with_update(config, "low.1", "more", "low"), "low.1")
    before, after = (read_signature(learned / "models/signatures", name) for name in ("low", "low.1"))
    assert not after.module
    assert after.statistics.counts.sum() > before.statistics.counts.sum()
    assert len(read_update_basis(learned, "low.1").val) > len(read_update_basis(learned, "low").val)
    assert replace(after, task="low").classes == before.classes
