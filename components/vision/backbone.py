"""The frozen ViT: a trunk that runs once per image, and the tail of last blocks that modules adapt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from components.arrays import Arrays
from components.config import Backbone
from components.errors import IntaglioError, TransientError
from components.io import read_arrays, read_json, sha256_file
from components.vision.timm_import import VisionTransformer, checkpoint_filter_fn, create_model


def choose_device(wanted: str) -> torch.device:
    """Return the device of this name; `auto` is cuda, then mps, then cpu.

    Raises:
        IntaglioError: the wanted device does not exist here.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available.get(wanted, False):
        raise IntaglioError(f"device: {wanted!r} is not available on this machine; use 'auto' or 'cpu'")
    return torch.device(wanted)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Check that the hardware multiplies in bfloat16; a CPU that does not is several times slower than in float32."""
    if device.type != "cpu":
        return device.type == "cuda"
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@dataclass(frozen=True)
class Vit:
    """A frozen ViT: the trunk, which runs once per image, and the tail of last blocks that modules adapt.

    Attributes:
        model: timm's, cut to its first blocks.
        trunk_depth: number of blocks of the trunk.
        depths: blocks whose pooled outputs make an embedding, ascending, counted from 1.
        image_size: side of an input image, pixels.
        mean: per channel, of pixels in [0, 1], (3,).
        std: likewise.
        device: where the weights lie.
        sha256: of the weights' file, hex; "" while they are being converted.
        half: whether matrix products run in bfloat16 (`autocast`).
    """

    model: VisionTransformer
    trunk_depth: int
    depths: tuple[int, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    sha256: str
    half: bool

    @property
    def blocks(self) -> list[nn.Module]:
        """Transformer blocks, trunk first."""
        return list(self.model.blocks)

    @property
    def width(self) -> int:
        """Width of a token."""
        return int(self.model.embed_dim)

    @property
    def trunk_width(self) -> int:
        """Width of the part of an embedding that no module changes."""
        return 2 * self.width * sum(depth <= self.trunk_depth for depth in self.depths)

    @property
    def embedding_width(self) -> int:
        """Width d of h_0 and of every h_k."""
        return 2 * self.width * len(self.depths)

    def trunk(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Run what no module changes.

        Args:
            pixels: (n, image_size, image_size, 3), RGB.

        Returns:
            tokens (n, tokens, width) after the trunk, and the pooled trunk depths (n, trunk_width).
        """
        image = upload(torch.from_numpy(pixels), self.device).permute(0, 3, 1, 2).float().div_(255)
        mean = torch.tensor(self.mean, device=self.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=self.device).view(1, 3, 1, 1)
        tokens = self.model.patch_embed((image - mean) / std)
        tokens = self.model.norm_pre(self.model.patch_drop(self.model._pos_embed(tokens)))
        pooled = []
        for number, block in enumerate(self.blocks[: self.trunk_depth], start=1):
            tokens = block(tokens)
            if number in self.depths:
                pooled.append(self.pool(tokens))
        return tokens, torch.cat(pooled, dim=1) if pooled else tokens.new_zeros(len(tokens), 0)

    def tail(self, tokens: Tensor) -> Tensor:
        """Run the last blocks.

        Args:
            tokens: (n, tokens, width), after the trunk.

        Returns:
            Pooled output of the last block, (n, 2 width) float32.
        """
        for block in self.blocks[self.trunk_depth :]:
            tokens = block(tokens)
        return self.pool(tokens)

    def pool(self, tokens: Tensor) -> Tensor:
        """Pool tokens (n, tokens, width) after the final norm: CLS beside the patches' mean, (n, 2 width) float32."""
        tokens = self.model.norm(tokens)
        patches = tokens[:, self.model.num_prefix_tokens :]
        return torch.cat([tokens[:, 0], patches.mean(dim=1)], dim=1).float()


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the CPU to the device. From pinned memory the process does not wait for the copy to a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def build_vit(
    backbone: Backbone, depths: Sequence[int], weights: Arrays | None, device: torch.device, sha256: str = ""
) -> Vit:
    """Build a frozen ViT, its position embeddings resampled to the image size and its blocks cut to the depth.

    Args:
        backbone: settings: timm's name, image size, depths.
        depths: blocks whose pooled outputs make an embedding, ascending, counted from 1.
        weights: under timm's names; None: timm's own, from its hub.
        device: where the weights go.
        sha256: of the weights' file, hex.

    Raises:
        IntaglioError: timm does not know the model, it is no ViT with a class token, or the weights do not fit it.
        TransientError: the hub did not answer.
    """
    options: dict[str, Any] = {"num_classes": 0, "img_size": backbone.image_size}
    try:
        model = create_model(backbone.model, pretrained=weights is None, **options)
    except RuntimeError as error:
        raise IntaglioError(f"backbone.model {backbone.model!r}: {_one_line(error)}") from None
    except TypeError:
        model = None  # other architectures do not take img_size
    except OSError as error:
        raise TransientError(f"backbone.weights 'hub': {_one_line(error)}") from None
    if not isinstance(model, VisionTransformer) or model.cls_token is None:
        raise IntaglioError(f"backbone.model {backbone.model!r} is not a timm VisionTransformer with a class token")
    if len(model.blocks) < backbone.depth:
        raise IntaglioError(f"backbone.depth is {backbone.depth}, but {backbone.model} has {len(model.blocks)} blocks")
    model.blocks = nn.Sequential(*list(model.blocks)[: backbone.depth])
    if weights is not None:
        _load(model, weights, backbone)
    model.eval().requires_grad_(False).to(device)
    cfg = cast(dict[str, Any], model.pretrained_cfg)
    mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
    half = device.type == "cuda"
    return Vit(model, backbone.trunk_depth, tuple(depths), backbone.image_size, mean, std, device, sha256, half)


