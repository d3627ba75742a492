"""Views of an image: close to it, different from it, and always the same."""

from __future__ import annotations

import numpy as np
from PIL import Image

from components.data.augment import view
from components.data.images import to_square

DIGEST = "0f" * 32


def an_image() -> Image.Image:
    pixels = np.full((60, 90, 3), 255, dtype=np.uint8)
    pixels[15:45, 30:60] = (200, 30, 60)
    return Image.fromarray(pixels)


def test_the_first_view_is_the_image_itself() -> None:
    np.testing.assert_array_equal(view(an_image(), 32, DIGEST, 0), to_square(an_image(), 32))


def test_a_view_follows_from_the_image_and_its_number_alone() -> None:
    again = [view(an_image(), 32, DIGEST, number) for number in (1, 2, 1)]
    np.testing.assert_array_equal(again[0], again[2])
    assert (again[0] != again[1]).any()
    assert (view(an_image(), 32, "1e" * 32, 1) != again[0]).any()


def test_a_view_shows_the_same_a_little_differently() -> None:
    plain = view(an_image(), 32, DIGEST, 0).astype(float)
    for number in range(1, 9):
        seen = view(an_image(), 32, DIGEST, number).astype(float)
        assert seen.shape == (32, 32, 3)
        assert 0 < np.abs(seen - plain).mean() < 60
        assert np.abs(seen[0, 0] - seen[0, 0].mean()).max() <= 1  # beyond the border the paper goes on, not black
        assert seen[0, 0].mean() > 150
        red = (seen[..., 0] - seen[..., 1]) > 60
        assert 0.5 < red.sum() / 178 < 2  # of the square's 178 pixels
