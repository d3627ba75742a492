"""One frozen backbone with the modules of many tasks: any (image, module) pairs in one pass over the tail.

    trunk, once per image --> tail: W x of all pairs at once
                                    + b_1 (a_1 x) on the rows of module 1
                                    + b_2 (a_2 x) on the rows of module 2 ...

As in serving of many LoRAs (Punica, Chen et al., 2023). A module with many images in a batch is merged into the weights
instead, W + b a. The module under which h_0 is seen too, if any (`embedding.shared`), is merged once. Both equal plain
PEFT. Only the modules in use are on the device, in slots of at most `cache_bytes`; all others stay in their files.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
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
    """Which slots adapt the rows of the running batch: consecutive groups of rows, one slot each.

    Attributes:
        slots: of each group; empty: all rows have the frozen weights, or the shared ones.
        lengths: rows of each group.
        shared: whether rows without a slot have the weights of the shared module.
    """

    slots: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    shared: bool = False


class _Adapted(nn.Module):
    """A frozen linear layer with the low-rank terms of several modules, of which `running` chooses.

    a (slots, in, r) and b (slots, r, out) hold the modules' factors. `shared` (out, in) are the weights under the
    shared module; the frozen ones where there is none.
    """

    a: Tensor
    b: Tensor
    shared: Tensor

    def __init__(self, base: nn.Linear, slots: int, rank: int, running: _Segments) -> None:
        super().__init__()
        self.base, self.running = base, running
        weight = base.weight  # the buffers have its dtype and device
        self.register_buffer("a", weight.new_zeros(slots, base.in_features, rank), persistent=False)
        self.register_buffer("b", weight.new_zeros(slots, rank, base.out_features), persistent=False)
        self.register_buffer("shared", weight.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (n, tokens, in) -> (n, tokens, out)."""
        slots, lengths = self.running.slots, self.running.lengths
        if not slots:
            weight = self.shared if self.running.shared else self.base.weight
            return functional.linear(x, weight, self.base.bias)
        if len(slots) == 1 and lengths[0] >= MERGE_FROM:
            weight = torch.addmm(self.base.weight, self.b[slots[0]].T, self.a[slots[0]].T)
            return functional.linear(x, weight, self.base.bias)
        y: Tensor = self.base(x)
        if x.device.type == "cpu":
            # In place, one module after the other: that copies no module for each of its images, and a CPU has no
            # kernel launches to save.
            for slot, part, out in zip(slots, x.split(lengths), y.split(lengths), strict=True):
                down = part.reshape(-1, part.shape[-1]).to(self.a.dtype) @ self.a[slot]
                out.view(-1, out.shape[-1]).addmm_(down.to(out.dtype), self.b[slot].to(out.dtype))
            return y
        each = torch.tensor(slots, device=x.device).repeat_interleave(torch.tensor(lengths, device=x.device))
        return y + torch.bmm(torch.bmm(x, self.a[each].to(x.dtype)), self.b[each].to(x.dtype))


