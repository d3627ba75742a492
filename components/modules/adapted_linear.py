"""The layer that trains a module: a frozen linear layer with a new low-rank component beside the frozen past.

    x --+--> W ---------------------------------> (+) --> y      W, A_past, B_past: frozen
        |                                          ^
        +--> A_past --> diag(s) --> B_past --------+             s: learned from 0, so that reuse is selective
        |                                          |
        +--> A_k (I - V V^T) --> (I - U U^T) B_k --+             A_k, B_k: learned, B_k from 0

    y = x W^T + (x A_past^T) diag(s) B_past^T + (x A_k^T) B_k^T

The projections make the new component orthogonal to the past (components/modules/orthogonality.py).

The gradient is written by hand. W and the past are constants, so a step costs two products with W (one where x needs
no gradient) and thin ones with the factors, in which past and new component share a product.
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

from components.arrays import Float32
from components.config import Finetune
from components.modules.low_rank import LINEAR_LAYERS, LowRank, Module
from components.modules.orthogonality import orthonormal_basis, outside
from components.vision.backbone import Vit, multiplies_bfloat16


class _Product(torch.autograd.Function):
    """y = x W^T + bias + (x A^T) diag(1, s) B, where the last q directions of A and B are the frozen past.

    With u = x A^T (n, r + q) and v = dy B^T (n, r + q), split into new | past:
        dA_k = v_new^T x,   dB_k = u_new^T dy,   ds = sum over rows of v_past * u_past,   dx = dy W + v diag(1, s) A
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
        """Compute y (n, out). Casts in here are no steps of autograd.

        Args:
            ctx: autograd's.
            x: (n, in).
            weight: (out, in); its dtype is that of the products.
            bias: (out,).
            a: (r, in).
            b: (r, out).
            s: (q,).
            old_a: (q, in).
            old_b: (q, out).
            wanted: dtype of y; a gradient has the dtype of its input.
        """
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
        """Compute the gradients of x, a, b and s from dy (n, out)."""
        x, weight, down, up, s, inner = ctx.saved_tensors
        dy = dy.to(weight.dtype)
        rank, outer, ds = len(down) - len(s), dy @ up.T, None
        if len(s):
            ds = (outer[:, rank:] * inner[:, rank:]).sum(dim=0)
            outer[:, rank:] *= s
        dx = (dy @ weight).addmm_(outer, down) if ctx.needs_input_grad[0] else None
        return dx, None, None, outer[:, :rank].T @ x, inner[:, :rank].T @ dy, ds, None, None, None


class AdaptedLinear(nn.Module):
    """A frozen linear layer with a new component and the past. At the start it computes what the frozen layer does."""

    weight: Tensor
    bias: Tensor | None
    old_a: Tensor
    old_b: Tensor
    basis_a: Tensor
    basis_b: Tensor

    def __init__(
        self, base: nn.Linear, past: LowRank, rank: int, dtype: torch.dtype, avoided: LowRank | None = None
    ) -> None:
        """Start with B_k = 0 and s = 0.

        Args:
            base: the frozen layer, in -> out.
            past: the components to reuse, of rank q; q may be 0.
            rank: directions r of the new component.
            dtype: of the products.
            avoided: the components that the new one is orthogonal to; None: the past.
        """
        super().__init__()
        avoided = past if avoided is None else avoided
        device = base.weight.device
        self.a = nn.Parameter(torch.empty(rank, base.in_features))
        self.b = nn.Parameter(torch.zeros(rank, base.out_features))
        self.s = nn.Parameter(torch.zeros(past.rank), requires_grad=past.rank > 0)
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))  # as in LoRA
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
        """Return the new component's factors a (r, in) and b (r, out), float32, orthogonal to the past."""
        return outside(self.a, self.basis_a), outside(self.b, self.basis_b)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (n, tokens, in) -> (n, tokens, out), in the layer's dtype under autocast, else in that of x."""
        device, rows = x.device.type, x.reshape(-1, x.shape[-1])
        wanted = self.weight.dtype if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            y = _Product.apply(  # type: ignore[no-untyped-call]
                rows, self.weight, self.bias, *self.component(), self.s, self.old_a, self.old_b, wanted
            )
        return cast(Tensor, y).view(*x.shape[:-1], -1)


@dataclass(frozen=True)
class Trainable:
    """The adapted layers of a ViT's tail, by name, and the past that they may reuse; that is empty where none may."""

    layers: Mapping[str, AdaptedLinear]
    past: Module

    def scales(self) -> list[Tensor]:
        """Return the scales s of each layer, (past rank,)."""
        return [layer.s for layer in self.layers.values()] if self.past else []

    def parameters(self) -> list[nn.Parameter]:
        """Return what is learned: the factors of the new component, and the scales."""
        found = [parameter for layer in self.layers.values() for parameter in layer.parameters()]
        return [parameter for parameter in found if parameter.requires_grad]

    def component(self) -> dict[str, LowRank]:
        """Return the new component (B_k, A_k) of each layer."""
        factors = {name: layer.component() for name, layer in self.layers.items()}
        return {name: LowRank(_array(b.T), _array(a)) for name, (a, b) in factors.items()}

    def reuse(self, threshold: float) -> dict[str, Float32]:
        """Return s of each layer, with entries below `threshold` as exact zeros; empty without a past."""
        found = {name: _array(layer.s) for name, layer in self.layers.items()} if self.past else {}
        return {name: np.where(np.abs(s) < threshold, 0, s).astype(np.float32) for name, s in found.items()}


def attach(vit: Vit, past: Module, finetune: Finetune, seed: int) -> Trainable:
    """Put adapted layers into the tail of a ViT, in place of its linear layers.

    At the start the tail computes what the frozen one does, up to the rounding of `finetune.precision`.

    Args:
        vit: the backbone; its model is changed.
        past: the components of earlier tasks for each layer; empty without a past.
        finetune: `rank` of the component; `reuse` and `orthogonal`: whether the past is reused, and avoided.
        seed: of the first values of A_k.
    """
    torch.manual_seed(seed)
    dtype = training_dtype(finetune.precision, vit.device)
    layers: dict[str, AdaptedLinear] = {}
    for number in range(vit.trunk_depth, len(vit.blocks)):
        for kind in LINEAR_LAYERS:
            name = f"blocks.{number}.{kind}"
            base = cast(nn.Linear, vit.model.get_submodule(name))
            none = LowRank(np.zeros((base.out_features, 0), np.float32), np.zeros((0, base.in_features), np.float32))
            own_past = past.get(name, none)
            reused, avoided = own_past if finetune.reuse else none, own_past if finetune.orthogonal else none
            layers[name] = AdaptedLinear(base, reused, finetune.rank, dtype, avoided)
            vit.model.set_submodule(name, layers[name])
    return Trainable(layers, past if finetune.reuse else {})


def training_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of products with frozen weights; `auto` is bfloat16 where the hardware multiplies it."""
    if precision != "auto":
        return cast(torch.dtype, getattr(torch, precision))
    return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32


def _array(tensor: Tensor) -> Float32:
    """Return a contiguous copy of a tensor in the CPU's memory."""
    return cast(Float32, np.ascontiguousarray(tensor.detach().float().cpu().numpy()).copy())
