"""One frozen backbone with the modules of many tasks: any (image, module) pairs in one pass over the tail.

The tail's base weights are applied to all pairs at once; each module adds its low-rank term b (a x) where its images
stand. A module with many images in a batch is merged into the weights instead: W + b a. Both equal plain PEFT. The
module that h_0 is seen under too, if any (`embedding.shared`), is merged once.
Only the modules in use lie on the device, at most `cache_bytes` of them; all others stay in their files.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from components.arrays import Embeddings, Indices, Pixels
from components.config import BASE
from components.errors import IntaglioError
from components.io import read_json, sha256_file
from components.modules.low_rank import LINEAR_LAYERS, read_adapter
from components.vision.backbone import Vit, autocast
from components.vision.pixel_batches import BATCH, ProgressLine
from components.vision.trunk_cache import HalfTokens, Tokens

CACHE_BYTES = 256 * 2**20  # of modules on the device
MERGE_FROM = 8  # images of one module in a batch, from which merging costs less than its low-rank terms


@dataclass
class _Segments:
    """Which slot adapts which rows of the running batch, rows in order; no slot: the base, or what is `shared`."""

    slots: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    shared: bool = False


class _Adapted(nn.Module):
    """A frozen linear layer with the low-rank terms of `slots` modules: a (slots, in, r), b (slots, r, out).

    `shared` (out, in) are its weights under the module that h_0 is seen under too; the frozen ones where there is none.
    """

    a: Tensor
    b: Tensor
    shared: Tensor

    def __init__(self, base: nn.Linear, slots: int, rank: int, running: _Segments) -> None:
        super().__init__()
        self.base, self.running = base, running
        weight = base.weight  # its dtype and device are theirs too
        self.register_buffer("a", weight.new_zeros(slots, base.in_features, rank), persistent=False)
        self.register_buffer("b", weight.new_zeros(slots, rank, base.out_features), persistent=False)
        self.register_buffer("shared", weight.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, in) -> (n, tokens, out)."""
        slots, lengths = self.running.slots, self.running.lengths
        if not slots:
            weight = self.shared if self.running.shared else self.base.weight
            return functional.linear(x, weight, self.base.bias)
        if len(slots) == 1 and lengths[0] >= MERGE_FROM:
            weight = torch.addmm(self.base.weight, self.b[slots[0]].T, self.a[slots[0]].T)
            return functional.linear(x, weight, self.base.bias)
        y: Tensor = self.base(x)
        if x.device.type == "cpu":
            # One small product after the other in place: no copy of a module per image, and no kernel launches to save.
            for slot, part, out in zip(slots, x.split(lengths), y.split(lengths), strict=True):
                down = part.reshape(-1, part.shape[-1]).to(self.a.dtype) @ self.a[slot]
                out.view(-1, out.shape[-1]).addmm_(down.to(out.dtype), self.b[slot].to(out.dtype))
            return y
        each = torch.tensor(slots, device=x.device).repeat_interleave(torch.tensor(lengths, device=x.device))
        return y + torch.bmm(torch.bmm(x, self.a[each].to(x.dtype)), self.b[each].to(x.dtype))


