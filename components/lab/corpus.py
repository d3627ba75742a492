"""All images of a stream under the frozen backbone, computed once and kept on disk: what every method starts from.

Entries are found by the content of an image and of the backbone, so streams that share images share the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from components.backbone import Vit, autocast
from components.embed import BATCH, Embeddings, Progress, pixel_batches
from components.images import Limits
from components.io import atomic_folder, read_table, sha256_bytes, write_table

Indices = NDArray[np.int64]
Tokens = NDArray[np.float16]

_SHARD = 1024  # images computed between two writes: what a killed process loses at most


@dataclass(frozen=True)
class Corpus:
    """N distinct images: h0 (N, d) float32, and the trunk's tokens (tokens, width) of each, float16 on disk.

    Both follow from the float16 tokens, as modules see them, so that h_0 is exactly h_k with an empty module.
    """

    sha256: tuple[str, ...]
    h0: Embeddings
    trunk_width: int
    shards: tuple[Tokens, ...]
    shard: Indices
    place: Indices

    def tokens(self, rows: Indices) -> Tokens:
        """The trunk's tokens of images `rows` (n,), (n, tokens, width)."""
        out = np.empty((len(rows), *self.shards[0].shape[1:]), dtype=np.float16)
        for number in np.unique(self.shard[rows]):
            own = self.shard[rows] == number
            out[own] = self.shards[number][self.place[rows[own]]]
        return out

    def rows(self, digests: Sequence[str]) -> Indices:
        """Where images with these sha256 stand."""
        number = {digest: row for row, digest in enumerate(self.sha256)}
        return np.array([number[digest] for digest in digests], dtype=np.int64)


@dataclass(frozen=True)
class Images:
    """n images of a corpus, without their labels: all that a method sees of a test image."""

    corpus: Corpus
    rows: Indices

    def __len__(self) -> int:
        """Number of images n."""
        return len(self.rows)

    @property
    def h0(self) -> Embeddings:
        """Embeddings by the frozen backbone, (n, d)."""
        return self.corpus.h0[self.rows]

    def take(self, which: NDArray[np.bool_] | Indices) -> Images:
        """Some of them."""
        return Images(self.corpus, self.rows[which])


def backbone_key(vit: Vit) -> str:
    """What an embedding depends on beside the image."""
    facts = f"{vit.sha256}|{vit.trunk_depth}|{vit.depths}|{len(vit.blocks)}|{vit.image_size}|v1"
    return sha256_bytes(facts.encode())[:16]


def open_corpus(vit: Vit, folder: Path, digests: Sequence[str], paths: Sequence[Path], limits: Limits) -> Corpus:
    """The corpus of the given images; what is not yet under `folder` is computed.

    Raises:
        ImageError: an image cannot be read.
    """
    store = folder / backbone_key(vit)
    known = _index(store)
    wanted = dict(zip(digests, paths, strict=True))
    missing = [digest for digest in wanted if digest not in known]
    progress = Progress("frozen backbone: images", len(missing))
    for start in range(0, len(missing), _SHARD):
        part = missing[start : start + _SHARD]
        _write_shard(vit, store / f"shard-{part[0][:16]}", part, [wanted[digest] for digest in part], limits)
        progress.at(start + len(part))
    return _assemble(store, _index(store), tuple(wanted), vit.trunk_width)


def _index(store: Path) -> dict[str, tuple[str, int]]:
    return {
        str(digest): (shard.name, row)
        for shard in sorted(store.glob("shard-*"))
        for row, digest in enumerate(read_table(shard / "index.parquet")["sha256"])
    }


def _write_shard(vit: Vit, shard: Path, digests: Sequence[str], paths: Sequence[Path], limits: Limits) -> None:
    tokens, h0 = [], []
    for pixels in pixel_batches(paths, vit.image_size, limits, BATCH):
        with torch.inference_mode(), autocast(vit):
            after, trunk = vit.trunk(pixels)
            half = after.half()
            h0.append(torch.cat([trunk.float(), vit.tail(half.float())], dim=1).cpu().numpy())
            tokens.append(half.cpu().numpy())
    with atomic_folder(shard) as temporary:
        np.save(temporary / "tokens.npy", np.concatenate(tokens))
        np.save(temporary / "h0.npy", np.concatenate(h0).astype(np.float32))
        write_table(temporary / "index.parquet", pd.DataFrame({"sha256": list(digests)}))


def _assemble(store: Path, index: dict[str, tuple[str, int]], digests: tuple[str, ...], trunk_width: int) -> Corpus:
    names = sorted({index[digest][0] for digest in digests})
    number = {name: position for position, name in enumerate(names)}
    shard = np.array([number[index[digest][0]] for digest in digests], dtype=np.int64)
    place = np.array([index[digest][1] for digest in digests], dtype=np.int64)
    tokens = tuple(np.load(store / name / "tokens.npy", mmap_mode="r", allow_pickle=False) for name in names)
    tables = [np.load(store / name / "h0.npy", mmap_mode="r", allow_pickle=False) for name in names]
    h0 = np.empty((len(digests), tables[0].shape[1]), dtype=np.float32)
    for position, table in enumerate(tables):
        h0[shard == position] = table[place[shard == position]]
    return Corpus(digests, h0, trunk_width, tokens, shard, place)
