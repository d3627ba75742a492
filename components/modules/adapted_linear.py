"""The tail that learns: a ViT whose last blocks carry a new component and the frozen past (docs/method.md, section 1).

Every adapted linear layer computes   x W^T + (x A_past^T) diag(s) B_past^T + (x A_k^T) B_k^T   and differentiates it
by hand: W and the past are constants, so that a step costs two products with W (one where x needs no gradient) and thin
ones with the factors, the past beside the new component in the same product. What training ends in, the factors B_k and
A_k and the scales s, knows nothing of these layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from components.config import Finetune
from components.modules.low_rank import LINEAR_LAYERS, LowRank, Matrix, Module, orthonormal_basis
from components.vision.backbone import Vit, multiplies_bfloat16


class _Product(torch.autograd.Function):
    """y = x W^T + bias + (x A^T) diag(1, s) B, where the last q directions of A and B are the frozen past.

    x (n, in), weight (out, in), bias (out,), a (r, in), b (r, out), s (q,), old_a (q, in), old_b (q, out) -> (n, out).
    y is of the dtype `wanted`, a gradient of its input's; the products are in that of `weight`. Casts in here are no
    steps of autograd.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        s: Tensor,
        old_a: Tensor,
        old_b: Tensor,
        wanted: torch.dtype,
    ) -> Tensor:
        x, a, b, s = (tensor.to(weight.dtype) for tensor in (x, a, b, s))
        down, up = (torch.cat([a, old_a]), torch.cat([b, old_b])) if len(s) else (a, b)
        inner = x @ down.T
        ctx.save_for_backward(x, weight, down, up, s, inner)
        if len(s):
            up = torch.cat([b, old_b * s[:, None]])
        return functional.linear(x, weight, bias).addmm_(inner, up).to(wanted)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, s, inner = ctx.saved_tensors
        dy = dy.to(weight.dtype)
        rank, outer, ds = len(down) - len(s), dy @ up.T, None
        if len(s):
            ds = (outer[:, rank:] * inner[:, rank:]).sum(dim=0)
            outer[:, rank:] *= s
        dx = (dy @ weight).addmm_(outer, down) if ctx.needs_input_grad[0] else None
        return dx, None, None, outer[:, :rank].T @ x, inner[:, :rank].T @ dy, ds, None, None, None


def outside(factor: Tensor, basis: Tensor) -> Tensor:
    """A factor (r, n) without its part in the span of `basis` (n, q): F (I - V V^T), in the factor's own float32.

    So <B_k A_k, B_past D A_past>_F = 0 holds for every diagonal D, at every step.
    """
    return factor - (factor @ basis) @ basis.T if basis.shape[1] else factor


class AdaptedLinear(nn.Module):
    """A frozen linear layer with a new component of `rank` and the past; its products run in `dtype`.

    The component is orthogonal to `avoided`: the past, unless somebody asks what that is good for. At the start B_k = 0
    and s = 0: it computes what the frozen layer does.
    """

    weight: Tensor
    bias: Tensor | None
    old_a: Tensor
    old_b: Tensor
    basis_a: Tensor
    basis_b: Tensor

    def __init__(
        self, base: nn.Linear, past: LowRank, rank: int, dtype: torch.dtype, avoided: LowRank | None = None
    ) -> None:
        super().__init__()
        avoided = past if avoided is None else avoided
        device = base.weight.device
        self.a = nn.Parameter(torch.empty(rank, base.in_features))
        self.b = nn.Parameter(torch.zeros(rank, base.out_features))
        self.s = nn.Parameter(torch.zeros(past.rank), requires_grad=past.rank > 0)
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))  # as LoRA does
        constants = {
            "weight": base.weight.detach().to(dtype),
            "bias": None if base.bias is None else base.bias.detach().to(dtype),
            "old_a": torch.from_numpy(past.a).to(dtype),
            "old_b": torch.from_numpy(past.b.T).to(dtype).contiguous(),
            "basis_a": torch.from_numpy(orthonormal_basis(avoided.a.T)),
            "basis_b": torch.from_numpy(orthonormal_basis(avoided.b)),
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)
        self.to(device)

    def component(self) -> tuple[Tensor, Tensor]:
        """The new component's factors a (r, in) and b (r, out), float32, orthogonal to the past."""
        return outside(self.a, self.basis_a), outside(self.b, self.basis_b)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, in) -> (n, tokens, out): in the layer's dtype under autocast, else in that of x."""
        device, rows = x.device.type, x.reshape(-1, x.shape[-1])
        wanted = self.weight.dtype if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            y = _Product.apply(  # type: ignore[no-untyped-call]
                rows, self.weight, self.bias, *self.component(), self.s, self.old_a, self.old_b, wanted
            )
        return cast(Tensor, y).view(*x.shape[:-1], -1)


@dataclass(frozen=True)
class Trainable:
    """The adapted layers of a ViT's tail, by name, with the past that they carry."""

    layers: Mapping[str, AdaptedLinear]
    past: Module

    def scales(self) -> list[Tensor]:
        """The s of every layer, each (past rank,)."""
        return [layer.s for layer in self.layers.values()] if self.past else []

    def parameters(self) -> list[nn.Parameter]:
        """What is learned: the new factors and the scales."""
        found = [parameter for layer in self.layers.values() for parameter in layer.parameters()]
        return [parameter for parameter in found if parameter.requires_grad]

    def component(self) -> dict[str, LowRank]:
        """The new component alone, as (B_k, A_k) per layer."""
        factors = {name: layer.component() for name, layer in self.layers.items()}
        return {name: LowRank(_array(b.T), _array(a)) for name, (a, b) in factors.items()}

    def reuse(self, threshold: float) -> dict[str, Matrix]:
        """s per layer, entries below `threshold` as exact zeros; empty without a past."""
        found = {name: _array(layer.s) for name, layer in self.layers.items()} if self.past else {}
        return {name: np.where(np.abs(s) < threshold, 0, s).astype(np.float32) for name, s in found.items()}


def attach(vit: Vit, past: Module, finetune: Finetune, seed: int) -> Trainable:
    """Put a new component, and the past where there is one, on the last blocks of `vit`.

    `finetune.reuse` and `finetune.orthogonal` say whether the past is carried along, and whether it is avoided.
    At the start the output is the frozen backbone's, up to the rounding of `finetune.precision`.
    """
    torch.manual_seed(seed)
    dtype = training_dtype(finetune.precision, vit.device)
    layers: dict[str, AdaptedLinear] = {}
    for number in range(vit.trunk_depth, len(vit.blocks)):
        for kind in LINEAR_LAYERS:
            name = f"blocks.{number}.{kind}"
            base = cast(nn.Linear, vit.model.get_submodule(name))
            none = LowRank(np.zeros((base.out_features, 0), np.float32), np.zeros((0, base.in_features), np.float32))
            known = past.get(name, none)
            reused, avoided = known if finetune.reuse else none, known if finetune.orthogonal else none
            layers[name] = AdaptedLinear(base, reused, finetune.rank, dtype, avoided)
            vit.model.set_submodule(name, layers[name])
    return Trainable(layers, past if finetune.reuse else {})


def training_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Of the products with frozen weights; `auto` is bfloat16 where the hardware multiplies it."""
    if precision != "auto":
        return cast(torch.dtype, getattr(torch, precision))
    return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32


def _array(tensor: Tensor) -> Matrix:
    return cast(Matrix, np.ascontiguousarray(tensor.detach().float().cpu().numpy()).copy())