@dataclass
class MultiModuleViT:
    """The frozen backbone with the stored modules of several tasks. It serves one thread at a time.

    Attributes:
        vit: the backbone, whose tail has this object's layers.
        folder: of the modules.
        tasks: their names; a task's number is its index here.
        slots: how many modules fit the device's memory at once.
        shared: name of the module under which h_0 is seen too; BASE: none.
        frozen: numbers of the tasks that have no module: they see images as the frozen backbone does.
    """

    vit: Vit
    folder: Path
    tasks: tuple[str, ...]
    slots: int
    shared: str
    frozen: frozenset[int]
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
        frozen: Collection[str] = (),
    ) -> MultiModuleViT:
        """Verify the modules, and put layers with slots for them into `vit.model`, which computes what it did before.

        Args:
            vit: the backbone.
            folder: of the modules.
            tasks: names of the modules to serve.
            cache_bytes: of the slots' memory, at most; there is at least one slot.
            shared: name of the module under which h_0 is seen too, beside the frozen tail; BASE: none.
            sha256_of: hashes an adapter's file, which must be the one that was stored.
            frozen: those of the tasks that have no module.

        Raises:
            IntaglioError: an adapter is missing, damaged, or belongs to another backbone.
        """
        rank = max([_check(folder / task, vit, sha256_of) for task in tasks if task not in frozen], default=0)
        linears = {name: layer for name, layer in vit.model.named_modules() if _is_adapted(name, layer, vit)}
        width = sum(layer.in_features + layer.out_features for layer in linears.values())
        slots = min(len(tasks), max(1, cache_bytes // max(1, 4 * rank * width)))
        running = _Segments()
        layers = {name: _Adapted(layer, slots, rank, running) for name, layer in linears.items()}
        for name, layer in layers.items():
            vit.model.set_submodule(name, layer)
        without = frozenset(number for number, task in enumerate(tasks) if task in frozen)
        engine = cls(vit, folder, tuple(tasks), slots, shared, without, layers, running)
        if shared != BASE:
            _check(folder / shared, vit, sha256_of)
            engine._merge_shared()
        return engine

    def width(self, task: str | None) -> int:
        """Return the width d of h_k, or of h_0 where `task` is None."""
        return self.vit.embedding_width + (2 * self.vit.width if task is None and self.shared != BASE else 0)

    def tail(self, tokens: Tensor) -> Tensor:
        """Compute the part of h_0 beside the trunk's: tokens (n, tokens, width) -> (n, d - trunk_width)."""
        frozen = self.vit.tail(tokens)
        if self.shared == BASE:
            return frozen
        self._running.shared = True
        try:
            return torch.cat([frozen, self.vit.tail(tokens)], dim=1)
        finally:
            self._running.shared = False

    def embed(self, task: str | None, tokens: Tensor, trunk: Tensor) -> Tensor:
        """Compute h_k, or h_0 where `task` is None.

        Args:
            task: name of the module.
            tokens: after the trunk, (n, tokens, width).
            trunk: the trunk's part of the embedding, (n, trunk_width).

        Returns:
            (n, d).
        """
        if task is None:
            return torch.cat([trunk, self.tail(tokens)], dim=1)
        return self.embed_each(np.full(len(tokens), self.tasks.index(task)), tokens, trunk)

    def embed_each(self, tasks: Indices, tokens: Tensor, trunk: Tensor) -> Tensor:
        """Embed each image under a module of its own.

        Args:
            tasks: numbers of the modules, (n,) int64.
            tokens: after the trunk, (n, tokens, width).
            trunk: the trunk's part of the embedding, (n, trunk_width).

        Returns:
            (n, d) float32.
        """
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
        """Yield passes over the tail: modules, and their rows (m,) in the modules' order.

        A module with MERGE_FROM rows or more has a pass of its own; others share passes, as many as there are slots.
        The rows of all tasks without a module share one pass.
        """
        if self.frozen and len(without := np.flatnonzero(np.isin(tasks, [*self.frozen]))):
            yield (), without
        numbers, counts = np.unique(tasks[~np.isin(tasks, [*self.frozen])], return_counts=True)
        rows = {int(number): np.flatnonzero(tasks == number) for number in numbers}
        for number in numbers[counts >= MERGE_FROM]:
            yield (int(number),), rows[int(number)]
        few = iter(int(number) for number in numbers[counts < MERGE_FROM])
        while group := tuple(islice(few, self.slots)):
            yield group, np.concatenate([rows[number] for number in group])

    def _slot(self, number: int, keep: tuple[int, ...]) -> int:
        """Return the slot that holds a module, after loading it if need be; modules in `keep` stay in theirs."""
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
        """Load a module into a slot; zeros fill up to the rank of the slots."""
        for layer, a, b in self._factors(self.tasks[number]):
            layer.a[slot].zero_()[:, : len(a)].copy_(a.T)
            layer.b[slot].zero_()[: len(a)].copy_(b.T)

    @torch.no_grad()
    def _merge_shared(self) -> None:
        """Compute the weights under the shared module, in float32."""
        for layer, a, b in self._factors(self.shared):
            weight = layer.base.weight
            layer.shared = (weight.float() + (b @ a).to(weight.device)).to(weight.dtype)

    def _factors(self, task: str) -> Iterator[tuple[_Adapted, Tensor, Tensor]]:
        """Yield every layer with the factors a (r, in) and b (out, r) of a stored module."""
        updates = read_adapter(self.folder / task)
        for name, layer in self._layers.items():
            yield layer, torch.from_numpy(updates[name].a), torch.from_numpy(updates[name].b)


def embed_images(
    engine: MultiModuleViT, tokens: Tokens, trunk: Embeddings, tasks: Sequence[str | None], what: str
) -> dict[str | None, Embeddings]:
    """Embed images under several modules, from the trunk's outputs, batch by batch.

    Args:
        engine: backbone and modules.
        tokens: after the trunk, (n, tokens, width) float16, mapped from disk.
        trunk: the trunk's part of the embeddings, (n, trunk_width) float32.
        tasks: names of the modules; None: h_0.
        what: name of the work, for its progress.

    Returns:
        For each of `tasks`, h_k or h_0: (n, d) float32.
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
    """Embed one batch as `embed_images` does.

    Args:
        engine: backbone and modules.
        tokens: after the trunk, (n, tokens, width) float16.
        trunk: the trunk's part of the embeddings, (n, trunk_width) float32.
        tasks: names of the modules; None: h_0.
    """
    device = engine.vit.device
    with torch.inference_mode(), autocast(engine.vit):
        after, pooled = torch.from_numpy(tokens).to(device).float(), torch.from_numpy(trunk).to(device)
        return {task: engine.embed(task, after, pooled).float().cpu().numpy() for task in tasks}


def embed_pixels(engine: MultiModuleViT, pixels: Pixels, tasks: Sequence[str | None]) -> dict[str | None, Embeddings]:
    """Embed one batch of pixels under several modules, in the precision that is served: no float16 in between.

    Args:
        engine: backbone and modules.
        pixels: (n, size, size, 3) uint8, RGB.
        tasks: names of the modules; None: h_0.

    Returns:
        For each of `tasks`, h_k or h_0: (n, d) float32.
    """
    with torch.inference_mode(), autocast(engine.vit):
        tokens, trunk = engine.vit.trunk(pixels)
        return {task: engine.embed(task, tokens, trunk).float().cpu().numpy() for task in tasks}


def _is_adapted(name: str, layer: nn.Module, vit: Vit) -> bool:
    """Return whether a layer of the backbone is one that modules adapt: a linear one of the tail."""
    kind, _, rest = name.partition(".")
    return kind == "blocks" and rest.endswith(LINEAR_LAYERS) and int(rest.partition(".")[0]) >= vit.trunk_depth


def _check(folder: Path, vit: Vit, sha256_of: Callable[[Path], str]) -> int:
    """Verify that a stored module is whole and belongs to this backbone, and return its rank."""
    facts, weights = read_json(folder / "module.json"), folder / "adapter" / "adapter_model.safetensors"
    if facts["backbone_sha256"] != vit.sha256:
        raise IntaglioError(f"{folder}: was trained on another backbone; run the pipeline again")
    if not weights.exists() or sha256_of(weights) != facts["adapter_sha256"]:
        raise IntaglioError(f"{weights}: missing or damaged (sha256); run the stage 'finetune' again")
    return int(facts["adapter_rank"])