@dataclass
class MultiModuleViT:
    """The frozen backbone with the stored modules of several tasks. One thread at a time."""

    vit: Vit
    folder: Path
    tasks: tuple[str, ...]
    slots: int
    shared: str
    _layers: dict[str, _Adapted]
    _running: _Segments
    _slot_of: OrderedDict[int, int] = field(default_factory=OrderedDict)  # least recently used first

    @classmethod
    def load(
        cls,
        vit: Vit,
        folder: Path,
        tasks: Sequence[str],
        cache_bytes: int = CACHE_BYTES,
        shared: str = BASE,
        sha256_of: Callable[[Path], str] = sha256_file,
    ) -> MultiModuleViT:
        """Check the modules `folder`/<task>/adapter and make room for as many as `cache_bytes` holds, at least one.

        Puts its layers into `vit.model`, which computes the same as before. h_0 is the base's, and beside it, if
        `shared` is not BASE, the tail's output under that task's module.

        Args:
            vit: the backbone that the modules were trained on.
            folder: the modules' folder.
            tasks: those whose modules can be asked for, in order.
            cache_bytes: of modules that may lie on the device at a time.
            shared: the task whose module h_0 is seen under too, or BASE.
            sha256_of: hashes an adapter's file, which must be the one that was stored.

        Raises:
            IntaglioError: an adapter is missing, damaged, or belongs to another backbone.
        """
        rank = max([_check(folder / task, vit, sha256_of) for task in tasks], default=0)
        linears = {name: layer for name, layer in vit.model.named_modules() if _is_adapted(name, layer, vit)}
        width = sum(layer.in_features + layer.out_features for layer in linears.values())
        slots = min(len(tasks), max(1, cache_bytes // max(1, 4 * rank * width)))
        running = _Segments()
        layers = {name: _Adapted(layer, slots, rank, running) for name, layer in linears.items()}
        for name, layer in layers.items():
            vit.model.set_submodule(name, layer)
        engine = cls(vit, folder, tuple(tasks), slots, shared, layers, running)
        if shared != BASE:
            _check(folder / shared, vit, sha256_of)
            engine._merge_shared()
        return engine

    def width(self, task: str | None) -> int:
        """Width d of h_k, or of h_0 where `task` is None."""
        return self.vit.embedding_width + (2 * self.vit.width if task is None and self.shared != BASE else 0)

    def tail(self, tokens: Tensor) -> Tensor:
        """What h_0 adds to the trunk's part: tokens (n, tokens, width) -> (n, d - trunk_width)."""
        base = self.vit.tail(tokens)
        if self.shared == BASE:
            return base
        self._running.shared = True
        try:
            return torch.cat([base, self.vit.tail(tokens)], dim=1)
        finally:
            self._running.shared = False

    def embed(self, task: str | None, tokens: Tensor, trunk: Tensor) -> Tensor:
        """h_k, or h_0 where `task` is None: tokens (n, tokens, width), trunk (n, trunk_width) -> (n, d)."""
        if task is None:
            return torch.cat([trunk, self.tail(tokens)], dim=1)
        return self.embed_each(np.full(len(tokens), self.tasks.index(task)), tokens, trunk)

    def embed_each(self, tasks: Indices, tokens: Tensor, trunk: Tensor) -> Tensor:
        """Every image under a module of its own, `tasks` (n,) into self.tasks: (n, ...) -> (n, d)."""
        out = tokens.new_empty((len(tokens), self.vit.embedding_width), dtype=torch.float32)
        out[:, : self.vit.trunk_width] = trunk
        for numbers, rows in self._passes(tasks):
            where = torch.from_numpy(rows).to(tokens.device)
            self._running.slots = tuple(self._slot(number, keep=numbers) for number in numbers)
            self._running.lengths = tuple(int((tasks[rows] == number).sum()) for number in numbers)
            try:
                out[where, self.vit.trunk_width :] = self.vit.tail(tokens[where])
            finally:
                self._running.slots = self._running.lengths = ()
        return out

    def _passes(self, tasks: Indices) -> Iterator[tuple[tuple[int, ...], Indices]]:
        """Passes over the tail: (modules, their rows ordered by module), each module with many rows by itself."""
        numbers, counts = np.unique(tasks, return_counts=True)
        rows = {int(number): np.flatnonzero(tasks == number) for number in numbers}
        for number in numbers[counts >= MERGE_FROM]:
            yield (int(number),), rows[int(number)]
        few = iter(int(number) for number in numbers[counts < MERGE_FROM])
        while together := tuple(islice(few, self.slots)):
            yield together, np.concatenate([rows[number] for number in together])

    def _slot(self, number: int, keep: tuple[int, ...]) -> int:
        """The slot that holds a module, loaded where it is not there yet; `keep` are not overwritten."""
        if number not in self._slot_of:
            slot = len(self._slot_of)
            if slot == self.slots:
                slot = self._slot_of.pop(next(old for old in self._slot_of if old not in keep))
            self._read(number, slot)
            self._slot_of[number] = slot
        self._slot_of.move_to_end(number)
        return self._slot_of[number]

    @torch.no_grad()
    def _read(self, number: int, slot: int) -> None:
        for layer, a, b in self._factors(self.tasks[number]):
            layer.a[slot].zero_()[:, : len(a)].copy_(a.T)
            layer.b[slot].zero_()[: len(a)].copy_(b.T)

    @torch.no_grad()
    def _merge_shared(self) -> None:
        for layer, a, b in self._factors(self.shared):
            weight = layer.base.weight
            layer.shared = (weight.float() + (b @ a).to(weight.device)).to(weight.dtype)

    def _factors(self, task: str) -> Iterator[tuple[_Adapted, Tensor, Tensor]]:
        """Every layer with the factors a (r, in) and b (out, r) of a stored module."""
        updates = read_adapter(self.folder / task)
        for name, layer in self._layers.items():
            yield layer, torch.from_numpy(updates[name].a), torch.from_numpy(updates[name].b)


def embed_images(
    engine: MultiModuleViT, tokens: Tokens, trunk: Embeddings, tasks: Sequence[str | None], what: str
) -> dict[str | None, Embeddings]:
    """h_k of every image for every task in `tasks` (None: h_0), from the trunk's outputs.

    Returns:
        (n, d) float32 for each of `tasks`.
    """
    progress, count = ProgressLine(what, len(tokens)), len(tokens)
    out = {task: np.empty((count, engine.width(task)), dtype=np.float32) for task in tasks}
    for start in range(0, count, BATCH):
        rows = slice(start, min(start + BATCH, count))
        for task, h in embed_tokens(engine, tokens[rows], trunk[rows], tasks).items():
            out[task][rows] = h
        progress.at(rows.stop)
    return out


def embed_tokens(
    engine: MultiModuleViT, tokens: HalfTokens, trunk: Embeddings, tasks: Sequence[str | None]
) -> dict[str | None, Embeddings]:
    """As `embed_images`, of one batch."""
    device = engine.vit.device
    with torch.inference_mode(), autocast(engine.vit):
        after, pooled = torch.from_numpy(tokens).to(device).float(), torch.from_numpy(trunk).to(device)
        return {task: engine.embed(task, after, pooled).float().cpu().numpy() for task in tasks}


def embed_pixels(engine: MultiModuleViT, pixels: Pixels, tasks: Sequence[str | None]) -> dict[str | None, Embeddings]:
    """h_k of one batch of pixels (n, size, size, 3) for every task in `tasks`, in the precision that is served."""
    with torch.inference_mode(), autocast(engine.vit):
        tokens, trunk = engine.vit.trunk(pixels)
        return {task: engine.embed(task, tokens, trunk).float().cpu().numpy() for task in tasks}


def _is_adapted(name: str, layer: nn.Module, vit: Vit) -> bool:
    kind, _, rest = name.partition(".")
    return kind == "blocks" and rest.endswith(LINEAR_LAYERS) and int(rest.partition(".")[0]) >= vit.trunk_depth


def _check(folder: Path, vit: Vit, sha256_of: Callable[[Path], str]) -> int:
    """The rank of a stored module that is whole and belongs to this backbone."""
    facts, weights = read_json(folder / "module.json"), folder / "adapter" / "adapter_model.safetensors"
    if facts["backbone_sha256"] != vit.sha256:
        raise IntaglioError(f"{folder}: was trained on another backbone; run the pipeline again")
    if not weights.exists() or sha256_of(weights) != facts["adapter_sha256"]:
        raise IntaglioError(f"{weights}: missing or damaged (sha256); run the stage 'finetune' again")
    return int(facts["adapter_rank"])
