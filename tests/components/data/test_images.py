"""Decoding: real files of every awkward kind, made here."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from components.data.images import ImageError, Limits, open_image, probe, to_square
from components.errors import IntaglioError
from components.io import sha256_bytes
from components.params import load_config

LIMITS = Limits(max_pixels=1_000_000, max_bytes=1_000_000, min_side=8)
RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds one byte of pixels: a decompression bomb's outside."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def half_transparent(mode: str) -> Image.Image:
    """Left half opaque, right half fully transparent black."""
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 8, 16))
    return image.convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_exact_pixels(kind: str) -> None:
    image = open_image(encoded(noise(), kind), LIMITS)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(noise()))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_other_formats_give_the_colour(kind: str) -> None:
    image = open_image(encoded(Image.new("RGB", (16, 16), RED), kind), LIMITS)
    assert np.abs(np.asarray(image).astype(int) - RED).max() <= 3


def test_cmyk_jpeg_becomes_rgb() -> None:
    image = open_image(encoded(Image.new("RGB", (16, 16), RED).convert("CMYK"), "JPEG"), LIMITS)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - RED).max() <= 6


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, (0, 0, 255), (0, 255, 0))]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    image = open_image(content, LIMITS)
    assert np.abs(np.asarray(image).astype(int) - RED).max() <= 3
    assert not hasattr(image, "n_frames")


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("LA", "TIFF"), ("RGBA", "WEBP")])
def test_transparent_pixels_are_white(mode: str, kind: str) -> None:
    image = open_image(encoded(half_transparent(mode), kind), LIMITS)
    assert image.getpixel((12, 8)) == WHITE
    assert image.getpixel((4, 8)) != WHITE


def test_a_palette_with_transparency_is_white_there() -> None:
    image = half_transparent("RGBA").quantize(8)
    content = encoded(image, "PNG")
    assert Image.open(io.BytesIO(content)).mode == "P"
    decoded = open_image(content, LIMITS)
    assert decoded.getpixel((12, 8)) == WHITE
    assert decoded.getpixel((4, 8)) == RED


def test_a_transparent_colour_is_white() -> None:
    content = encoded(Image.new("RGB", (16, 16), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert open_image(content, LIMITS).getpixel((0, 0)) == WHITE


def test_one_bit_pixels() -> None:
    assert open_image(encoded(Image.new("1", (16, 16), 1), "PNG"), LIMITS).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    image = open_image(encoded(Image.fromarray(ramp), kind), LIMITS)
    assert np.array_equal(np.asarray(image)[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize("values", [np.full((16, 16), -5, np.int32), np.full((16, 16), 70000, np.int32)])
def test_32_bit_integers_outside_16_bits_are_refused(values: NDArray[np.int32]) -> None:
    with pytest.raises(ImageError, match="32-bit pixels have no defined white"):
        open_image(encoded(Image.fromarray(values), "TIFF"), LIMITS)


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(ImageError, match="floating-point"):
        open_image(encoded(Image.new("F", (16, 16), 0.5), "TIFF"), LIMITS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind: str) -> None:
    image = Image.new("RGB", (40, 20), WHITE)
    image.paste(RED, (0, 0, 20, 20))  # red on the left; turned by 90 degrees clockwise, red is on top
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = open_image(encoded(image, kind, exif=exif), LIMITS)
    assert upright.size == (20, 40)
    assert np.abs(np.asarray(upright)[5, 10].astype(int) - RED).max() <= 6
    assert np.asarray(upright)[35, 10].min() >= 249


def test_damaged_exif_leaves_the_pixels_readable() -> None:
    content = encoded(noise(), "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(np.asarray(open_image(content, LIMITS)), np.asarray(noise()))


def test_unreadable_orientation_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Image.Image) -> Image.Image:
        raise struct.error("unpack requires a buffer")

    monkeypatch.setattr("components.data.images.ImageOps.exif_transpose", fail)
    assert open_image(encoded(noise(), "PNG"), LIMITS).size == (40, 30)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"just some text", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\n", "not an image"),
        (encoded(noise(), "PNG")[:1500], "damaged image"),
        (encoded(noise(), "JPEG")[:700], "damaged image"),
        (encoded(noise(), "GIF")[:900], "damaged image"),
        (encoded(noise(), "PNG")[:20], "damaged"),
        (encoded(Image.new("RGB", (1, 1)), "PNG"), "1x1 pixels: the shorter side is below data.min_side"),
        (encoded(Image.new("RGB", (1001, 1000)), "PNG"), "1001x1000 pixels are more than data.max_pixels"),
        (png_header(10_000, 10_000), "10000x10000 pixels are more than data.max_pixels"),
        (png_header(60_000, 60_000), "more pixels than the decoder allows"),
        (b"\0" * 1_000_001, "1000001 bytes are more than data.max_bytes"),
    ],
)
def test_unusable_content_gives_one_clear_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=message) as from_bytes:
            open_image(content, LIMITS)
        with pytest.raises(IntaglioError, match=message) as from_file:
            open_image(path, LIMITS)
        facts = probe(path, LIMITS)
    assert str(from_file.value) == f"{path}: {from_bytes.value}"
    assert "\n" not in str(from_bytes.value)
    assert (facts.readable, facts.error) == (False, str(from_bytes.value))
    assert (facts.sha256, facts.bytes) == (sha256_bytes(content), len(content))


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(ImageError, match="max_pixels"):
        open_image(encoded(Image.new("RGB", (1001, 1000)), "PNG"), LIMITS)


def test_what_is_not_a_file_is_named(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    with pytest.raises(ImageError, match="not a file"):
        open_image(pipe, LIMITS)
    with pytest.raises(ImageError, match="not a file"):
        open_image(tmp_path, LIMITS)
    with pytest.raises(ImageError, match=r"missing\.png: cannot be opened"):
        open_image(tmp_path / "missing.png", LIMITS)
    assert probe(tmp_path / "missing.png", LIMITS).error == "cannot be opened (No such file or directory)"


def test_probe_of_a_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    exif = Image.Exif()
    exif[0x0112] = 8
    noise().convert("L").save(path, exif=exif)
    facts = probe(path, LIMITS)
    assert (facts.width, facts.height, facts.mode, facts.format) == (30, 40, "L", "JPEG")
    assert (facts.readable, facts.error, facts.sha256) == (True, "", sha256_bytes(path.read_bytes()))


def test_probe_keeps_the_claimed_size_of_what_it_refuses(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png_header(10_000, 9_000))
    facts = probe(path, LIMITS)
    assert (facts.width, facts.height, facts.mode, facts.format) == (10_000, 9_000, "RGB", "PNG")


def test_threads_leave_the_warning_filters_alone(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(40)]
    for path in paths:
        path.write_bytes(png_header(10_000, 10_000))  # each one makes Pillow warn
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            facts = list(pool.map(lambda path: probe(path, LIMITS), paths))
        assert list(warnings.filters) == before
    assert [fact.readable for fact in facts] == [False] * 40
    assert caught == []


def test_to_square_keeps_the_whole_image() -> None:
    image = Image.new("RGB", (100, 20), WHITE)
    image.paste(RED, (0, 0, 50, 20))
    square = to_square(image, 32)
    assert square.shape == (32, 32, 3)
    assert square.dtype == np.uint8
    assert tuple(square[16, 2]) == RED
    assert tuple(square[16, 29]) == WHITE


def test_to_square_averages_what_it_shrinks() -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.abs(to_square(Image.fromarray(board), 8).astype(int) - 127).max() <= 2


def test_limits_come_from_the_configuration() -> None:
    data = load_config(Path(__file__).parents[3] / "params.yaml").data
    assert Limits.of(data) == Limits(data.max_pixels, data.max_bytes, data.min_side)
