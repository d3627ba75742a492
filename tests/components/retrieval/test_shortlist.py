"""Retrieval as it is served: the trunk decides what is clear, all of h_0 the rest, and strangers stay unknown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.config import Config, Shortlist
from components.config import Signature as Settings
from components.io import read_arrays
from components.retrieval.pooled import PooledRetriever
from components.retrieval.shortlist import TaskRetriever
from components.retrieval.supports import TaskSupports
from components.signatures.classifier import Classifier
from components.signatures.conformal import Calibration
from components.signatures.mixture import Mixture
from components.signatures.signature import Signature
from components.signatures.statistics import Statistics
from components.signatures.storage import read_signature
from components.signatures.support import Support

WIDTH, TRUNK, CLASSES = 12, 8, 2
MIXTURE = Settings(components=3, pca_dims=4, weight_concentration=0.1, scatter_rank=8)


def images(rng: np.random.Generator, task: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count) % CLASSES
    centers = np.random.default_rng(task).normal(size=(CLASSES, WIDTH)) * 4
    return (centers[labels] + rng.normal(size=(count, WIDTH))).astype(np.float32), labels


def signature(task: int, held_out: int = 60) -> Signature:
    rng = np.random.default_rng(100 + task)
    h, labels = images(rng, task, 80)
    other, _ = images(rng, task, held_out)
    support = Support.fit(h, other, MIXTURE, 0)
    trunk_support = Support.fit(h[:, :TRUNK], other[:, :TRUNK], MIXTURE, 0)
    classifier = Classifier.fit(h, labels, CLASSES)
    statistics = Statistics.fit(h, labels, CLASSES)
    return Signature(f"t{task}", ("a", "b"), statistics, support.mixture, support, trunk_support, classifier)


SIGNATURES = [signature(task) for task in range(5)]
RULES = Shortlist(epsilon=0.05, cap=2, early_margin=10.0, early_p=0.1, temperature=10.0)


def find(task_retriever: TaskRetriever, h: np.ndarray, asked: list[int] | None = None) -> object:
    def tail(rows: np.ndarray) -> np.ndarray:
        if asked is not None:
            asked.extend(rows.tolist())
        return h[rows, TRUNK:]

    return task_retriever.find(h[:, :TRUNK], tail)


def mixed(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    parts = [images(rng, task, count)[0] for task in range(5)]
    return np.concatenate(parts), np.repeat(np.arange(5), count)


def test_densities_together_equal_densities_one_by_one() -> None:
    h, _ = mixed()
    stacked = TaskSupports(tuple(s.support for s in SIGNATURES)).log_densities(h)
    alone = np.stack([s.support.mixture.log_density(h) for s in SIGNATURES], axis=1)
    np.testing.assert_allclose(stacked, alone, rtol=1e-4, atol=1e-2)


def mixture(rng: np.random.Generator, parts: int, dims: int, far: float) -> Mixture:
    """Any mixture in WIDTH dimensions, `far` from the origin."""
    axes = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0][:dims]
    weights = rng.dirichlet(np.ones(parts))
    variances = rng.uniform(0.1, 5, (parts, dims))
    return Mixture(weights, rng.normal(size=(parts, dims)) * 3, variances, rng.normal(size=WIDTH) * far, axes, 0.3)


@given(
    seed=st.integers(0, 10**6),
    shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, WIDTH - 1)), min_size=1, max_size=6),
    count=st.integers(0, 9),
    far=st.floats(0, 30),
)
@settings(max_examples=60)
def test_mixtures_of_any_shapes_are_evaluated_together_as_alone(
    seed: int, shapes: list[tuple[int, int]], count: int, far: float
) -> None:
    rng = np.random.default_rng(seed)
    mixtures = [mixture(rng, parts, dims, far) for parts, dims in shapes]
    h = (rng.normal(size=(count, WIDTH)) * max(far, 1)).astype(np.float32)
    supports = TaskSupports(tuple(Support(m, Calibration.of(rng.normal(size=5) * 20)) for m in mixtures))
    alone = np.stack([m.log_density(h) for m in mixtures], axis=1)
    # float32 holds a squared distance of up to `far` ** 2 to seven digits; a variance of 0.1 magnifies what is lost.
    np.testing.assert_allclose(supports.log_densities(h), alone, rtol=1e-5, atol=1e-5 * (10 + far) ** 2)
    assert supports.p_values(h).shape == (count, len(shapes))


@given(temperature=st.floats(0.1, 100))
@settings(max_examples=10)
def test_the_temperature_flattens_the_posterior_and_changes_no_choice(temperature: float) -> None:
    h, _ = mixed(10)
    plain = find(TaskRetriever.fit(SIGNATURES, RULES.model_copy(update={"temperature": 1.0})), h)
    other = find(TaskRetriever.fit(SIGNATURES, RULES.model_copy(update={"temperature": temperature})), h)
    np.testing.assert_array_equal(other.task, plain.task)
    np.testing.assert_array_equal(other.decided_by_trunk, plain.decided_by_trunk)
    np.testing.assert_allclose(np.exp(other.log_posterior).sum(axis=1), 1)
    surer = np.exp(other.log_posterior).max(axis=1) - np.exp(plain.log_posterior).max(axis=1)
    assert (surer * (1 - temperature) >= -1e-9).all()


def test_only_what_the_trunk_leaves_open_pays_for_the_tail() -> None:
    h, truth = mixed()
    asked: list[int] = []
    found = find(TaskRetriever.fit(SIGNATURES, RULES), h, asked)
    assert asked == np.flatnonzero(~found.decided_by_trunk).tolist()
    assert 0.5 < found.decided_by_trunk.mean() < 1
    assert (found.task == truth).mean() > 0.99
    assert (found.p_value[found.decided_by_trunk] > RULES.early_p).all()


def test_the_trunk_and_all_of_h0_agree_where_the_trunk_decides() -> None:
    h, _ = mixed()
    usual = find(TaskRetriever.fit(SIGNATURES, RULES), h)
    patient = find(TaskRetriever.fit(SIGNATURES, RULES.model_copy(update={"early_margin": 1e9})), h)
    assert not patient.decided_by_trunk.any()
    assert (usual.task == patient.task).mean() >= 0.995
    np.testing.assert_allclose(np.exp(patient.log_posterior).sum(axis=1), 1)
    exact = PooledRetriever.fit([s.statistics for s in SIGNATURES]).scores(h).argmax(axis=1)
    assert (patient.task == exact).all()


def test_an_image_of_no_task_is_unknown_and_one_of_a_task_rarely_is() -> None:
    task_retriever = TaskRetriever.fit(SIGNATURES, RULES)
    stranger = images(np.random.default_rng(0), 99, 200)[0]
    assert find(task_retriever, stranger).unknown.mean() > 0.9
    h, _ = mixed(200)
    assert find(task_retriever, h).unknown.mean() <= RULES.epsilon + 0.03


def test_the_shortlist_holds_the_best_task_and_at_most_the_cap() -> None:
    h, _ = mixed()
    wide = RULES.model_copy(update={"epsilon": 0.0, "early_margin": 1e9})
    found = find(TaskRetriever.fit(SIGNATURES, wide), h)
    assert (found.shortlist.sum(axis=1) <= wide.cap).all()
    assert found.shortlist[np.arange(len(h)), found.task].all()
    assert found.capped.all()
    assert not found.unknown.any()
    # Beside the best one stand those that find the image most typical.
    others = np.where(np.arange(5) == found.task[:, None], -1, found.p_values)
    assert (others.max(axis=1) == np.where(found.shortlist, others, -1).max(axis=1)).all()


@settings(max_examples=20)
@given(order=st.permutations(range(5)))
def test_task_order_changes_nothing(order: list[int]) -> None:
    h, _ = mixed(10)
    one = find(TaskRetriever.fit(SIGNATURES, RULES), h)
    other = find(TaskRetriever.fit([SIGNATURES[k] for k in order], RULES), h)
    assert (np.array(order)[other.task] == one.task).all()
    assert (other.unknown == one.unknown).all()
    assert (other.shortlist == one.shortlist[:, order]).all()


def test_a_later_task_takes_no_image_off_an_earlier_shortlist() -> None:
    h, truth = mixed()
    patient = RULES.model_copy(update={"early_margin": 1e9, "cap": 5})
    few, many = (find(TaskRetriever.fit(SIGNATURES[:count], patient), h[truth < 2]) for count in (2, 5))
    own = np.arange((truth < 2).sum()), truth[truth < 2]
    np.testing.assert_allclose(few.p_values[own], many.p_values[own], atol=0.02)


def test_coverage_of_the_shortlist_is_what_was_promised_for_twenty_held_out_images() -> None:
    """1 - epsilon <= E[coverage] <= 1 - epsilon + 1/(n+1) over fresh calibration sets of a real mixture."""
    epsilon, held_out, splits, covered = 0.2, 20, 200, []
    support, rng = SIGNATURES[0].support, np.random.default_rng(3)
    for _ in range(splits):
        h = images(rng, 0, held_out)[0]
        fresh = replace(support, calibration=type(support.calibration).of(support.mixture.log_density(h)))
        covered.append((TaskSupports((fresh,)).p_values(images(rng, 0, 100)[0])[:, 0] > epsilon).mean())
    error = 4 * np.std(covered) / np.sqrt(splits)
    assert 1 - epsilon - error <= np.mean(covered) <= 1 - epsilon + 1 / (held_out + 1) + error


def test_a_backbone_without_trunk_depths_asks_the_tail_for_every_image() -> None:
    h, truth = mixed()
    task_retriever = TaskRetriever.fit([replace(s, trunk_support=None) for s in SIGNATURES], RULES)
    assert task_retriever.trunk_width == 0
    found = task_retriever.find(h[:, :0], lambda rows: h[rows])
    assert not found.decided_by_trunk.any()
    assert (found.task == truth).mean() > 0.99


def test_stored_and_read_again_it_finds_the_same(learned: Path, config: Config) -> None:
    folders = [learned / "models/bundle/signatures" / task for task in config.tasks]
    served = TaskRetriever.from_arrays(
        read_arrays(learned / "models/bundle/retrieval.safetensors"), folders, config.shortlist
    )
    learned_tasks = [read_signature(learned / "models/signatures", task) for task in config.tasks]
    fitted = TaskRetriever.fit(learned_tasks, config.shortlist)
    rng = np.random.default_rng(0)
    h = rng.normal(size=(30, fitted.full.retriever.coef.shape[1])).astype(np.float32)
    width = fitted.trunk_width
    one, two = (task_retriever.find(h[:, :width], lambda rows: h[rows, width:]) for task_retriever in (served, fitted))
    assert width > 0
    np.testing.assert_array_equal(one.task, two.task)
    np.testing.assert_array_equal(one.p_value, two.p_value)


@pytest.mark.parametrize("count", [0, 1])
def test_few_images_are_no_special_case(count: int) -> None:
    h, _ = mixed()
    assert len(find(TaskRetriever.fit(SIGNATURES, RULES), h[:count]).task) == count
