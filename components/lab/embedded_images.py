"""All images of a stream under the frozen backbone, computed once and kept on disk: what every method starts from.

The trunk's outputs are the pipeline's own (vision/trunk_cache.py); the tail's follow from them, and are kept by the
content of an image and of the backbone too, so that streams that share images share the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.arrays import Embeddings, Indices
from components.data.images import Limits
from components.io import read_arrays, sha256_bytes, write_arrays
from components.vision.backbone import Vit, autocast
from components.vision.pixel_batches import BATCH, ProgressLine
from components.vision.trunk_cache import Tokens, TrunkCache, trunk_outputs

_SHARD = 2048  # images computed between two writes: what a killed process loses at most


@dataclass(frozen=True)
class EmbeddedImages:
    """N distinct images: h0 (N, d) float32 by the frozen backbone, and the trunk's `tokens` of each, on disk.

    Both follow from the float16 tokens, as modules see them, so that h_0 is exactly h_k with an empty module. `look`
    gives the tokens of some rows in another view (components/data/augment.py), by its number from 1.
    """

    sha256: tuple[str, ...]
    h0: Embeddings
    trunk_width: int
    tokens: Tokens
    look: Callable[[Indices, int], Tokens]

    def rows(self, digests: Sequence[str]) -> Indices:
        """Where images with these sha256 stand."""
        number = {digest: row for row, digest in enumerate(self.sha256)}
        return np.array([number[digest] for digest in digests], dtype=np.int64)


@dataclass(frozen=True)
class ImageRows:
    """n images of a corpus, without their labels: all that a method sees of a test image."""

    embedded: EmbeddedImages
    rows: Indices

    def __len__(self) -> int:
        """Number of images n."""
        return len(self.rows)

    @property
    def h0(self) -> Embeddings:
        """Embeddings by the frozen backbone, (n, d)."""
        return self.embedded.h0[self.rows]

    @property
    def tokens(self) -> Tokens:
        """The trunk's tokens of each, on disk."""
        return self.embedded.tokens.take(self.rows)

    def views(self, count: int) -> Tokens:
        """The same in `count` views, all images in one after the other."""
        return Tokens.joined([self.tokens, *(self.embedded.look(self.rows, number) for number in range(1, count))])

    def take(self, which: NDArray[np.bool_] | Indices) -> ImageRows:
        """Some of them."""
        return ImageRows(self.embedded, self.rows[which])


def open_embedded_images(
    vit: Vit, folder: Path, digests: Sequence[str], paths: Sequence[Path], limits: Limits, cache: TrunkCache
) -> EmbeddedImages:
    """The corpus of images with distinct `digests`; what is not yet in `cache` and under `folder` is computed.

    Raises:
        ImageError: an image cannot be read.
    """
    tokens, trunk = trunk_outputs(vit, paths, digests, limits, cache, "laboratory")
    tail = _tails(vit, folder, digests, tokens)

    def look(rows: Indices, view: int) -> Tokens:
        some = [paths[row] for row in rows], [digests[row] for row in rows]
        return trunk_outputs(vit, *some, limits, cache, f"laboratory: view {view}", view)[0]

    return EmbeddedImages(tuple(digests), np.concatenate([trunk, tail], axis=1), vit.trunk_width, tokens, look)


def tail_of(vit: Vit, tail: Callable[[Tensor], Tensor], tokens: Tokens) -> Embeddings:
    """What `tail`, on the device and in the arithmetic of `vit`, makes of the tokens of n images: (n, 2 width)."""
    parts = []
    for start in range(0, len(tokens), BATCH):
        batch = torch.from_numpy(tokens[start : start + BATCH]).to(vit.device).float()
        with torch.inference_mode(), autocast(vit):
            parts.append(tail(batch).float().cpu().numpy())
    return np.concatenate(parts)


def _tails(vit: Vit, folder: Path, digests: Sequence[str], tokens: Tokens) -> Embeddings:
    shelf, row_of = folder / _key(vit), {digest: row for row, digest in enumerate(digests)}
    out = np.empty((len(digests), vit.embedding_width - vit.trunk_width), dtype=np.float32)
    known = np.zeros(len(digests), dtype=bool)
    for path in sorted(shelf.glob("[!.]*.safetensors")):
        arrays = read_arrays(path)
        wanted = np.array([row_of.get(image.tobytes().hex(), -1) for image in arrays["images"]], dtype=np.int64)
        here = wanted >= 0
        out[wanted[here]], known[wanted[here]] = arrays["tail"][here], True
    missing = np.flatnonzero(~known)
    progress = ProgressLine("laboratory: tail", len(missing))
    for start in range(0, len(missing), _SHARD):
        part = missing[start : start + _SHARD]
        out[part] = tail_of(vit, vit.tail, tokens.take(part))
        content = b"".join(bytes.fromhex(digests[row]) for row in part)
        images = np.frombuffer(content, dtype=np.uint8).reshape(len(part), -1)
        write_arrays(shelf / f"{sha256_bytes(content)[:32]}.safetensors", {"images": images, "tail": out[part]})
        progress.at(start + len(part))
    return out


def _key(vit: Vit) -> str:
    """What a tail's output depends on beside the image."""
    facts = (vit.sha256, vit.trunk_depth, vit.depths, len(vit.blocks), vit.image_size, vit.half, vit.device.type)
    return sha256_bytes(repr(facts).encode())[:20]
