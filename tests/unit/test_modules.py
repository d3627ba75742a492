"""The low-rank module: exact at the start, orthogonal to the past always, and a plain PEFT adapter in the end."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.backbone import Vit
from components.config import Config
from components.errors import IntaglioError
from components.io import sha256_file
from components.modules import (
    LowRank,
    Modules,
    Orthogonal,
    attach,
    orthonormal_basis,
    read_component,
    read_past,
    stack,
    truncate,
)
from components.vision import PeftModel, create_model

sizes = st.integers(2, 24)


def low_rank(rng: np.random.Generator, out: int, into: int, rank: int) -> LowRank:
    b, a = rng.normal(size=(out, rank)), rng.normal(size=(rank, into))
    return LowRank(b.astype(np.float32), a.astype(np.float32))


@given(out=sizes, into=sizes, past=st.integers(1, 8), rank=st.integers(1, 4), seed=st.integers(0, 999))
def test_the_new_component_is_orthogonal_to_the_past(out: int, into: int, past: int, rank: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    old, new = low_rank(rng, out, into, past), low_rank(rng, out, into, rank)
    u, v = torch.tensor(orthonormal_basis(old.b)), torch.tensor(orthonormal_basis(old.a.T))
    b = Orthogonal(u, rows=False)(torch.from_numpy(new.b)).numpy()
    a = Orthogonal(v, rows=True)(torch.from_numpy(new.a)).numpy()
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


def test_an_untrained_module_is_exactly_the_frozen_backbone(vit: Vit, config: Config) -> None:
    tokens = torch.randn(4, 5, vit.width, generator=torch.Generator().manual_seed(0))
    before = vit.tail(tokens)
    rng = np.random.default_rng(0)
    shapes = {name: layer.weight.shape for name, layer in vit.model.named_modules() if hasattr(layer, "in_features")}
    past = {
        name: low_rank(rng, *shape, 4)
        for name, shape in shapes.items()
        if name.startswith("blocks.") and int(name.split(".")[1]) >= vit.trunk_depth
    }
    trained = attach(vit, past, config.finetune, seed=0)
    assert torch.equal(vit.tail(tokens), before)
    assert {id(parameter) for parameter in trained.parameters()} == {
        id(parameter) for parameter in vit.model.parameters() if parameter.requires_grad
    }
    assert trained.reuse(0.1)[next(iter(past))].shape == (4,)


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


def test_plain_peft_loads_an_adapter_and_computes_the_same(learned: Path, vit: Vit, config: Config) -> None:
    model = create_model("test_vit", pretrained=False, num_classes=0, img_size=32, depth=4)
    from safetensors.torch import load_file

    model.load_state_dict(load_file(learned / "models/backbone/backbone.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = PeftModel.from_pretrained(model, str(learned / "models/modules/high/adapter")).eval()
    x = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    modules = Modules(vit, learned / "models/modules", ["low", "high"])
    with torch.inference_mode():
        tokens, trunk = vit.trunk(x)
        ours = modules.embed("high", tokens, trunk)[:, vit.trunk_width :]
        image = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
        whole = plain.base_model.model.forward_features(image)
        expected = torch.cat([whole[:, 0], whole[:, 1:].mean(dim=1)], dim=1)
        frozen = modules.embed(None, tokens, trunk)[:, vit.trunk_width :]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    assert (ours - frozen).abs().max() > 1e-3


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


@pytest.mark.parametrize("name", ["component.safetensors", "adapter/adapter_model.safetensors"])
def test_a_damaged_module_is_refused(learned: Path, vit: Vit, name: str) -> None:
    path = learned / "models/modules/low" / name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(IntaglioError, match="damaged"):
        read_component(learned / "models/modules/low")
        Modules(vit, learned / "models/modules", ["low"])


def test_a_module_of_another_backbone_is_refused(learned: Path, vit: Vit) -> None:
    path = learned / "models/modules/low/module.json"
    path.write_text(path.read_text().replace(vit.sha256, sha256_file(path)))
    with pytest.raises(IntaglioError, match="another backbone"):
        Modules(vit, learned / "models/modules", ["low"])


def test_without_modules_the_backbone_speaks(vit: Vit, learned: Path) -> None:
    tokens, trunk = vit.trunk(np.zeros((1, 32, 32, 3), dtype=np.uint8))
    expected = torch.cat([trunk, vit.tail(tokens)], dim=1)
    assert torch.equal(Modules(vit, learned, []).embed(None, tokens, trunk), expected)
