"""A task's low-rank module: selective reuse of the past, plus a new component that is orthogonal to it.

For every adapted linear layer of task k, with the components B_t A_t of the tasks t < k frozen:

    dW_k  =  sum over t < k of  B_t diag(s_t) A_t   +   B_k A_k
             '---- reuse of the past ----------'        '- new -'

    old:  A_1 .. A_k-1 stacked     B_1 .. B_k-1 side by side     s learned from 0 under l1 and l2
    new:  span(A_k^T) _|_ span(A_t^T)   and   span(B_k) _|_ span(B_t)    for all t < k

Structure by Le, Bui, Hoang and Hoang, "Continual Fine-Tuning with Provably Accurate and Parameter-Free Task
Retrieval" (arXiv 2603.13235); low-rank updates by Hu et al., LoRA (2021). How a module is trained:
components/modules/adapted_linear.py. What is stored for use is dW_k as one ordinary PEFT adapter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.arrays import Float32
from components.config import BASE
from components.errors import IntaglioError
from components.io import atomic_folder, read_arrays, read_json, sha256_file, write_arrays, write_json
from components.vision.backbone import Vit

LINEAR_LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")  # of a block: what a module adapts
_PREFIX = "base_model.model."  # of a layer's name in PEFT's files


@dataclass(frozen=True)
class LowRank:
    """The update `b @ a` of one linear layer's weights: b (out, r), a (r, in), float32."""

    b: Float32
    a: Float32

    @property
    def rank(self) -> int:
        """Number of directions r."""
        return int(self.a.shape[0])


Module = Mapping[str, LowRank]  # layer name -> its update


@dataclass(frozen=True)
class Head:
    """The linear head that was trained with a module: weight (C, 2 width) on the pooled tail, bias (C,), float32."""

    weight: Float32
    bias: Float32


def stack(parts: Sequence[LowRank]) -> LowRank:
    """Return the sum of updates of one layer as one update, whose rank is the sum of theirs."""
    return LowRank(np.concatenate([part.b for part in parts], axis=1), np.concatenate([part.a for part in parts]))


def truncate(update: LowRank, rank: int) -> tuple[LowRank, float]:
    """Return the best approximation of an update with at most `rank` directions, and its relative Frobenius error.

    The SVD of b @ a (Eckart and Young, 1936) through two thin QR factorisations costs O((out + in) r^2) and never
    forms the matrix (out, in).
    """
    if update.rank <= rank:
        return update, 0.0
    q_b, r_b = np.linalg.qr(update.b.astype(np.float64))
    q_a, r_a = np.linalg.qr(update.a.astype(np.float64).T)
    u, sigma, vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    root = np.sqrt(sigma[:rank])
    total = float(np.linalg.norm(sigma))
    error = float(np.linalg.norm(sigma[rank:])) / total if total > 0 else 0.0
    b, a = (q_b @ u[:, :rank]) * root, root[:, None] * (vt[:rank] @ q_a.T)
    return LowRank(b.astype(np.float32), a.astype(np.float32)), error


def read_past(folder: Path, previous: str, budget: int) -> dict[str, LowRank]:
    """Read the components of all tasks up to `previous`, stacked for each layer and truncated to a budget.

    Each module names the one before it and the sha256 of its description, so the chain is verified on the way.

    Args:
        folder: of the chain of modules.
        previous: name of the last task of the past; BASE where there is none.
        budget: directions of a layer that are kept at most, those of most energy.

    Returns:
        Layer name -> update; empty without a past.

    Raises:
        IntaglioError: a module is missing, or differs from the one its successor was trained on.
    """
    chain: list[Module] = []
    task, expected = previous, None
    while task != BASE:
        path = folder / task / "module.json"
        facts = read_json(path)
        if expected not in (None, sha256_file(path)):
            raise IntaglioError(f"{path}: changed since a later task was trained on it; run the pipeline again")
        chain.append(read_component(folder / task))
        task, expected = facts["previous"], facts["previous_sha256"]
    chain.reverse()
    return {layer: truncate(stack([module[layer] for module in chain]), budget)[0] for layer in (chain or [{}])[0]}


def read_component(folder: Path) -> dict[str, LowRank]:
    """Read a task's own component (B_k, A_k) for each layer.

    Raises:
        IntaglioError: the file is missing or damaged.
    """
    path, facts = folder / "component.safetensors", read_json(folder / "module.json")
    if sha256_file(path) != facts["component_sha256"]:
        raise IntaglioError(f"{path}: damaged (sha256 differs from module.json); run the stage 'finetune' again")
    arrays = read_arrays(path)
    layers = sorted({name.rpartition(".")[0] for name in arrays})
    return {layer: LowRank(arrays[f"{layer}.B"], arrays[f"{layer}.A"]) for layer in layers}


def read_head(folder: Path) -> Head:
    """Read the head of a module's folder.

    Raises:
        IntaglioError: the file is missing or damaged.
    """
    path, facts = folder / "head.safetensors", read_json(folder / "module.json")
    if not path.exists() or sha256_file(path) != facts.get("head_sha256"):
        raise IntaglioError(f"{path}: missing or damaged (sha256); run the stage 'finetune' again")
    return Head(**read_arrays(path))


