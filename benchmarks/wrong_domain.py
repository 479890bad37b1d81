"""A hundred images that no generator of faces should be asked to label: noise, textures and other objects.

NumPy and Pillow draw everything from the seed; nothing is downloaded. `python benchmarks/wrong_domain.py OUT` writes
them as PNG files, with a sheet.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dsgan_datasets.pictures import save_png, sheet

Array = np.ndarray[Any, np.dtype[Any]]
Random = np.random.Generator
Color = tuple[int, int, int]


def wrong_domain(size: int = 128, seed: int = 0) -> Iterator[tuple[str, Image.Image]]:
    """Names and RGB images of `size` × `size` pixels: 30 of noise, 30 textures, 40 other objects."""
    kinds = [(kind, 5) for kind in _NOISE] + [(kind, 5) for kind in _TEXTURES] + [(kind, 5) for kind in _OBJECTS]
    for kind, count in kinds:
        for number in range(count):
            random = np.random.default_rng([seed, *map(ord, kind.__name__), number])
            made = kind(random, size)
            picture = made if isinstance(made, Image.Image) else Image.fromarray(_to_bytes(made))
            yield f"{kind.__name__}-{number}", picture.convert("RGB")


# Noise: [size, size, 3] from 0 to 1.


def white(random: Random, size: int) -> Array:
    return random.random((size, size, 3))


def gray(random: Random, size: int) -> Array:
    return np.repeat(random.normal(0.5, 0.2, (size, size, 1)), 3, 2)


def salt(random: Random, size: int) -> Array:
    image = np.ones((size, size, 3)) * random.random(3)
    image[random.random((size, size)) < 0.3] = 1
    image[random.random((size, size)) < 0.3] = 0
    return image


def clouds(random: Random, size: int) -> Array:
    """Sum of octaves with equal power in each."""
    return np.stack([_octaves(random, size, 0.5) for _ in range(3)], 2)


def smoke(random: Random, size: int) -> Array:
    """One smooth field between two colors."""
    return _between(_octaves(random, size, 0.35), random.random(3), random.random(3))


def static(random: Random, size: int) -> Array:
    """Noise of short horizontal runs, as of an untuned screen."""
    return np.repeat(random.random((size, size // 4, 1)), 4, 1).repeat(3, 2)


# Textures.


def stripes(random: Random, size: int) -> Array:
    y, x = _grid(size)
    angle, period = random.uniform(0, np.pi), random.uniform(0.06, 0.25)
    wave = np.sin(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / period)
    return _between((wave > 0).astype(float), random.random(3), random.random(3))


def checkers(random: Random, size: int) -> Array:
    y, x = _grid(size)
    count = random.integers(4, 12)
    return _between(((x * count).astype(int) + (y * count).astype(int)) % 2, random.random(3), random.random(3))


def bricks(random: Random, size: int) -> Image.Image:
    image = Image.new("RGB", (size, size), _color(random, 150, 220))
    draw, height = ImageDraw.Draw(image), size // int(random.integers(7, 12))
    for row in range(-1, size // height + 1):
        for column in range(-1, size // (2 * height) + 2):
            x, y = column * 2 * height + (row % 2) * height, row * height
            draw.rectangle((x + 1, y + 1, x + 2 * height - 2, y + height - 2), fill=_shade((150, 70, 50), random))
    return image


def wood(random: Random, size: int) -> Array:
    y, x = _grid(size)
    rings = np.sin(60 * (x + 0.15 * _octaves(random, size, 0.3)) * random.uniform(0.7, 1.4) + 3 * y)
    return _between(0.5 + 0.5 * rings, np.array([0.35, 0.2, 0.1]), np.array([0.75, 0.5, 0.3]))


def cells(random: Random, size: int) -> Array:
    """Regions around random points, each of its own color."""
    y, x = _grid(size)
    points, colors = random.random((40, 2)), random.random((40, 3))
    nearest = ((y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2).argmin(2)
    return colors[nearest]


def dots(random: Random, size: int) -> Image.Image:
    image = Image.new("RGB", (size, size), _color(random))
    draw = ImageDraw.Draw(image)
    for _ in range(80):
        x, y, r = random.uniform(0, size), random.uniform(0, size), random.uniform(0.02, 0.09) * size
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_color(random))
    return image


# Objects, each in front of a plain or two-colored background.


def house(random: Random, size: int) -> Image.Image:
    image, draw = _scene(random, size)
    left, right, top = 0.2 * size, 0.8 * size, random.uniform(0.4, 0.5) * size
    draw.rectangle((left, top, right, 0.9 * size), fill=_color(random))
    draw.polygon([(left - 6, top), (right + 6, top), (0.5 * size, 0.12 * size)], fill=_color(random))
    draw.rectangle((0.44 * size, 0.65 * size, 0.56 * size, 0.9 * size), fill=_color(random))
    for x in (0.28, 0.64):
        draw.rectangle((x * size, top + 0.08 * size, (x + 0.1) * size, top + 0.18 * size), fill=_color(random))
    return image.filter(ImageFilter.GaussianBlur(0.6))


def car(random: Random, size: int) -> Image.Image:
    image, draw = _scene(random, size)
    paint = _color(random)
    draw.rounded_rectangle((0.08 * size, 0.5 * size, 0.92 * size, 0.72 * size), 0.05 * size, fill=paint)
    draw.polygon([(s * size, t * size) for s, t in ((0.22, 0.5), (0.34, 0.34), (0.64, 0.34), (0.78, 0.5))], fill=paint)
    draw.polygon(
        [(s * size, t * size) for s, t in ((0.3, 0.49), (0.38, 0.37), (0.5, 0.37), (0.5, 0.49))], fill="lightblue"
    )
    for x in (0.26, 0.74):
        draw.ellipse(((x - 0.09) * size, 0.62 * size, (x + 0.09) * size, 0.8 * size), fill="black")
        draw.ellipse(((x - 0.04) * size, 0.67 * size, (x + 0.04) * size, 0.75 * size), fill="silver")
    return image.filter(ImageFilter.GaussianBlur(0.6))


def tree(random: Random, size: int) -> Image.Image:
    image, draw = _scene(random, size)
    draw.rectangle((0.46 * size, 0.55 * size, 0.54 * size, 0.95 * size), fill=(100, 60, 30))
    for _ in range(60):
        x, y = random.normal(0.5, 0.13) * size, random.normal(0.38, 0.1) * size
        r = random.uniform(0.03, 0.09) * size
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_shade((50, 120, 40), random))
    return image


def bottle(random: Random, size: int) -> Image.Image:
    image, draw = _scene(random, size)
    glass = _color(random)
    draw.rounded_rectangle((0.36 * size, 0.4 * size, 0.64 * size, 0.94 * size), 0.05 * size, fill=glass)
    draw.rectangle((0.45 * size, 0.12 * size, 0.55 * size, 0.44 * size), fill=glass)
    draw.rectangle((0.44 * size, 0.06 * size, 0.56 * size, 0.14 * size), fill=_color(random))
    draw.rectangle((0.36 * size, 0.55 * size, 0.64 * size, 0.76 * size), fill=_color(random))
    draw.line((0.4 * size, 0.45 * size, 0.4 * size, 0.9 * size), fill="white", width=max(1, size // 50))
    return image.filter(ImageFilter.GaussianBlur(0.6))


def chair(random: Random, size: int) -> Image.Image:
    image, draw = _scene(random, size)
    wood_color, thick = _color(random), max(2, size // 18)
    for x0, y0, x1, y1 in (
        (0.3, 0.1, 0.3, 0.92), (0.3, 0.55, 0.7, 0.55), (0.7, 0.55, 0.7, 0.92), (0.3, 0.12, 0.36, 0.5),
        (0.3, 0.55, 0.55, 0.65), (0.7, 0.55, 0.85, 0.65), (0.55, 0.65, 0.85, 0.65), (0.55, 0.65, 0.55, 0.98),
        (0.85, 0.65, 0.85, 0.98),
    ):  # fmt: skip
        draw.line((x0 * size, y0 * size, x1 * size, y1 * size), fill=wood_color, width=thick)
    return image


def ball(random: Random, size: int) -> Array:
    """A lit ball of any color before a background of two colors."""
    y, x = _grid(size)
    cy, cx, r = random.uniform(0.4, 0.6), random.uniform(0.4, 0.6), random.uniform(0.2, 0.4)
    inside = (y - cy) ** 2 + (x - cx) ** 2 < r * r
    z = np.sqrt(np.clip(r * r - (y - cy) ** 2 - (x - cx) ** 2, 0, None)) / r
    light = np.clip(0.5 * (x - cx) / r - 0.5 * (y - cy) / r + 0.7 * z, 0, 1)
    image = _between(y, random.random(3), random.random(3))
    image[inside] = (0.15 + 0.85 * light[..., None] * random.random(3))[inside]
    return image


def letters(random: Random, size: int) -> Image.Image:
    image = Image.new("RGB", (size, size), (245, 243, 235))
    draw = ImageDraw.Draw(image)
    for row in range(8, size - 8, 12):
        text = "".join(random.choice(list("abcdefghij klmnop qrstuvw xyz")) for _ in range(24))
        draw.text((6, row), text, fill=(30, 30, 30))
    return image


def plate(random: Random, size: int) -> Image.Image:
    """A plate with food, seen from above: round and of warm colors, as faces are."""
    image, draw = _scene(random, size)
    for r, color in ((0.42, (235, 235, 230)), (0.3, (220, 220, 214))):
        draw.ellipse(((0.5 - r) * size, (0.5 - r) * size, (0.5 + r) * size, (0.5 + r) * size), fill=color)
    for _ in range(14):
        angle, far = random.uniform(0, 2 * np.pi), random.uniform(0, 0.2)
        x, y, r = (
            (0.5 + far * np.cos(angle)) * size,
            (0.5 + far * np.sin(angle)) * size,
            random.uniform(0.03, 0.08) * size,
        )
        draw.ellipse(
            (x - r, y - r, x + r, y + r), fill=_shade(((180, 60, 40), (90, 130, 50), (230, 190, 90))[_ % 3], random)
        )
    return image


_NOISE: tuple[Callable[[Random, int], Any], ...] = (white, gray, salt, clouds, smoke, static)
_TEXTURES: tuple[Callable[[Random, int], Any], ...] = (stripes, checkers, bricks, wood, cells, dots)
_OBJECTS: tuple[Callable[[Random, int], Any], ...] = (house, car, tree, bottle, chair, ball, letters, plate)


def _grid(size: int) -> tuple[Array, Array]:
    """Rows and columns from 0 to 1, [size, size] each."""
    y, x = np.mgrid[:size, :size] / size
    return y, x


def _octaves(random: Random, size: int, persistence: float) -> Array:
    """A random field from 0 to 1 whose octaves shrink by `persistence`."""
    total, weight, side = np.zeros((size, size)), 1.0, 3
    while side <= size:
        coarse = Image.fromarray(random.normal(size=(side, side)).astype(np.float32))
        total += weight * np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
        weight, side = weight * persistence, side * 2
    low, high = np.percentile(total, (2, 98))
    return np.clip((total - low) / (high - low), 0, 1)


def _between(share: Array, low: Array, high: Array) -> Array:
    return low + np.asarray(share, dtype=float)[..., None] * (high - low)


def _color(random: Random, low: int = 20, high: int = 240) -> Color:
    red, green, blue = (int(value) for value in random.integers(low, high, 3))
    return red, green, blue


def _shade(color: Color, random: Random) -> Color:
    red, green, blue = (int(np.clip(value * random.uniform(0.75, 1.25), 0, 255)) for value in color)
    return red, green, blue


def _scene(random: Random, size: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A sky and a ground, or a wall and a table."""
    image = Image.new("RGB", (size, size), _color(random, 100))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, random.uniform(0.6, 0.85) * size, size, size), fill=_color(random, 30, 200))
    return image, draw


def _to_bytes(values: Array) -> Array:
    return (np.clip(values, 0, 1) * 255).round().astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the images")
    parser.add_argument("--size", type=int, default=128)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    made = list(wrong_domain(args.size))
    for name, picture in made:
        save_png(picture, args.out / f"{name}.png")
    title = f"{len(made)} images of other domains"
    save_png(
        sheet([[picture] for _, picture in made], [name for name, _ in made], title, columns=15), args.out / "sheet.png"
    )


if __name__ == "__main__":
    main()
