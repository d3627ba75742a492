"""The low-rank module: exact at the start, orthogonal to the past always, and a plain PEFT adapter in the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.errors import IntaglioError
from components.modules.low_rank import (
    LowRank,
    read_component,
    read_past,
    stack,
    truncate,
)
from components.modules.orthogonality import orthonormal_basis, outside

sizes = st.integers(2, 24)


def low_rank(rng: np.random.Generator, out: int, into: int, rank: int) -> LowRank:
    b, a = rng.normal(size=(out, rank)), rng.normal(size=(rank, into))
    return LowRank(b.astype(np.float32), a.astype(np.float32))


@given(out=sizes, into=sizes, past=st.integers(1, 8), rank=st.integers(1, 4), seed=st.integers(0, 999))
def test_the_new_component_is_orthogonal_to_the_past(out: int, into: int, past: int, rank: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    old, new = low_rank(rng, out, into, past), low_rank(rng, out, into, rank)
    u, v = torch.tensor(orthonormal_basis(old.b)), torch.tensor(orthonormal_basis(old.a.T))
    b = outside(torch.from_numpy(new.b.T), u).numpy().T
    a = outside(torch.from_numpy(new.a), v).numpy()
    old_update = old.b @ np.diag(rng.normal(size=past)) @ old.a
    product = abs(float(np.sum((b @ a) * old_update)))
    assert product <= 1e-5 * np.linalg.norm(new.b @ new.a) * np.linalg.norm(old_update) + 1e-12
    assert np.abs(old.b.T @ b).max() <= 1e-5 * np.linalg.norm(old.b) * np.linalg.norm(new.b)


@given(out=sizes, into=sizes, rank=st.integers(1, 12), kept=st.integers(1, 12), seed=st.integers(0, 999))
def test_truncation_is_the_best_approximation(out: int, into: int, rank: int, kept: int, seed: int) -> None:
    update = low_rank(np.random.default_rng(seed), out, into, rank)
    short, error = truncate(update, kept)
    full = update.b.astype(np.float64) @ update.a
    sigma = np.linalg.svd(full, compute_uv=False)
    assert short.rank <= max(kept, 0)
    expected = np.linalg.norm(sigma[kept:]) / np.linalg.norm(sigma)
    assert error == pytest.approx(expected, abs=1e-6)
    assert np.linalg.norm(full - short.b @ short.a) == pytest.approx(np.linalg.norm(sigma[kept:]), abs=1e-4)


def test_stacking_adds_updates_and_no_energy_gives_no_basis() -> None:
    rng = np.random.default_rng(0)
    one, two = low_rank(rng, 5, 7, 2), low_rank(rng, 5, 7, 3)
    both = stack([one, two])
    np.testing.assert_allclose(both.b @ both.a, one.b @ one.a + two.b @ two.a, atol=1e-5)
    assert orthonormal_basis(np.zeros((5, 3))).shape == (5, 0)


def test_stored_components_of_different_tasks_are_orthogonal(learned: Path) -> None:
    folder = learned / "models/modules"
    parts = [read_component(folder / task) for task in ("low", "middle", "high")]
    for layer in parts[0]:
        for number, new in enumerate(parts):
            assert np.linalg.norm(new[layer].b) > 0
            for old in parts[:number]:
                product = abs(float(np.sum((new[layer].b @ new[layer].a) * (old[layer].b @ old[layer].a))))
                scale = np.linalg.norm(new[layer].b @ new[layer].a) * np.linalg.norm(old[layer].b @ old[layer].a)
                assert product <= 1e-5 * scale


def test_the_past_is_cut_to_its_budget(learned: Path) -> None:
    whole = read_past(learned / "models/modules", "high", budget=100)
    cut = read_past(learned / "models/modules", "high", budget=4)
    assert {update.rank for update in whole.values()} == {9}
    assert {update.rank for update in cut.values()} == {4}
    assert read_past(learned / "models/modules", "base", budget=4) == {}


def test_a_changed_link_of_the_chain_is_noticed(learned: Path) -> None:
    path = learned / "models/modules/low/module.json"
    path.write_text(path.read_text().replace('"adapter_rank": ', '"adapter_rank":  '))
    with pytest.raises(IntaglioError, match=r"low/module.json: changed since a later task"):
        read_past(learned / "models/modules", "middle", budget=100)


def test_a_damaged_component_is_refused(learned: Path) -> None:
    path = learned / "models/modules/low/component.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(IntaglioError, match="damaged"):
        read_component(learned / "models/modules/low")
