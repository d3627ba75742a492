"""What follows from the number of a step or an epoch alone: learning rate, dropped patches, validations.

No generator's state is involved. So a resumed training and all processes of a shared one agree without a message.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from components.config import Finetune as Settings


def lr_factor(step: int, steps: int, warmup_fraction: float) -> float:
    """Return the factor on the learning rates: a linear warm-up, then a cosine to zero.

    (step + 1) / warmup, then (1 + cos(pi (step - warmup) / (steps - warmup))) / 2  (Loshchilov and Hutter, 2017).

    Args:
        step: counted from 0.
        steps: number of steps in all.
        warmup_fraction: share of the steps that warm up; at least one does.
    """
    warmup = max(1, round(steps * warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def validated_in(epoch: int, settings: Settings) -> bool:
    """Return whether an epoch, counted from 1, ends with a validation; the last one does."""
    return (settings.epochs - epoch) % settings.validate_every == 0


def kept_tokens(images: int, tokens: int, prefix: int, dropout: float, seed: Sequence[int]) -> Tensor:
    """Draw the tokens that a step sees of each image: the prefix, and a random share 1 - `dropout` of the patches.

    PatchDropout (Liu et al., 2023): a step costs what its patches cost. At least one patch is kept.

    Args:
        images: number of images.
        tokens: tokens of an image.
        prefix: how many of them come before the patches, such as the class token.
        dropout: share of the patches to drop, in [0, 1).
        seed: of the draw.

    Returns:
        (images, kept) int64, rising in each row.
    """
    patches = tokens - prefix
    kept = max(1, round(patches * (1 - dropout)))
    places = np.broadcast_to(np.arange(prefix, tokens), (images, patches))
    drawn = np.sort(np.random.default_rng(seed).permuted(places, axis=1)[:, :kept], axis=1)
    first = np.broadcast_to(np.arange(prefix), (images, prefix))
    return torch.from_numpy(np.concatenate([first, drawn], axis=1))
