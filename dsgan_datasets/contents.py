"""What a file holds, whatever its name says: recognized by its first bytes, read within bounds; JSON of strangers."""

from __future__ import annotations

import json
import os
import re
import reprlib
import stat
from pathlib import Path
from typing import Any

#: Beginning of a file -> its name in messages and, for pictures, in Pillow.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"GIF8[79]a", "GIF"),
    (rb"RIFF....WEBP", "WEBP"),
    (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "TIFF"),
    (rb"BM.{4}\0{4}", "BMP"),
    (rb"P[1-6]\s", "PPM"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
    (rb"%PDF-", "PDF"),
    (rb"8BPS", "Photoshop"),
    (rb"gimp xcf ", "GIMP"),
    (rb".{4}ftyp(?:avif|avis)", "AVIF"),
    (rb".{4}ftyp(?:hei|hev|mif1)", "HEIF"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\0\0[\x01\x02]\0", "ICO"),
    (rb".{128}DICM", "DICOM"),
    (rb".{344}n[+i]1\0", "NIfTI"),
    (rb"PK(?:\x03\x04|\x05\x06|\x07\x08)", "a zip archive"),
    (rb"\x1f\x8b", "a gzip archive"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (rb"Rar!\x1a\x07", "a RAR archive"),
    (rb".{257}ustar", "a tar archive"),
    (rb"SQLite format 3\0", "an SQLite database"),
    (rb"\x93NUMPY", "a numpy array"),
    (rb"\x80[\x02-\x05]", "a pickle"),
    (rb"\s*<(?i:!doctype html|html)", "an HTML page"),
    (rb"\s*<svg|\s*<\?xml[^>]*>\s*(?:<!--.*?-->\s*|<!DOCTYPE svg[^>]*>\s*)*<svg", "SVG"),
    (rb"\s*<(?:\?xml|[A-Za-z])", "XML"),
    (rb"version https://git-lfs", "a Git LFS pointer"),
)
_KINDS = tuple((re.compile(pattern, re.DOTALL), name) for pattern, name in _BEGINNINGS)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

#: Enough to tell every kind.
HEAD = 1024

#: Bytes of a JSON file.
LONGEST_JSON = 2**26
#: Bytes that its objects may take in memory, estimated from its punctuation: a file of many small ones takes 30 times
#: its length.
_MOST_MEMORY = 600 * 2**20
_BYTES_EACH = {b"{": 240, b"[": 90, b",": 34}


class ContentError(ValueError):
    """A file holds something else than expected.

    The message continues a sentence that begins with the file's name: what was found, what is allowed, the way out.
    """


def kind_of(content: bytes) -> str:
    """What a file holds: "PNG", "a zip archive", "an HTML page", …; "" if it is nothing that is known.

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
        ContentError: longer than that, or a folder, a device, a pipe: reading it might never end.
        OSError: it is not there, or cannot be read.
    """
    path = Path(path)
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise ContentError("is a folder: give a file in it")
    if not stat.S_ISREG(found.st_mode):
        raise ContentError("is a device or a pipe: give an ordinary file")
    if found.st_size > at_most:
        raise ContentError(f"has {found.st_size} bytes, at most {at_most} are read")
    with path.open("rb") as file:
        return file.read(at_most)  # it may grow meanwhile


def parse_json(content: bytes, remedy: str = "save or export it again") -> Any:
    """A JSON file that anybody may have written, or saved again: UTF-8, with or without a byte-order mark, or UTF-16.

    Args:
        content: of the file.
        remedy: what to do about a file that is empty or not valid.

    Raises:
        ContentError: what it is instead: another format, damaged, with a key twice in one object, nested too deeply, or
            so large that it would fill the memory.

    Example:
        >>> parse_json("\ufeff{}".encode())
        {}
    """
    if not content.strip():
        raise ContentError(f"is empty: {remedy}")
    if kind := kind_of(content):
        raise ContentError(f"holds {kind}, not JSON")
    memory = sum(each * content.count(mark) for mark, each in _BYTES_EACH.items())
    if len(content) > LONGEST_JSON or memory > _MOST_MEMORY:
        raise ContentError(
            f"would fill the memory: {len(content)} bytes of JSON, of at most {LONGEST_JSON}, make about "
            f"{memory >> 20} MB of objects, of at most {_MOST_MEMORY >> 20}"
        )
    try:
        return json.loads(content, object_pairs_hook=_unique)
    except ContentError:
        raise
    except RecursionError:
        raise ContentError(f"is not valid JSON that can be read: it is nested too deeply: {remedy}") from None
    except UnicodeDecodeError as error:
        raise ContentError(f"is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except json.JSONDecodeError as error:
        other = "; it holds a table (CSV)" if _TABLE.match(content) else ""
        raise ContentError(f"is not valid JSON ({error}{other}): {remedy}") from None
    except ValueError:
        raise ContentError(
            f"is not valid JSON that can be read: a number in it has thousands of digits: {remedy}"
        ) from None


#: Two lines with the same separator in both, and no bracket at the start.
_TABLE = re.compile(rb"[^\[{\n]{1,999}([,;\t])[^\n]*\n[^\n]*\1")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ContentError(f"is not JSON that can be trusted: an object has the key {shown(twice)} twice, keep one")
    return found


_shortener = reprlib.Repr()
_shortener.maxlevel, _shortener.maxlist, _shortener.maxdict, _shortener.maxstring = 2, 4, 4, 60


def shown(value: Any) -> str:
    """A value of a stranger's file for a message: short, however long or deep it is.

    Example:
        >>> shown([[[[1]]], "eye"])
        "[[[...]], 'eye']"
    """
    return _shortener.repr(value)
