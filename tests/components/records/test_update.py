"""A closed-form update: equal to a fit on all images at once, new classes included, and nothing else changes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from components.config import Config, Update
from components.errors import IntaglioError
from components.evaluation.evaluate import evaluate
from components.inference.bundle import write_bundle
from components.inference.predictor import Predictor
from components.io import read_json, sha256_file
from components.modules.low_rank import read_head
from components.records.record import own_embedding
from components.records.storage import read_card, read_recorded_images, read_update_basis
from components.records.update import update, updated_signature
from components.signatures.class_sums import ClassSums
from components.signatures.ensemble import LabelledEmbeddings, fit_task_classifier
from components.signatures.statistics import Statistics
from components.signatures.storage import read_signature

TASK = "low"


def digits_in(folder: Path, counts: dict[int, int], start: int = 100) -> None:
    """Write real handwritten digits that no task of the fixture has: so many of each kind."""
    digits = load_digits()
    for digit, count in counts.items():
        (folder / f"digit_{digit}").mkdir(parents=True)
        for number in np.flatnonzero(digits.target == digit)[start : start + count]:
            pixels = (digits.images[number] * 15).astype(np.uint8)
            Image.fromarray(pixels).resize((32, 32)).save(folder / f"digit_{digit}" / f"{number}.png")


def with_update(config: Config, name: str, folder: str, previous: str) -> Config:
    updates = config.stream.updates | {name: Update(folder=folder, task=TASK, previous=previous)}
    return config.model_copy(update={"stream": config.stream.model_copy(update={"updates": updates})})


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): sha256_file(path)
        for path in sorted((root / "models").rglob("*"))
        if path.is_file()
    }


def test_an_update_of_half_the_images_equals_the_fit_on_all_at_once(learned: Path, config: Config) -> None:
    """The reference is the code of the stage `signature`, on the embeddings themselves."""
    signature = read_signature(learned / "models/signatures", TASK)
    basis, head = read_update_basis(learned, TASK), read_head(learned / "models/modules" / TASK)
    random, card = np.random.default_rng(0), read_card(learned, TASK)
    width, classes = signature.statistics.means.shape[1], len(signature.classes)
    z = {"train": random.normal(size=(60, basis.val.shape[1])), "val": basis.val}
    z["train"] += 3 * random.normal(size=(classes, basis.val.shape[1]))[np.arange(60) % classes]
    z = {name: values.astype(np.float32) for name, values in z.items()}
    labels = {"train": np.arange(60) % classes, "val": basis.val_labels}
    half = ClassSums.fit(z["train"][:31], labels["train"][:31], classes)
    sums = ClassSums.from_arrays(half.to_arrays()).add(z["train"][31:], labels["train"][31:], classes)
    found = updated_signature(signature, replace(basis, sums=sums), signature.classes, head, card.trunk_width)

    def own(name: str) -> LabelledEmbeddings:
        return LabelledEmbeddings(own_embedding(z[name], card.trunk_width, width), labels[name])

    expected = fit_task_classifier(own("train"), own("val"), head, classes)
    every, every_label = np.concatenate([z["train"], z["val"]]), np.concatenate([labels["train"], labels["val"]])
    statistics = Statistics.fit(every[:, :width], every_label, classes)
    scale = np.abs(statistics.scatter).max()
    np.testing.assert_allclose(found.statistics.scatter, statistics.scatter, atol=1e-6 * scale)
    np.testing.assert_allclose(found.statistics.means, statistics.means, rtol=1e-6, atol=1e-6)
    logits, reference = found.classifier.discriminants(own("train").h), expected.discriminants(own("train").h)
    np.testing.assert_allclose(logits, reference, atol=2e-3 * np.abs(reference).max())  # float16 coefficients
    np.testing.assert_array_equal(logits.argmax(axis=1), reference.argmax(axis=1))
    assert found.classifier.temperature == pytest.approx(expected.temperature, rel=1e-3)


def test_more_images_of_known_classes(learned: Path, config: Config) -> None:
    before, card = digests(learned), read_card(learned, TASK)
    digits_in(learned / "more", {0: 12, 1: 12})
    config = with_update(config, "low.1", "more", TASK)
    update(learned, config, "low.1")
    after = digests(learned)
    assert {name: digest for name, digest in after.items() if name in before} == before
    assert {name.split("/")[2] for name in after.keys() - before.keys()} == {"low.1"}
    new = read_card(learned, "low.1")
    assert new.classes == card.classes
    assert sum(new.count(split) for split in ("train", "val", "test")) == 24 + sum(
        card.count(split) for split in ("train", "val", "test")
    )
    assert new.updates[0]["name"] == "low.1"
    calibration = read_signature(learned / "models/signatures", "low.1").support.calibration
    assert len(calibration.scores) == new.count("val")
    assert config.generation(TASK) == "low.1"
    assert len(read_recorded_images(learned, config, TASK)) == new.count("test")
    evaluate(learned, config)
    assert read_json(learned / "reports/metrics.json")["per_task"][TASK]["test_images"] == new.count("test")


def test_a_new_class_is_learned_and_other_tasks_answer_bit_for_bit_as_before(learned: Path, config: Config) -> None:
    evaluate(learned, config)
    digit = 9  # no task has it
    digits_in(learned / "more", {digit: 24})
    config = with_update(config, "low.1", "more", TASK)
    update(learned, config, "low.1")
    assert read_card(learned, "low.1").classes[-1] == f"digit_{digit}"
    evaluate(learned, config)
    per_task = read_json(learned / "reports/metrics.json")["per_task"]
    assert per_task[TASK]["task_aware_accuracy"] > 0.6
    write_bundle(learned, config)
    predictor = Predictor.load(learned / "models/bundle", "cpu")
    assert predictor.tasks[TASK][-1] == f"digit_{digit}"
    images = [Image.open(path).convert("RGB") for path in sorted((learned / "more" / f"digit_{digit}").iterdir())]
    right = [one.label == f"digit_{digit}" for one in predictor.predict(images, force=True)]
    assert np.mean(right) > 0.5


def test_an_update_follows_an_update(learned: Path, config: Config) -> None:
    digits_in(learned / "one", {0: 8})
    digits_in(learned / "two", {1: 8})
    config = with_update(with_update(config, "low.1", "one", TASK), "low.2", "two", "low.1")
    update(learned, config, "low.1")
    shutil.rmtree(learned / "one")
    update(learned, config, "low.2")
    assert [entry["name"] for entry in read_card(learned, "low.2").updates] == ["low.1", "low.2"]
    assert config.generation(TASK) == "low.2"


def test_what_cannot_be_an_update_is_refused_and_nothing_written(learned: Path, config: Config) -> None:
    before = digests(learned)
    shutil.copytree(learned / "images/low", learned / "again")
    with pytest.raises(IntaglioError, match="already in an earlier task"):
        update(learned, with_update(config, "low.1", "again", TASK), "low.1")
    digits_in(learned / "few", {9: 2})
    with pytest.raises(IntaglioError, match=r"below data\.min_images_per_class"):
        update(learned, with_update(config, "low.1", "few", TASK), "low.1")
    assert digests(learned) == before
