"""Bounded, safe decoding: from any file that claims to be an image to upright 8-bit RGB, or one clear error."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from components.config import Data
from components.errors import IntaglioError
from components.io import sha256_file

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".pgm", ".ppm"})
# Only these decoders may see a file: Pillow has others, and some (EPS) start foreign programs.
Image.init()
_FORMATS = tuple(name for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM") if name in Image.OPEN)


class ImageError(IntaglioError):
    """An image that cannot be used; the message names the problem."""


@dataclass(frozen=True)
class Limits:
    """What an image may cost: its most pixels, its file's most bytes, and its shorter side in pixels at least."""

    max_pixels: int
    max_bytes: int
    min_side: int

    @classmethod
    def of(cls, data: Data) -> Limits:
        """Return the limits that params.yaml sets in its section `data`."""
        return cls(max_pixels=data.max_pixels, max_bytes=data.max_bytes, min_side=data.min_side)


@dataclass(frozen=True)
class ImageFacts:
    """What is known of an image's file.

    Attributes:
        sha256: of the file, hex; "" where it cannot be opened.
        bytes: size of the file.
        width: of the upright image, pixels; where it is not readable, as the header claims, 0 without a header.
        height: likewise.
        mode: Pillow's name for the type of the stored pixels.
        format: Pillow's name for the type of the file.
        readable: whether the image can be used.
        error: why not; "" where it is readable.
    """

    sha256: str
    bytes: int
    width: int
    height: int
    mode: str
    format: str
    readable: bool
    error: str


def open_image(source: Path | bytes, limits: Limits) -> Image.Image:
    """Decode a file, or a file's content, to upright RGB: first frame only, transparency on white.

    The header's size is checked before any pixel is decoded.

    Raises:
        ImageError: not an image, damaged, too large, too small, or of a pixel type without a defined white.
    """
    try:
        with _opened(_content(source, limits)) as image:
            return _decoded(image, limits)
    except ImageError as error:
        if isinstance(source, Path):
            raise ImageError(f"{source}: {error}") from None
        raise


def probe(path: Path, limits: Limits) -> ImageFacts:
    """Hash and fully decode a file; that it cannot be used is a fact, not an exception."""
    facts = ImageFacts(sha256="", bytes=0, width=0, height=0, mode="", format="", readable=False, error="")
    try:
        facts = replace(facts, bytes=path.stat().st_size, sha256=sha256_file(path))
        with _opened(_content(path, limits)) as image:
            width, height = image.size
            facts = replace(facts, width=width, height=height, mode=image.mode, format=image.format or "")
            upright = _decoded(image, limits)
        return replace(facts, width=upright.width, height=upright.height, readable=True)
    except ImageError as error:
        return replace(facts, error=str(error))
    except OSError as error:
        return replace(facts, error=f"cannot be opened ({error.strerror or error})")


def to_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Resize to (size, size, 3) uint8, bicubic with antialiasing.

    The aspect ratio is not kept, so that nothing is cropped away.
    """
    return np.array(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC), dtype=np.uint8)


def _content(source: Path | bytes, limits: Limits) -> bytes:
    if isinstance(source, bytes):
        _check_bytes(len(source), limits)
        return source
    try:
        # Reading a pipe or a device would hang, or never end.
        if source.exists() and not source.is_file():
            raise ImageError("not a file")
        _check_bytes(source.stat().st_size, limits)
        return source.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be opened ({error.strerror or error})") from None


def _check_bytes(size: int, limits: Limits) -> None:
    if size == 0:
        raise ImageError("the file is empty")
    if size > limits.max_bytes:
        raise ImageError(f"{size} bytes are more than data.max_bytes allows ({limits.max_bytes})")


class _WithoutWarnings:
    """Context in which Pillow does not warn: what matters is raised or recorded. Threads may enter it side by side.

    Warning filters belong to the process, so that one `catch_warnings` per thread would restore them in the wrong
    order. The first thread in installs the filter, and the last one out removes it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._threads == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            self._threads += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if self._threads == 0:
                self._filters.__exit__(None, None, None)


_without_warnings = _WithoutWarnings()


@contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    """Yield the image with only its header read; whatever goes wrong inside becomes an ImageError."""
    try:
        with _without_warnings, Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"not an image, or a damaged header (known: {', '.join(_FORMATS)})") from None
    except Image.DecompressionBombError:
        raise ImageError(f"its header claims more pixels than the decoder allows ({_decoder_limit()})") from None
    except Exception as error:  # on a damaged file Pillow's decoders raise whatever they stumble over
        raise ImageError(f"damaged image: {' '.join(str(error).split()) or type(error).__name__}") from None


def _decoder_limit() -> int:
    return 2 * (Image.MAX_IMAGE_PIXELS or 0)


def _decoded(image: Image.Image, limits: Limits) -> Image.Image:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageError(f"{width}x{height} pixels are more than data.max_pixels allows ({limits.max_pixels})")
    if min(width, height) < limits.min_side:
        raise ImageError(f"{width}x{height} pixels: the shorter side is below data.min_side ({limits.min_side})")
    image.load()
    return _rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata does not make the pixels unreadable
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ImageError("floating-point pixels have no defined white; save the image with 8 or 16 bits")
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    # A copy without the file's metadata, so that what follows depends on the pixels alone.
    plain = image.convert("RGB")
    plain.info = {}
    return plain


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255. Pillow's own conversion clips at 255 instead."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError("32-bit pixels have no defined white; save the image with 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
