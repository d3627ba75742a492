"""Sums over images: in parts as at once, whatever the parts."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from components.signatures.class_sums import ClassSums
from components.signatures.statistics import Statistics

sizes = st.integers(1, 25)


@given(first=sizes, second=sizes, width=st.integers(1, 12), seed=st.integers(0, 99), classes=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_sums_of_parts_are_those_of_all_at_once(first: int, second: int, width: int, seed: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    h = (random.normal(size=(first + second, width)) + 5).astype(np.float32)
    labels = random.integers(0, classes, first + second)
    known = int(labels[:first].max()) + 1
    added = ClassSums.fit(h[:first], labels[:first], known).add(h[first:], labels[first:], classes)
    whole = ClassSums.fit(h, labels, classes)
    np.testing.assert_array_equal(added.counts, whole.counts)
    np.testing.assert_allclose(added.means, whole.means, atol=1e-9)
    found, expected = added.statistics(), whole.statistics()
    np.testing.assert_allclose(found.scatter, expected.scatter, atol=1e-8 * first + 1e-8)
    assert len(added.factor) <= min(width, first + second + classes)


def test_statistics_are_those_of_the_images() -> None:
    random = np.random.default_rng(0)
    h, labels = random.normal(size=(40, 7)).astype(np.float32), np.arange(40) % 3
    expected, found = Statistics.fit(h, labels, 3), ClassSums.fit(h, labels, 3).statistics()
    np.testing.assert_allclose(found.scatter, expected.scatter, atol=1e-10)
    np.testing.assert_allclose(found.means, expected.means)
    part = ClassSums.fit(h, labels, 3).statistics(2, 5)
    np.testing.assert_allclose(part.scatter, expected.scatter[2:5, 2:5], atol=1e-10)
    np.testing.assert_allclose(ClassSums.fit(h, labels, 3).mean, h.mean(axis=0), atol=1e-6)


def test_stored_sums_come_back_in_float32() -> None:
    random = np.random.default_rng(0)
    sums = ClassSums.fit(random.normal(size=(30, 5)), np.arange(30) % 2, 2)
    again = ClassSums.from_arrays(sums.to_arrays())
    np.testing.assert_array_equal(again.means, sums.means)
    np.testing.assert_allclose(again.factor, sums.factor, rtol=1e-6)
