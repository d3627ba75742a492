"""Signatures: densities, statistics and discriminants, against references computed another way."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.covariance import oas
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from components.config import Config
from components.errors import IntaglioError
from components.io import read_arrays, write_arrays
from components.signatures.classifier import Classifier
from components.signatures.fit import fit_signature
from components.signatures.mixture import Mixture
from components.signatures.scatter import SHRINK, dense, shrunk_covariance
from components.signatures.statistics import Statistics
from components.signatures.storage import (
    read_classifier,
    read_signature,
    read_support,
    write_classifier,
    write_signature,
)


def clusters(seed: int, classes: int, per_class: int, width: int, spread: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    h = rng.normal(size=(classes, width))[labels] * spread + rng.normal(size=(len(labels), width))
    return h.astype(np.float32), labels


def test_the_mixture_is_a_density_on_the_whole_space(config: Config) -> None:
    h, _ = clusters(0, 3, 60, 12)
    mixture = Mixture.fit(h, config.signature, seed=0)
    outside = np.eye(12) - mixture.axes.T @ mixture.axes
    expected = np.zeros(len(h))
    for weight, mean, variance in zip(mixture.weights, mixture.centroids, mixture.variances, strict=True):
        covariance = mixture.axes.T @ np.diag(variance) @ mixture.axes + mixture.noise * outside
        # Outside the axes every component has the mean of all embeddings.
        expected += weight * multivariate_normal(mean, covariance).pdf(h.astype(np.float64))
    np.testing.assert_allclose(mixture.log_density(h), np.log(expected), atol=1e-6)


def test_the_mixture_finds_the_clusters_and_prefers_them(config: Config) -> None:
    h, _ = clusters(1, 3, 100, 12, spread=6.0)
    mixture = Mixture.fit(h, config.signature, seed=0)
    assert mixture.weights.sum() == pytest.approx(1)
    assert len(mixture.weights) >= 3
    far = h + 50
    assert mixture.log_density(h).min() > mixture.log_density(far).max()


def test_permuting_components_changes_nothing(config: Config) -> None:
    h, _ = clusters(2, 3, 50, 10)
    mixture = Mixture.fit(h, config.signature, seed=0)
    order = np.random.default_rng(0).permutation(len(mixture.weights))
    other = Mixture(
        mixture.weights[order],
        mixture.means[order],
        mixture.variances[order],
        mixture.center,
        mixture.axes,
        mixture.noise,
    )
    np.testing.assert_allclose(other.log_density(h), mixture.log_density(h))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_handful_of_images_is_enough(config: Config, count: int) -> None:
    h, _ = clusters(3, 1, count, 10)
    assert np.isfinite(Mixture.fit(h, config.signature, seed=0).log_density(h)).all()


@given(sizes=st.lists(st.integers(2, 6), min_size=2, max_size=5), seed=st.integers(0, 999))
def test_statistics_of_tasks_add_up_to_those_of_all_at_once(sizes: list[int], seed: int) -> None:
    parts = [clusters(seed + number, classes, 7, 4) for number, classes in enumerate(sizes)]
    tasks = [Statistics.fit(h, labels, int(labels.max()) + 1) for h, labels in parts]
    offsets = np.cumsum([0, *sizes[:-1]])
    h = np.concatenate([part[0] for part in parts])
    labels = np.concatenate([part[1] + offset for part, offset in zip(parts, offsets, strict=True)])
    at_once = Statistics.fit(h, labels, sum(sizes))
    np.testing.assert_allclose(sum(task.scatter for task in tasks), at_once.scatter, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([task.means for task in tasks]), at_once.means, atol=1e-12)


@given(extra=st.lists(st.integers(0, 4), max_size=20), seed=st.integers(0, 999))
def test_statistics_are_the_plain_formula_in_whatever_order_the_images_come(extra: list[int], seed: int) -> None:
    labels = np.random.default_rng(seed).permutation([0, 1, 2, 3, 4, *extra])
    h = np.random.default_rng(seed).normal(size=(len(labels), 3)).astype(np.float32)
    found = Statistics.fit(h, labels, 5)
    parts = [h[labels == label].astype(np.float64) for label in range(5)]
    np.testing.assert_array_equal(found.counts, [len(part) for part in parts])
    np.testing.assert_allclose(found.means, [part.mean(axis=0) for part in parts], atol=1e-12)
    np.testing.assert_allclose(found.scatter, sum((len(x) - 1) * np.cov(x.T) for x in parts if len(x) > 1), atol=1e-9)


@given(images=st.integers(2, 200), seed=st.integers(0, 100))
def test_the_odds_of_the_target_are_a_multiple_of_scikit_learns(images: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(images, 25)) @ np.diag(np.linspace(0.1, 3, 25))
    share = oas(x, assume_centered=True)[1]
    expected = 1.0 if share == 1 else SHRINK * share / (1 - share + SHRINK * share)
    covariance = x.T @ x / images
    target = np.trace(covariance) / 25 * np.eye(25)
    np.testing.assert_allclose(
        shrunk_covariance(x.T @ x, images), (1 - expected) * covariance + expected * target, rtol=1e-6, atol=1e-9
    )


def test_the_classifier_is_linear_discriminant_analysis() -> None:
    h, labels = clusters(4, 4, 50, 8)
    statistics = Statistics.fit(h, labels, 4)
    covariance = statistics.scatter / len(h)
    ours = Classifier.from_covariance(statistics.means, covariance).log_probabilities(h)
    reference = LinearDiscriminantAnalysis(solver="lsqr", priors=[0.25] * 4).fit(h.astype(np.float64), labels)
    np.testing.assert_allclose(ours, reference.predict_log_proba(h.astype(np.float64)), atol=1e-4)


def test_a_classifier_reads_the_coordinates_that_it_was_fitted_on_the_last_ones() -> None:
    h, labels = clusters(6, 3, 30, 8)
    shared = np.random.default_rng(0).normal(size=(len(h), 5)).astype(np.float32)
    classifier = Classifier.fit(h, labels, 3)
    np.testing.assert_array_equal(
        classifier.log_probabilities(np.concatenate([shared, h], axis=1)), classifier.log_probabilities(h)
    )


def test_averaged_logits_are_a_geometric_mean_of_probabilities() -> None:
    h, labels = clusters(7, 3, 30, 8)
    classifier = Classifier.fit(h, labels, 3)
    frozen = np.random.default_rng(0).normal(size=(len(h), 3)) * 10
    expected = np.exp((classifier.discriminants(h) + frozen) / 2)
    found = np.exp(classifier.log_probabilities(h, frozen + 7.0))  # a constant per image changes no probability
    np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True), rtol=1e-6, atol=1e-12)
    same = classifier.log_probabilities(h, classifier.discriminants(h))
    np.testing.assert_allclose(same, classifier.log_probabilities(h), atol=1e-9)


def test_calibration_lowers_the_loss_and_changes_no_choice() -> None:
    h, labels = clusters(5, 4, 30, 20, spread=0.5)
    held_out, truth = clusters(5, 4, 30, 20, spread=0.5)
    held_out = held_out + np.random.default_rng(9).normal(size=held_out.shape).astype(np.float32)
    raw = Classifier.fit(h, labels, 4)
    calibrated = raw.calibrated(held_out, truth)

    def loss(classifier: Classifier) -> float:
        return -float(classifier.log_probabilities(held_out)[np.arange(len(truth)), truth].mean())

    assert loss(calibrated) < loss(raw)
    before, after = raw.log_probabilities(held_out), calibrated.log_probabilities(held_out)
    np.testing.assert_array_equal(before.argmax(axis=1), after.argmax(axis=1))
    assert raw.calibrated(held_out[:0], truth[:0]) == raw


def test_more_held_out_images_than_a_temperature_needs_give_the_same_one() -> None:
    h, labels = clusters(7, 200, 25, 12, spread=1.0)
    raw = Classifier.fit(h[::2], labels[::2], 200)
    held_out, truth = h[1::2], labels[1::2]
    assert len(held_out) > 2 * 1024
    parts = [raw.calibrated(held_out[start::2], truth[start::2]).temperature for start in (0, 1)]
    assert raw.calibrated(held_out, truth).temperature == pytest.approx(np.mean(parts), rel=0.03)


def test_a_task_of_very_many_classes_is_learned_and_told_apart(config: Config) -> None:
    h, labels = clusters(8, 1_500, 3, 24, spread=4.0)
    held_out = np.arange(len(h)) % 3 == 2
    train = ~held_out
    assert np.isfinite(Mixture.fit(h[train], config.signature, seed=0).log_density(h[held_out])).all()
    classifier = Classifier.fit(h[train], labels[train], 1_500).calibrated(h[held_out], labels[held_out])
    assert (classifier.log_probabilities(h[held_out]).argmax(axis=1) == labels[held_out]).mean() > 0.95


def test_equal_images_in_every_class_are_no_problem() -> None:
    h = np.repeat(np.eye(3, 6, dtype=np.float32), 4, axis=0)
    labels = np.repeat(np.arange(3), 4)
    assert Classifier.fit(h, labels, 3).log_probabilities(h).argmax(axis=1).tolist() == labels.tolist()


def test_a_mixture_that_was_stored_with_half_precision_axes_is_still_read(learned: Path) -> None:
    path = learned / "models/signatures/low/support.safetensors"
    mixture, arrays = read_support(path).mixture, read_arrays(path)
    del arrays["axes_step"]
    write_arrays(path, arrays | {"axes": mixture.axes.astype(np.float16)})
    np.testing.assert_allclose(read_support(path).mixture.axes, mixture.axes, atol=1e-3)


@given(st.integers(0, 1000), st.floats(-25, 25))
def test_rounded_coefficients_lose_little_and_only_once(seed: int, magnitude: float) -> None:
    random = np.random.default_rng(seed)
    # Like embeddings: far from the origin, and near each other.
    h = (30 * random.normal(size=200) + random.normal(size=(50, 200))).astype(np.float32)
    coef = 2.0**magnitude * random.normal(size=(5, 200))
    exact = Classifier(coef, random.normal(size=5) * 2.0**magnitude, 1.0)
    rounded = exact.rounded(h.mean(axis=0))
    scores = exact.discriminants(h)
    error = rounded.discriminants(h) - scores
    naive = h @ (rounded.coef - coef).T
    assert np.abs(error).max() < 2e-3 * scores.std(axis=0).min()
    assert np.square(error).mean() < 0.25 * np.square(naive).mean()
    again = rounded.rounded(h.mean(axis=0))
    np.testing.assert_array_equal(again.coef, rounded.coef)
    np.testing.assert_array_equal(again.intercept, rounded.intercept)


def test_a_classifier_is_stored_as_it_was_rounded_and_old_ones_are_read(learned: Path, tmp_path: Path) -> None:
    folder = learned / "models/signatures/low"
    found = read_classifier(folder)
    write_classifier(tmp_path, found)
    again = read_classifier(tmp_path)
    np.testing.assert_array_equal(again.coef, found.coef)
    assert read_arrays(tmp_path / "classifier.safetensors")["coef"].dtype == np.float16
    arrays = read_arrays(folder / "classifier.safetensors")
    del arrays["coef_unit"]
    write_arrays(tmp_path / "classifier.safetensors", arrays | {"coef": found.coef.astype(np.float32)})
    np.testing.assert_allclose(read_classifier(tmp_path).coef, found.coef, rtol=1e-6)
    flat = Classifier(np.zeros((2, 3)), np.zeros(2), 1.0)
    assert flat.rounded(np.ones(3)).coef.tolist() == flat.coef.tolist()


def test_a_signature_comes_back_as_stored(learned: Path, tmp_path: Path) -> None:
    signature = read_signature(learned / "models/signatures", "low")
    write_signature(tmp_path, signature, signature.statistics.means.shape[1])
    for name in ("mixture", "centroids", "support", "trunk_support", "classifier"):
        one = read_arrays(learned / f"models/signatures/low/{name}.safetensors")
        two = read_arrays(tmp_path / f"low/{name}.safetensors")
        assert one.keys() == two.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])
    again = read_signature(tmp_path, "low").statistics
    np.testing.assert_array_equal(again.means, signature.statistics.means)
    scatter = dense(signature.statistics.scatter)
    np.testing.assert_allclose(dense(again.scatter), scatter, atol=0.01 * np.abs(scatter).max())
    assert signature.classes == ("digit_0", "digit_1", "digit_2")
    centroids = read_arrays(learned / "models/signatures/low/centroids.safetensors")
    np.testing.assert_array_equal(centroids["centroids"], signature.mixture.centroids.astype(np.float16))


def test_fitting_a_signature_twice_gives_the_same_bytes_and_needs_no_other_task(learned: Path, config: Config) -> None:
    folder = learned / "models/signatures/middle"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(learned / "images/low")
    shutil.rmtree(learned / "models/signatures/low")
    fit_signature(learned, config, "middle")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_missing_signature_is_named(tmp_path: Path) -> None:
    with pytest.raises(IntaglioError, match=r"absent/signature.json: file not found"):
        read_signature(tmp_path, "absent")