def autocast(vit: Vit) -> AbstractContextManager[object]:
    """Return a context that casts to bfloat16 where the backbone is `half`; in float32 otherwise."""
    return torch.autocast(vit.device.type, dtype=torch.bfloat16, enabled=vit.half)


def in_bfloat16(vit: Vit) -> Vit:
    """Cast a backbone for inference in bfloat16. Its weights are cast once: autocast would do so in every pass."""
    for layer in vit.model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.to(torch.bfloat16)
    return replace(vit, half=True)


def _load(model: VisionTransformer, weights: Arrays, backbone: Backbone) -> None:
    state: dict[str, Tensor] = {name: torch.tensor(array) for name, array in weights.items()}
    state = checkpoint_filter_fn(state, model)  # resamples position embeddings to the grid of image_size
    kept = set(model.state_dict())
    dropped = {name for name in state if name.startswith(("blocks.", "head."))} - kept
    try:
        model.load_state_dict({name: value for name, value in state.items() if name not in dropped}, strict=True)
    except RuntimeError as error:
        raise IntaglioError(f"backbone.weights do not fit {backbone.model}: {_one_line(error)}") from None


def load_vit(
    folder: Path,
    backbone: Backbone,
    depths: Sequence[int],
    device: torch.device,
    sha256_of: Callable[[Path], str] = sha256_file,
) -> Vit:
    """Load the converted backbone in `folder`.

    Args:
        folder: where `convert` wrote it.
        backbone: the settings that it must have been converted with.
        depths: blocks whose output is part of an embedding.
        device: where its weights go.
        sha256_of: hashes the weights' file, which must be the one that was converted.

    Raises:
        IntaglioError: a file is missing, damaged, or was converted with other settings.
    """
    facts = read_json(folder / "backbone.json")
    wanted = backbone.model_dump()
    if stale := [key for key in ("model", "image_size", "depth") if facts.get(key) != wanted[key]]:
        raise IntaglioError(f"{folder}: converted with another backbone.{stale[0]}; run the stage 'backbone' again")
    path = folder / "backbone.safetensors"
    if sha256_of(path) != facts["file_sha256"]:
        raise IntaglioError(f"{path}: damaged (sha256 differs from backbone.json); run the stage 'backbone' again")
    return build_vit(backbone, depths, read_arrays(path), device, facts["file_sha256"])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
