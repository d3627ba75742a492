"""Other views of an image, for training: augmentation that can be repeated.

A view follows from the image's content and the view's number alone, so that what is computed from it can be kept.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.data.images import to_square

# Measured together (docs/results/history/explorations.md). No mirror image: letters and digits would become others.
_DEGREES = 10.0
_ZOOM = 0.15  # in logarithms
_SHIFT = 0.08  # of the side
_LIGHT = 0.2  # of contrast in logarithms, of brightness a quarter of the range
_FINE = 2  # times the size at which it is turned, so that resampling twice does not blur


def view(image: Image.Image, size: int, digest: str, number: int) -> NDArray[np.uint8]:
    """Make one view of an image: turned, moved, scaled and lit a little differently.

    Beyond the image's border its edge goes on.

    Args:
        image: upright, RGB.
        size: side of the result, pixels.
        digest: hex sha256 of the image's file, from which the change is drawn.
        number: which view; 0 is the image itself.

    Returns:
        (size, size, 3) uint8.
    """
    if number == 0:
        return to_square(image, size)
    seed = hashlib.sha256(f"{digest}|{number}".encode()).digest()
    degrees, zoom, right, down, contrast, brightness = np.random.default_rng(list(seed)).uniform(-1, 1, 6)
    side, edge = _FINE * size, _FINE * size // 4
    wide = np.pad(to_square(image, side), ((edge, edge), (edge, edge), (0, 0)), mode="edge")
    turned = Image.fromarray(wide).rotate(_DEGREES * degrees, Image.Resampling.BICUBIC)
    half = side * np.exp(_ZOOM * zoom) / 2
    x, y = (len(wide) / 2 + _SHIFT * side * move for move in (right, down))
    box = np.clip((x - half, y - half, x + half, y + half), 0, len(wide)).tolist()
    seen = np.asarray(turned.resize((size, size), Image.Resampling.BICUBIC, box=box), dtype=np.float32)
    lit = (seen - 128) * np.exp(_LIGHT * contrast) + 128 + 64 * _LIGHT * brightness
    return np.asarray(np.clip(lit, 0, 255), dtype=np.uint8)
