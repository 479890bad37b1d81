"""Pictures as the bytes of image files, and back: the one place where PNG and JPEG are encoded.

Shapes: C channels, H rows, W columns. Equal pixels give equal bytes with equal versions of Pillow and its libraries.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

Picture = Tensor | np.ndarray | Image.Image

#: zlib's effort. Level 6 takes twice the time of level 4 for 4 % fewer bytes (256² faces).
PNG_EFFORT = 4


def png(picture: Picture, *, palette: Sequence[tuple[int, int, int]] = (), effort: int = PNG_EFFORT) -> bytes:
    """A PNG file, without loss.

    Args:
        picture: an RGB image, as a tensor [3, H, W] or an array [H, W, 3] of values 0 … 255; or a map [H, W], which
            becomes grayscale: of 16 bits if its type is uint16, else of 8 bits (class ids 0 … 255); or a Pillow image.
        palette: up to 256 RGB colors: a map becomes a palette image whose pixels are the ids; further ids are white.
        effort: of zlib, 0 … 9; changes the size of the file, not its pixels.

    Raises:
        ValueError: another shape, or a palette for something that is not an 8-bit map.

    Example:
        >>> read_pixels(png(torch.tensor([[0, 1], [2, 255]])), "L").tolist()
        [[0, 1], [2, 255]]
    """
    image = _pillow(picture)
    if palette:
        if image.mode != "L":
            raise ValueError(f"only a map of 8-bit ids can have a palette, not a picture of mode {image.mode}")
        colors = [*palette, *[(255, 255, 255)] * (256 - len(palette))]
        image = image.copy()
        image.putpalette([value for color in colors for value in color])
    return _saved(image, format="PNG", compress_level=effort)


def jpg(picture: Picture, quality: int = 95) -> bytes:
    """A JPEG file of an RGB image, see `png`; colors are stored at full resolution (4:4:4).

    Args:
        picture: an RGB image.
        quality: 1 … 100.
    """
    return _saved(_pillow(picture), format="JPEG", quality=quality, subsampling="4:4:4")


def read_pixels(content: bytes, mode: str) -> np.ndarray:
    """The pixels of an image file: [H, W], or [H, W, 3] for RGB.

    Args:
        content: of the file.
        mode: the Pillow mode that it must have: "L" (8-bit grayscale), "I;16" (16-bit) or "RGB".

    Raises:
        ValueError: another mode, or not a readable image.
    """
    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.mode != mode:
                raise ValueError(f"a picture has mode {picture.mode}, not {mode}")
            return np.asarray(picture)
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for some damaged pictures
        raise ValueError(f"a picture cannot be read: {error}") from error


def _pillow(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, Tensor):
        picture = picture.cpu().numpy()
        picture = picture.transpose(1, 2, 0) if picture.ndim == 3 else picture
    if picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] != 3):
        raise ValueError(f"a picture must be RGB or a map [H, W], not of shape {tuple(picture.shape)}")
    kept = picture if picture.ndim == 2 and picture.dtype == np.uint16 else picture.astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(kept))


def _saved(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    return buffer.getvalue()