def read_adapter(folder: Path) -> dict[str, LowRank]:
    """Read a module's PEFT adapter, which is dW_k of each layer, in float32. The caller checks its sha256."""
    arrays = read_arrays(folder / "adapter" / "adapter_model.safetensors")
    layers = sorted({key.removeprefix(_PREFIX).rpartition(".lora_")[0] for key in arrays})

    def factor(layer: str, name: str) -> Float32:
        return arrays[f"{_PREFIX}{layer}.lora_{name}.weight"].astype(np.float32)

    return {layer: LowRank(factor(layer, "B"), factor(layer, "A")) for layer in layers}


def write_module(
    folder: Path,
    task: str,
    previous: str,
    component: Module,
    reuse: Mapping[str, Float32],
    past: Module,
    head: Head,
    vit: Vit,
    max_rank: int,
) -> dict[str, float]:
    """Write a trained module: its component, its reuse of the past, the sum of both as a plain PEFT adapter, its head.

    Args:
        folder: of the chain of modules; `folder`/<task> is written as a whole.
        task: name of the module.
        previous: name of the module before it, whose description it records the sha256 of.
        component: the new component of each layer.
        reuse: the scales s of each layer, (past rank,) float32; empty without a past.
        past: as `read_past` returned it.
        head: that was trained with the module.
        vit: the backbone that the module belongs to.
        max_rank: directions of a layer that the adapter has at most.

    Returns:
        adapter_rank, truncation_error (largest relative error over the layers), reused_directions.
    """
    merged = {
        layer: truncate(_effective(component[layer], past.get(layer), reuse.get(layer)), max_rank)
        for layer in component
    }
    rank = max(update.rank for update, _ in merged.values())
    facts: dict[str, float] = {
        "adapter_rank": rank,
        "truncation_error": max(error for _, error in merged.values()),
        "reused_directions": sum(int(np.count_nonzero(s)) for s in reuse.values()),
    }
    with atomic_folder(folder / task) as temporary:
        arrays = {f"{layer}.B": update.b for layer, update in component.items()}
        arrays |= {f"{layer}.A": update.a for layer, update in component.items()}
        write_arrays(temporary / "component.safetensors", arrays)
        if reuse:
            write_arrays(temporary / "reuse.safetensors", reuse)
        _write_adapter(temporary / "adapter", {layer: update for layer, (update, _) in merged.items()}, vit, rank)
        write_arrays(temporary / "head.safetensors", {"weight": head.weight, "bias": head.bias})
        link = {
            "task": task,
            "previous": previous,
            "previous_sha256": sha256_file(folder / previous / "module.json"),
            "backbone_sha256": vit.sha256,
            "component_sha256": sha256_file(temporary / "component.safetensors"),
            "adapter_sha256": sha256_file(temporary / "adapter/adapter_model.safetensors"),
            "head_sha256": sha256_file(temporary / "head.safetensors"),
        }
        write_json(temporary / "module.json", link | facts)
    return facts


def cut_module(folder: Path, task: str, name: str, vit: Vit, max_rank: int) -> None:
    """Write the adapter of a module once more, truncated, as another module.

    Args:
        folder: of both modules.
        task: name of the module to truncate.
        name: of the new one.
        vit: the backbone that they belong to.
        max_rank: directions of a layer that the new adapter has at most.
    """
    facts, whole = read_json(folder / task / "module.json"), read_adapter(folder / task)
    updates = {layer: truncate(update, max_rank)[0] for layer, update in whole.items()}
    rank = max(update.rank for update in updates.values())
    with atomic_folder(folder / name) as temporary:
        _write_adapter(temporary / "adapter", updates, vit, rank)
        digest = sha256_file(temporary / "adapter/adapter_model.safetensors")
        write_json(temporary / "module.json", facts | {"adapter_sha256": digest, "adapter_rank": rank})


def _effective(component: LowRank, past: LowRank | None, s: Float32 | None) -> LowRank:
    """Return dW_k of one layer: the reused directions of the past, each times its scale, stacked with the component."""
    if past is None or s is None or not s.any():
        return component
    used = s != 0
    return stack([LowRank(past.b[:, used] * s[used], past.a[used]), component])


def _write_adapter(folder: Path, updates: Module, vit: Vit, rank: int) -> None:
    """Write a PEFT adapter of one rank for all layers: zeros fill up, and any PEFT version can load it."""
    arrays: dict[str, NDArray[Any]] = {}
    for layer, update in updates.items():
        missing = rank - update.rank
        prefix = f"{_PREFIX}{layer}"
        # float16 halves the size and rounds a factor by a relative 2^-11 at most.
        arrays[f"{prefix}.lora_A.weight"] = np.pad(update.a, ((0, missing), (0, 0))).astype(np.float16)
        arrays[f"{prefix}.lora_B.weight"] = np.pad(update.b, ((0, 0), (0, missing))).astype(np.float16)
    write_json(folder / "adapter_config.json", _adapter_config(vit, rank))
    write_arrays(folder / "adapter_model.safetensors", arrays)


def _adapter_config(vit: Vit, rank: int) -> dict[str, Any]:
    """Return PEFT's description of a LoRA, without the fields that have PEFT's default."""
    blocks = "|".join(str(number) for number in range(vit.trunk_depth, len(vit.model.blocks)))
    layers = "|".join(re.escape(layer) for layer in LINEAR_LAYERS)
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,  # PEFT's scaling is then 1: the stored factors are the update itself
        "target_modules": rf"blocks\.({blocks})\.({layers})",
        "inference_mode": True,
    }
