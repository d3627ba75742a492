"""The tail that learns: exactly the frozen backbone at first, and the gradients that autograd finds for the formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from components.config import Config
from components.modules.adapted_linear import AdaptedLinear, attach, training_dtype
from components.modules.low_rank import LowRank, Module
from components.modules.orthogonality import outside
from components.vision.backbone import Vit

sizes = st.integers(1, 20)


def low_rank(rng: np.random.Generator, out: int, into: int, rank: int) -> LowRank:
    b, a = rng.normal(size=(out, rank)), rng.normal(size=(rank, into))
    return LowRank(b.astype(np.float32), a.astype(np.float32))


def past_of(vit: Vit, rank: int) -> Module:
    rng = np.random.default_rng(0)
    linears = {name: layer for name, layer in vit.model.named_modules() if isinstance(layer, nn.Linear)}
    tail = {name for name in linears if name.startswith("blocks.") and int(name.split(".")[1]) >= vit.trunk_depth}
    return {name: low_rank(rng, *linears[name].weight.shape, rank) for name in tail}


def plain(layer: AdaptedLinear, x: Tensor) -> Tensor:
    """The formula of docs/explanation/method.md, with the whole update as a matrix."""
    b, a = outside(layer.b, layer.basis_b).T, outside(layer.a, layer.basis_a)
    update = b @ a + layer.old_b.T @ torch.diag(layer.s) @ layer.old_a
    return x @ (layer.weight + update).T + (0 if layer.bias is None else layer.bias)


@given(
    out=sizes, into=sizes, rank=st.integers(1, 4), past=st.integers(0, 6), bias=st.booleans(), seed=st.integers(0, 999)
)
def test_a_layer_and_its_gradients_are_the_formula(
    out: int, into: int, rank: int, past: int, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    base = nn.Linear(into, out, bias)
    layer = AdaptedLinear(base, low_rank(np.random.default_rng(seed), out, into, past), rank, torch.float32)
    with torch.no_grad():
        layer.b.normal_()
        layer.s.normal_()
    x, dy = torch.randn(2, 3, into, requires_grad=True), torch.randn(2, 3, out)
    wanted = [x, layer.a, layer.b, *([layer.s] if past else [])]
    y, expected = layer(x), plain(layer, x)
    torch.testing.assert_close(y, expected, atol=1e-3, rtol=1e-3)
    found, right = torch.autograd.grad(y, wanted, dy), torch.autograd.grad(expected, wanted, dy)
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3 * float(other.abs().max() + 1), rtol=1e-3)


def test_an_untrained_module_is_exactly_the_frozen_backbone(vit: Vit, config: Config) -> None:
    tokens = torch.randn(4, 5, vit.width, generator=torch.Generator().manual_seed(0))
    before, past = vit.tail(tokens), past_of(vit, 4)
    trained = attach(vit, past, config.finetune, seed=0)
    assert torch.equal(vit.tail(tokens), before)
    assert {id(parameter) for parameter in trained.parameters()} == {
        id(parameter) for parameter in vit.model.parameters() if parameter.requires_grad
    }
    assert trained.reuse(0.1)[next(iter(past))].shape == (4,)


def test_bfloat16_is_close_and_keeps_its_parameters_in_float32(vit: Vit, config: Config) -> None:
    tokens = torch.randn(4, 5, vit.width, generator=torch.Generator().manual_seed(0))
    before = vit.tail(tokens)
    trained = attach(vit, past_of(vit, 4), config.finetune.model_copy(update={"precision": "bfloat16"}), seed=0)
    after = vit.tail(tokens)
    assert torch.nn.functional.cosine_similarity(after, before).min() > 0.999
    after.square().sum().backward()
    for parameter in trained.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


def test_a_trained_component_stays_outside_the_past(vit: Vit, config: Config) -> None:
    past = past_of(vit, 6)
    trained = attach(vit, past, config.finetune, seed=0)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=0.1)
    tokens = torch.randn(4, 5, vit.width, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        optimizer.zero_grad()
        vit.tail(tokens).square().sum().backward()
        optimizer.step()
    for name, new in trained.component().items():
        assert np.linalg.norm(new.b) > 0
        assert np.abs(past[name].b.T @ new.b).max() <= 1e-4 * np.linalg.norm(past[name].b) * np.linalg.norm(new.b)
        assert np.abs(past[name].a @ new.a.T).max() <= 1e-4 * np.linalg.norm(past[name].a) * np.linalg.norm(new.a)


@pytest.mark.parametrize(("reuse", "orthogonal"), [(True, False), (False, True), (False, False)])
def test_the_past_may_be_left_out_and_need_not_be_avoided(
    vit: Vit, config: Config, reuse: bool, orthogonal: bool
) -> None:
    past = past_of(vit, 6)
    settings = config.finetune.model_copy(update={"reuse": reuse, "orthogonal": orthogonal})
    trained = attach(vit, past, settings, seed=0)
    name, new = next(iter(trained.component().items()))
    assert set(trained.reuse(0.0)) == (set(past) if reuse else set())
    assert len(trained.scales()) == (len(past) if reuse else 0)
    overlap = np.abs(past[name].a @ new.a.T).max() / np.linalg.norm(past[name].a) / np.linalg.norm(new.a)
    assert (overlap < 1e-5) == orthogonal


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("float32", "cuda", torch.float32),
        ("bfloat16", "cpu", torch.bfloat16),
        ("auto", "cuda", torch.bfloat16),
        ("auto", "mps", torch.float32),
    ],
)
def test_the_precision_is_what_was_asked_for(precision: str, device: str, expected: torch.dtype) -> None:
    assert training_dtype(precision, torch.device(device)) == expected


@pytest.mark.parametrize("able", [{}, {"avx512_bf16": False, "amx_bf16": True}, {"avx512_bf16": True}])
def test_a_cpu_multiplies_in_bfloat16_only_where_it_can(able: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    expected = torch.bfloat16 if any(able.values()) else torch.float32
    assert training_dtype("auto", torch.device("cpu")) == expected
