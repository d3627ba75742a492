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
    """N distinct images under the frozen backbone.

    Embeddings follow from the float16 tokens, as modules see them, so that h_0 is exactly h_k with an empty module.

    Attributes:
        sha256: of each image's content, (N,).
        h0: embeddings by the frozen backbone, (N, d) float32.
        trunk_width: how many of the d numbers the trunk's output gives.
        tokens: the trunk's float16 tokens of each image, on disk.
        view: gives the tokens of some rows in another view (components/data/augment.py), by its number from 1.
    """

    sha256: tuple[str, ...]
    h0: Embeddings
    trunk_width: int
    tokens: Tokens
    view: Callable[[Indices, int], Tokens]

    def rows(self, digests: Sequence[str]) -> Indices:
        """Return the rows of the images with these sha256."""
        number = {digest: row for row, digest in enumerate(self.sha256)}
        return np.array([number[digest] for digest in digests], dtype=np.int64)


@dataclass(frozen=True)
class ImageRows:
    """Some n of the embedded images, without their labels: all that a method sees of a test image."""

    embedded: EmbeddedImages
    rows: Indices

    def __len__(self) -> int:
        """Return the number of images n."""
        return len(self.rows)

    @property
    def h0(self) -> Embeddings:
        """Return the embeddings by the frozen backbone, (n, d)."""
        return self.embedded.h0[self.rows]

    @property
    def tokens(self) -> Tokens:
        """Return the trunk's tokens of each image, which lie on disk."""
        return self.embedded.tokens.take(self.rows)

    def views(self, count: int) -> Tokens:
        """Return the tokens in `count` views: all images in the first view, then all in the next."""
        return Tokens.joined([self.tokens, *(self.embedded.view(self.rows, number) for number in range(1, count))])

    def take(self, which: NDArray[np.bool_] | Indices) -> ImageRows:
        """Select some of the images, by a mask or by their places."""
        return ImageRows(self.embedded, self.rows[which])


def open_embedded_images(
    vit: Vit, folder: Path, digests: Sequence[str], paths: Sequence[Path], limits: Limits, cache: TrunkCache
) -> EmbeddedImages:
    """Embed images, or read what is already in `cache` and under `folder`.

    Args:
        vit: the frozen backbone.
        folder: where the tail's outputs are kept.
        digests: sha256 of each image, all distinct.
        paths: where each image lies.
        limits: on the size of an image.
        cache: where the trunk's outputs are kept.

    Raises:
        ImageError: an image cannot be read.
    """
    tokens, trunk = trunk_outputs(vit, paths, digests, limits, cache, "laboratory")
    tail = _tails(vit, folder, digests, tokens)

    def view(rows: Indices, number: int) -> Tokens:
        some = [paths[row] for row in rows], [digests[row] for row in rows]
        return trunk_outputs(vit, *some, limits, cache, f"laboratory: view {number}", number)[0]

    return EmbeddedImages(tuple(digests), np.concatenate([trunk, tail], axis=1), vit.trunk_width, tokens, view)


def tail_of(vit: Vit, tail: Callable[[Tensor], Tensor], tokens: Tokens) -> Embeddings:
    """Run a tail over the tokens of n images, batch after batch.

    Args:
        vit: the backbone whose device and arithmetic are used.
        tail: from tokens (b, t, width) to embeddings (b, 2 width).
        tokens: the trunk's outputs of the images.

    Returns:
        Embeddings (n, 2 width), float32.
    """
    parts = []
    for start in range(0, len(tokens), BATCH):
        batch = torch.from_numpy(tokens[start : start + BATCH]).to(vit.device).float()
        with torch.inference_mode(), autocast(vit):
            parts.append(tail(batch).float().cpu().numpy())
    return np.concatenate(parts)


def _tails(vit: Vit, folder: Path, digests: Sequence[str], tokens: Tokens) -> Embeddings:
    kept, row_of = folder / _key(vit), {digest: row for row, digest in enumerate(digests)}
    out = np.empty((len(digests), vit.embedding_width - vit.trunk_width), dtype=np.float32)
    known = np.zeros(len(digests), dtype=bool)
    for path in sorted(kept.glob("[!.]*.safetensors")):
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
        write_arrays(kept / f"{sha256_bytes(content)[:32]}.safetensors", {"images": images, "tail": out[part]})
        progress.at(start + len(part))
    return out


def _key(vit: Vit) -> str:
    """Hash what a tail's output depends on beside the image."""
    facts = (vit.sha256, vit.trunk_depth, vit.depths, len(vit.blocks), vit.image_size, vit.half, vit.device.type)
    return sha256_bytes(repr(facts).encode())[:20]
