"""Colors of labels in pictures: distinct ones for parts, and a ramp for values."""

from __future__ import annotations

import colorsys

import numpy as np

from dsgan_datasets.targets.base import Color

#: Dark to bright with even steps in lightness: readable without color too.
_HEAT = np.array([(12, 8, 38), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float64)


def distinct_colors(count: int, *, saturations: tuple[float, float] = (0.5, 0.75)) -> tuple[Color, ...]:
    """Hues a golden angle apart, so that neighbors in the list differ most.

    Args:
        count: of colors.
        saturations: of every other color, 0 … 1; kinds of labels that are drawn together have different ones.

    Example:
        >>> distinct_colors(2)
        ((61, 242, 114), (192, 121, 242))
    """
    hues = (colorsys.hsv_to_rgb(i * 0.381966 % 1.0, saturations[i % 2], 0.95) for i in range(1, count + 1))
    return tuple((round(r * 255), round(g * 255), round(b * 255)) for r, g, b in hues)


def heat(shares: np.ndarray) -> np.ndarray:
    """Values 0 … 1 (others count as the nearer end) of any shape as colors, dark to bright: uint8 [..., 3]."""
    position = np.clip(shares, 0, 1) * (len(_HEAT) - 1)
    lower = np.minimum(position.astype(int), len(_HEAT) - 2)
    fraction = (position - lower)[..., None]
    colors: np.ndarray = ((1 - fraction) * _HEAT[lower] + fraction * _HEAT[lower + 1]).round().astype(np.uint8)
    return colors
