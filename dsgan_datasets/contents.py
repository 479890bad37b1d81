"""What a file holds, whatever its name says: told by its first bytes, read within bounds."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

#: Beginning of a file -> its name in messages and, for pictures, in Pillow.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"GIF8[79]a", "GIF"),
    (rb"RIFF....WEBP", "WEBP"),
    (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "TIFF"),
    (rb"BM.{4}\0{4}", "BMP"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
    (rb"%PDF-", "PDF"),
    (rb"8BPS", "Photoshop"),
    (rb"gimp xcf ", "GIMP"),
    (rb".{4}ftyp(?:avif|avis)", "AVIF"),
    (rb".{4}ftyp(?:hei|hev|mif1)", "HEIF"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\0\0[\x01\x02]\0", "ICO"),
    (rb"PK(?:\x03\x04|\x05\x06|\x07\x08)", "zip archive"),
    (rb"\x1f\x8b", "gzip archive"),
    (rb"7z\xbc\xaf\x27\x1c", "7z archive"),
    (rb"Rar!\x1a\x07", "RAR archive"),
    (rb".{257}ustar", "tar archive"),
    (rb"SQLite format 3\0", "SQLite database"),
    (rb"\x93NUMPY", "numpy array"),
    (rb"\x80[\x02-\x05]", "pickle"),
    (rb"\s*<(?i:!doctype html|html)", "HTML page"),
    (rb"\s*<svg|\s*<\?xml[^>]*>\s*(?:<!--.*?-->\s*|<!DOCTYPE svg[^>]*>\s*)*<svg", "SVG"),
    (rb"\s*<(?:\?xml|[A-Za-z])", "XML"),
    (rb"version https://git-lfs", "Git LFS pointer"),
)
_KINDS = tuple((re.compile(pattern, re.DOTALL), name) for pattern, name in _BEGINNINGS)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

#: Enough to tell every kind.
HEAD = 1024


def kind_of(content: bytes) -> str:
    """A word for what a file holds: "PNG", "zip archive", "HTML page", …; "" if it is none that is known.

    Args:
        content: the file, or at least its first `HEAD` bytes.

    Example:
        >>> kind_of(b"%!PS-Adobe-3.0 EPSF-3.0")
        'PostScript'
    """
    head = content[:HEAD].removeprefix(_BYTE_ORDER_MARK)
    return next((name for pattern, name in _KINDS if pattern.match(head)), "")


def read_bounded(path: str | os.PathLike[str], at_most: int) -> bytes:
    """Content of an ordinary file.

    Args:
        path: of the file.
        at_most: bytes; what a stranger's file may take of the memory.

    Raises:
        ValueError: longer than that, or a folder, a device, a pipe: reading it might never end.
        OSError: it is not there, or cannot be read.
    """
    path = Path(path)
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise ValueError("is a folder: give a file in it")
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("is a device or a pipe: give an ordinary file")
    if found.st_size > at_most:
        raise ValueError(f"has {found.st_size} bytes, at most {at_most} are read")
    with path.open("rb") as file:
        return file.read(at_most)  # it may grow meanwhile
