"""Methods: each against its definition computed another way; no prediction depends on other images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from components.lab.embedded_images import ImageRows
from components.lab.experiment import run_experiment
from components.lab.grid import PreparedStream
from components.lab.method import Method
from components.lab.method_registry import METHODS
from components.lab.module_store import ModuleStore
from components.lab.single_classifier import CosineMeans, RandomRidge, Scorer, StreamingLda
from components.lab.task_sequence import TaskSequence
from components.signatures.classifier import Classifier


def clusters(seed: int, classes: int, per_class: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    return (rng.normal(size=(classes, width))[labels] + rng.normal(size=(len(labels), width))).astype(
        np.float32
    ), labels


def learned(name: str, sequence: TaskSequence, store: ModuleStore) -> Method:
    method = METHODS[name].make(store, 0, METHODS[name].grid[0])
    for task in sequence.tasks:
        method.learn(task)
    return method


@given(sizes=st.lists(st.integers(1, 4), min_size=2, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=20)
@pytest.mark.parametrize("make", [lambda: RandomRidge(40, 1e-2, 3), lambda: StreamingLda(1e-2), CosineMeans])
def test_task_by_task_is_the_same_as_all_at_once(make: type[Scorer], sizes: list[int], seed: int) -> None:
    parts = [clusters(seed + number, classes, 9, 12) for number, classes in enumerate(sizes)]
    one_by_one, at_once = make(), make()
    for (h, labels), classes in zip(parts, sizes, strict=True):
        one_by_one.add(h, labels, classes)
    starts = np.cumsum([0, *sizes[:-1]])
    everything = np.concatenate([h for h, _ in parts])
    at_once.add(
        everything, np.concatenate([own + start for (_, own), start in zip(parts, starts, strict=True)]), sum(sizes)
    )
    np.testing.assert_allclose(one_by_one.scores(everything), at_once.scores(everything), atol=2e-3)


def test_the_random_ridge_is_scikit_learns_on_the_lifted_features() -> None:
    h, labels = clusters(0, 3, 20, 8)
    ridge = RandomRidge(30, 1e-2, 0)
    ridge.add(h, labels, 3)
    weights = np.random.default_rng(0).standard_normal((8, 30), dtype=np.float32)
    lifted = np.maximum(h @ weights, 0).astype(np.float64)
    alpha = 1e-2 * np.trace(lifted.T @ lifted) / 30
    reference = Ridge(alpha=alpha, fit_intercept=False).fit(lifted, np.eye(3)[labels]).predict(lifted)
    np.testing.assert_allclose(ridge.scores(h), reference, atol=1e-3)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_prediction_depends_on_its_image_alone_and_changes_nothing(
    name: str, sequence: TaskSequence, lab_stream: PreparedStream
) -> None:
    method = learned(name, sequence, lab_stream.store)
    rows = np.concatenate([part.images.rows for part in sequence.test])
    images = ImageRows(lab_stream.embedded, rows)
    whole, again = method.predict(images), method.predict(images)
    np.testing.assert_array_equal(whole.task, again.task)
    np.testing.assert_array_equal(whole.label, again.label)
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = method.predict(images.take(order))
    np.testing.assert_array_equal(shuffled.task, whole.task[order])
    np.testing.assert_array_equal(shuffled.label, whole.label[order])
    for row in (0, 7, len(rows) - 1):
        alone = method.predict(images.take(np.array([row])))
        assert (alone.task[0], alone.label[0]) == (whole.task[row], whole.label[row])


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_learns_something_and_counts_what_it_keeps(
    name: str, sequence: TaskSequence, lab_stream: PreparedStream
) -> None:
    entry = METHODS[name]
    row = run_experiment(entry, sequence, lab_stream.store, 0, entry.grid[0])
    classes = sum(task.classes for task in sequence.tasks)
    assert row["accuracy_final"] > 1.5 / classes  # random weights, yet better than a guess
    assert row["task_aware_accuracy"] >= row["accuracy_final"] - 1e-9
    assert row["bytes_per_task"] > 0
    shares = np.array(row["retrieval_matrix"])
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    if not entry.final_only:
        assert [len(line) for line in row["accuracy_matrix"]] == [1, 2, 3, 4]
        assert row["forgetting"] >= 0


def test_retrieval_does_not_depend_on_the_order_of_tasks(sequence: TaskSequence, lab_stream: PreparedStream) -> None:
    order = [2, 0, 3, 1]
    other = TaskSequence(tuple(sequence.tasks[k] for k in order), tuple(sequence.test[k] for k in order))
    images = sequence.test[1].images
    for name in ("intaglio_frozen", "signature_kmeans", "signature_gaussian", "signature_dpgmm", "frozen_slda"):
        first, second = (learned(name, made, lab_stream.store).predict(images) for made in (sequence, other))
        np.testing.assert_array_equal(first.task, np.array(order)[second.task])
        np.testing.assert_array_equal(first.label, second.label)


def test_modules_that_stand_alone_are_shared_by_all_orders_and_composed_ones_are_not(
    sequence: TaskSequence, lab_stream: PreparedStream
) -> None:
    store = lab_stream.store
    first, second = sequence.tasks[:2]
    alone = store.module(second, "base", 0)
    after = store.module(second, store.module(first, "base", 0), 0)
    assert alone == store.module(second, "base", 0)
    assert len({alone, after, store.module(second, "base", 1)}) == 3


def test_embeddings_under_a_module_are_the_same_after_a_reload(
    sequence: TaskSequence, lab_stream: PreparedStream
) -> None:
    task, images = sequence.tasks[0], sequence.test[0].images
    name = lab_stream.store.module(task, "base", 0)
    kept = lab_stream.store.embed(name, images)
    laboratory = lab_stream.laboratory
    fresh = ModuleStore(laboratory.root, laboratory.folder, laboratory.config)
    one_by_one = np.concatenate([fresh.embed(name, images.take(np.array([row]))) for row in range(len(images))])
    np.testing.assert_allclose(one_by_one, kept, atol=1e-5)
    assert np.abs(kept - images.h0).max() > 1e-3  # the module does something


def test_the_lda_of_a_task_is_the_one_that_is_served(sequence: TaskSequence, lab_stream: PreparedStream) -> None:
    method = learned("intaglio_frozen", sequence, lab_stream.store)
    task, part = sequence.tasks[0], sequence.test[0]
    classifier = Classifier.fit(task.train.images.h0, task.train.labels, task.classes)
    expected = classifier.log_probabilities(part.images.h0).argmax(axis=1)
    np.testing.assert_array_equal(method.within(part.images, 0), expected)


def test_a_module_is_trained_once_and_cut_to_any_rank(sequence: TaskSequence, lab_stream: PreparedStream) -> None:
    whole, images = lab_stream.store, sequence.test[0].images
    name = whole.module(sequence.tasks[1], whole.module(sequence.tasks[0], "base", 0), 0)
    finetune = whole.config.finetune
    made, found = set((whole.folder / "modules").iterdir()), {}
    for rank in (1, finetune.max_rank):
        config = whole.config.model_copy(update={"finetune": finetune.model_copy(update={"max_rank": rank})})
        cut = ModuleStore(whole.root, whole.folder, config)
        assert cut.module(sequence.tasks[1], whole.module(sequence.tasks[0], "base", 0), 0) == name
        found[rank] = cut.embed(name, images)
        assert cut.stored_bytes([name]) <= whole.stored_bytes([name]) * rank / finetune.max_rank + 4096
    assert {folder.name for folder in set((whole.folder / "modules").iterdir()) - made} <= {
        f"{name}-{rank}" for rank in found
    }
    np.testing.assert_array_equal(found[finetune.max_rank], whole.embed(name, images))
    assert np.abs(found[1] - found[finetune.max_rank]).max() > 1e-4
