"""Pictures as the bytes of image files, and back: the one place where pictures are encoded, and where they are opened.

Shapes: C channels, H rows, W columns. Equal pixels give equal bytes with equal versions of Pillow and its libraries.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from dsgan_datasets.contents import kind_of, read_bounded

Picture = Tensor | np.ndarray | Image.Image

#: A picture of more pixels is not opened unless asked for. A progressive JPEG takes 10 bytes a pixel.
MOST_PIXELS = 2**25
#: Bytes of a picture's file; the largest picture has fewer even if it does not compress at all.
_LONGEST_FILE = 2**28
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

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


class PictureError(ValueError):
    """A picture cannot be read: damaged, of another format or size than expected, or not a picture.

    Args:
        what: file or place of the picture.
        reason: what was found, what is allowed, and the way out; continues a sentence that begins with `what`.
        size: (H, W) found, if that is what is wrong; else None.
    """

    def __init__(self, what: str, reason: str = "", size: tuple[int, int] | None = None) -> None:
        super().__init__(f"{what} {reason}".strip())
        self.reason = reason
        self.size = size


def open_picture(
    source: bytes | str | os.PathLike[str],
    *,
    formats: Sequence[str] = ("PNG",),
    size: tuple[int, int] | None = None,
    most_pixels: int = MOST_PIXELS,
    what: str | None = None,
    verified: bool = False,
    decoded: bool = True,
) -> Image.Image:
    """A picture that anybody may have made, decoded: everything that reads one comes through here.

    The format is recognized by content, not by name, and only those asked for reach Pillow, which would start other
    programs for some (Ghostscript for PostScript). The size is checked before anything is decoded, and a
    PNG's checksums are compared: Pillow stops looking at them once it has all rows.

    Args:
        source: the content, or the path of a file.
        formats: that are allowed, as Pillow calls them: "PNG", "JPEG", "WEBP", …
        size: (H, W) that it must have; None allows every size.
        most_pixels: H·W at most.
        what: to call it in messages; None is the path, or "a picture".
        verified: whether the content is known to be what was written, so that checksums need not be compared again.
        decoded: False only checks format, checksums and size, before something else decodes it.

    Returns:
        with its pixels loaded (unless `decoded` is False), in the mode that the file has.

    Raises:
        PictureError: what it is instead, and what is allowed.
        OSError: the file is not there, or cannot be read.

    Example:
        >>> open_picture(b"%!PS-Adobe-3.0 EPSF-3.0", what="mask.png")
        Traceback (most recent call last):
        dsgan_datasets.images.PictureError: mask.png holds PostScript, not PNG: save it as PNG
    """
    if what is None:
        what = "a picture" if isinstance(source, bytes) else os.fspath(source)
    if not isinstance(source, bytes):
        try:
            source = read_bounded(source, _LONGEST_FILE)
        except ValueError as error:
            raise PictureError(what, str(error)) from None
    allowed = " or ".join(formats)
    if (found := kind_of(source)) not in formats:
        holds = f"holds {found}, not {allowed}" if found else "is not a picture" if source else "is empty"
        raise PictureError(what, f"{holds}: save it as {allowed}")
    if found == "PNG" and not verified and (damage := _png_damage(source)):
        raise PictureError(what, f"is a damaged PNG file ({damage}): copy or save it again")
    try:
        picture = Image.open(io.BytesIO(source), formats=[found])
    except Image.DecompressionBombError as error:
        raise PictureError(what, f"has more than the {most_pixels} pixels that are read: make it smaller") from error
    except Exception as error:  # a damaged file may raise anything at all
        raise _damaged(what, found, error) from error
    width, height = picture.size
    if size is not None and (height, width) != tuple(size):
        raise PictureError(
            what,
            f"is {width}×{height} pixels, expected {size[1]}×{size[0]}: it must not be scaled or cropped",
            (height, width),
        )
    if width * height > most_pixels:
        raise PictureError(what, f"is {width}×{height} pixels, at most {most_pixels} are read: make it smaller")
    try:
        if decoded:
            picture.load()
    except Exception as error:
        raise _damaged(what, found, error) from error
    return picture


def read_pixels(
    content: bytes,
    mode: str,
    *,
    formats: Sequence[str] = ("PNG",),
    size: tuple[int, int] | None = None,
    verified: bool = False,
) -> np.ndarray:
    """The pixels of an image file: [H, W], or [H, W, 3] for RGB.

    Args:
        content: of the file.
        mode: the Pillow mode that it must have: "L" (8-bit grayscale), "I;16" (16-bit) or "RGB".
        formats: see `open_picture`.
        size: (H, W) that it must have; None allows every size.
        verified: see `open_picture`.

    Raises:
        PictureError: another mode, format or size, or not a readable image.
    """
    picture = open_picture(content, formats=formats, size=size, verified=verified)
    if picture.mode != mode:
        raise PictureError("a picture", f"has mode {picture.mode}, not {mode}")
    return np.asarray(picture)


def _png_damage(content: bytes) -> str:
    """What is wrong with the chunks of a PNG file and their checksums; "" if nothing (W3C PNG, section 5.3)."""
    view, at = memoryview(content), len(_PNG_SIGNATURE)
    while at + 12 <= len(view):
        length = int.from_bytes(view[at : at + 4], "big")
        kind, end = bytes(view[at + 4 : at + 8]), at + 8 + length
        if end + 4 > len(view):
            break
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return f"wrong checksum at byte {at}"
        if kind == b"IEND":
            return ""
        at = end + 4
    return "it ends early"


def _damaged(what: str, kind: str, error: Exception) -> PictureError:
    """Pillow's own words are left out where they are the address of an object."""
    reason = f" ({error})" if str(error) and "0x" not in str(error) else ""
    return PictureError(what, f"is a damaged {kind} file{reason:.200}: copy or save it again")


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
