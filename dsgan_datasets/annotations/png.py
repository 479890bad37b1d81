"""PNG masks <-> class ids: palette or gray pictures of ids (8 or 16 bits), or RGB in exactly the classes' colors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from dsgan_datasets._deprecation import warn_renamed
from dsgan_datasets.annotations.files import File
from dsgan_datasets.annotations.folder import Array
from dsgan_datasets.annotations.mistakes import Findings, listed
from dsgan_datasets.annotations.values import whole
from dsgan_datasets.contents import shown
from dsgan_datasets.images import PictureError, open_picture, png
from dsgan_datasets.targets.base import Color
from dsgan_datasets.targets.segmentation import IGNORED_COLOR, LabelSchema

#: Palette, gray, black and white; and gray of 16 bits, as medical programs save masks.
_ID_MODES = ("P", "L", "1", "I;16", "I")


def read_picture(file: File, schema: LabelSchema, size: tuple[int, int], found: Findings) -> Array | None:
    """Class ids int64 [H, W] of a mask picture, or None with the reason among the mistakes.

    In a palette or gray picture the numbers are the class ids (255, or the schema's `ignore_index`, is ignored). In an
    RGB picture every color must be exactly that of a class, and white is ignored unless a class is white.

    Args:
        file: to read.
        schema: classes and their colors.
        size: (H, W) that it must have.
        found: collects mistakes.
    """
    where = file.name
    try:
        picture = open_picture(file.read(), size=size)
    except PictureError as error:
        if error.size:
            found.wrong_size(where, error.size, size)
        else:
            found.error(where, f"{error.reason} where it was painted")
        return None
    if picture.mode in _ID_MODES:
        return _from_ids(picture, where, schema, found)
    if picture.mode in ("RGB", "RGBA"):
        return _from_colors(np.asarray(picture), where, schema, found)
    found.error(where, f"is a picture of mode {picture.mode}: save it as palette, gray or RGB PNG")
    return None


def encode_png(pixels: Array, palette: Sequence[Color] = ()) -> bytes:
    """Deprecated name of `images.png`, whose palette is a keyword.

    Example:
        >>> from dsgan_datasets.images import png
        >>> png(torch.zeros(2, 2, dtype=torch.uint8))[1:4]  # in its place
        b'PNG'
    """
    warn_renamed("dsgan_datasets.annotations.encode_png", "dsgan_datasets.images.png")
    return png(pixels, palette=palette)


def check_size(height: Any, width: Any, expected: tuple[int, int], where: str, found: Findings) -> bool:
    """Whether a size that a file states is the expected one; if not, that is noted. Sides that it omits are right."""
    got = [default if side is None else whole(side) for side, default in zip((height, width), expected, strict=True)]
    if got[0] is None or got[1] is None:
        found.error(where, f"its size, {shown(width)}×{shown(height)}, is not in whole pixels: export it again")
        return False
    if (got[0], got[1]) != expected:
        found.wrong_size(where, (got[0], got[1]), expected)
        return False
    return True


def _from_ids(picture: Image.Image, where: str, schema: LabelSchema, found: Findings) -> Array | None:
    ids = np.asarray(picture).astype(np.int64)
    present = np.unique(ids)
    colors = None
    if picture.mode == "P":
        colors = np.array(picture.getpalette("RGB"), dtype=np.int64).reshape(-1, 3)
        if message := _reordered(present, colors, schema):
            found.error(where, message)
            return None
    unknown = [int(i) for i in present if i >= schema.num_classes and i != schema.ignore_index]
    if not unknown:
        return ids
    counts = listed([f"{i} ({int((ids == i).sum())} px)" for i in unknown])
    message = f"holds unknown class {counts}; the classes are 0-{schema.num_classes - 1} ({listed(schema.classes)})"
    gray = {_luminance(color): name for color, name in zip(schema.palette, schema.classes, strict=True)}
    if picture.mode == "L" and all(any(abs(int(i) - g) <= 1 for g in (*gray, 255)) for i in present):
        message += (
            ". These are the brightnesses of the classes' colors: a color mask was converted to gray. Save it as RGB "
            "or as a palette PNG instead"
        )
    else:
        message += f": repaint these pixels, or add the class to classes.json; {schema.ignore_index} is ignored"
    found.error(where, message)
    return None


def _reordered(present: Array, colors: Array, schema: LabelSchema) -> str | None:
    """Message if a palette shows some id in the color of another class; else None.

    Programs that save with an indexed palette number the colors as they like. A palette in which no id has the color of
    another class is one of its own: then the ids count.
    """
    classes: dict[Color, list[int]] = {}
    for number, color in enumerate(schema.palette):
        classes.setdefault(color, []).append(number)
    used = {int(i): tuple(map(int, colors[i])) for i in present if i < len(colors) and i != schema.ignore_index}
    meant = {i: classes[color] for i, color in used.items() if color in classes}
    if wrong := [(i, numbers[0]) for i, numbers in meant.items() if i not in numbers]:
        i, number = wrong[0]
        return (
            f"its palette was reordered: id {i} is shown in the color of class {number} ({schema.classes[number]}), so "
            "ids and colors disagree. Save it as RGB: then the colors count; or as gray: then the ids count"
        )
    white = [i for i, color in used.items() if color == IGNORED_COLOR and i not in meant and i < schema.num_classes]
    if white and any(i > 0 for i in meant):
        return (
            f"its palette was reordered: id {white[0]} is shown in white, which is ignored, while other ids have the "
            "colors of their classes. Save it as RGB: then the colors count; or as gray: then the ids count"
        )
    return None


def _from_colors(pixels: Array, where: str, schema: LabelSchema, found: Findings) -> Array | None:
    if pixels.shape[2] == 4 and (pixels[..., 3] != 255).any():
        found.error(where, "has transparent pixels: fill them with a class, or save it without an alpha channel")
        return None
    if len(set(schema.palette)) < schema.num_classes:
        found.error(where, "is RGB, but two classes have the same color: save class ids as a palette or gray PNG")
        return None
    codes = pixels[..., :3].astype(np.int64) @ (65536, 256, 1)
    known = {_code(color): i for i, color in enumerate(schema.palette)}
    known.setdefault(_code(IGNORED_COLOR), schema.ignore_index)
    values, place, counts = np.unique(codes, return_inverse=True, return_counts=True)
    strange = [(int(n), int(value)) for value, n in zip(values, counts, strict=True) if int(value) not in known]
    if strange:
        strange.sort(reverse=True)
        examples = listed([f"#{value:06x} ({n} px)" for n, value in strange], 4)
        found.error(
            where,
            f"is RGB with colors of no class: {examples}. Paint with the exact colors of classes.json, without "
            "soft edges or JPEG, or save class ids as a palette or gray PNG",
        )
        return None
    ids = np.array([known[int(value)] for value in values], dtype=np.int64)
    result: Array = ids[place.reshape(codes.shape)]
    return result


def _code(color: Any) -> int:
    red, green, blue = color
    return int(red) << 16 | int(green) << 8 | int(blue)


def _luminance(color: tuple[int, int, int]) -> int:
    """Gray value of a color, ITU-R BT.601, as picture editors and Pillow convert."""
    red, green, blue = color
    return round(0.299 * red + 0.587 * green + 0.114 * blue)
