"""An image as a value in a table or in a request: a path, base64 text, bytes, or an array of pixels."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path

import numpy as np
from PIL import Image

from components.data.images import ImageError, Limits, open_image

_LONGEST_PATH = 4096


def open_value(value: object, limits: Limits, files: bool) -> Image.Image:
    """Decode a value to an upright RGB image, as `open_image` does.

    Args:
        value: base64 text (a data: URL too), bytes, an H x W x 3 array or nested list of 0..255, or a path.
        limits: what the image may cost.
        files: whether text may name a file. A request must not read files of the machine that serves.

    Raises:
        ImageError: it is none of these, or no image; the message is one line.
    """
    try:
        return open_image(source_of(value, files), limits)
    except (ImageError, ValueError) as error:
        raise ImageError(" ".join(str(error).split())) from None


def source_of(value: object, files: bool) -> Path | bytes:
    """Return a value as something that `open_image` reads.

    Raises:
        ValueError: it is none of the four kinds.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Path) and files:
        return value
    if isinstance(value, str):
        return _from_text(value, files)
    if isinstance(value, np.ndarray | list | tuple):
        return _from_array(value)
    kinds = "a path, base64 text, bytes" if files else "base64 text"
    raise ValueError(f"expected {kinds} or an H x W x 3 array, got {type(value).__name__}")


def _from_text(text: str, files: bool) -> Path | bytes:
    if text.startswith("data:"):
        return _decoded(text.partition(",")[2])
    # Base64 of a JPEG begins with "/9j/" and may look like a path: what exists as a file is a file.
    if files and len(text) <= _LONGEST_PATH and "\0" not in text and _is_file(Path(text)):
        return Path(text)
    try:
        return _decoded(text)
    except ValueError as error:
        what = "no such file, and not base64 text either" if files else str(error)
        raise ValueError(f"{text[:80]!r}: {what}") from None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system
        return False


def _decoded(text: str) -> bytes:
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not valid base64 text") from None
    if not data:
        raise ValueError("empty image")
    return data


def _from_array(values: object) -> bytes:
    """Encode an array as a PNG, so that every kind of input passes the same checks."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError("the nested lists are not an H x W x 3 array") from None
    if array.ndim != 3 or array.shape[2] != 3 or array.size == 0 or array.dtype.kind not in "iuf":
        raise ValueError(f"expected an H x W x 3 array of 0..255, got shape {array.shape} of {array.dtype}")
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > 255:
        raise ValueError(f"expected values from 0 to 255, got {array.min()} to {array.max()}")
    if array.dtype.kind == "f" and not np.equal(array, np.round(array)).all():
        raise ValueError("expected whole numbers from 0 to 255, got fractions; multiply a 0..1 image by 255 and round")
    buffer = io.BytesIO()
    Image.fromarray(array.astype(np.uint8)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
