"""Arrays of float32 as the bytes of .npy files, and back: nothing in a file decides how much memory is taken.

Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import io
import math

import numpy as np


def npy(values: np.ndarray) -> bytes:
    """Content of the .npy file (version 1.0) of an array."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(values), allow_pickle=False)
    return buffer.getvalue()


def read_npy(content: bytes, shape: tuple[int | None, ...], what: str = "the array") -> np.ndarray:
    """Inverse of `npy` for float32; numpy itself would make room for whatever size a header claims.

    Args:
        content: of the file, which anybody may have made.
        shape: that it must have; None allows every length of that axis.
        what: to call it in messages.

    Raises:
        ValueError: another version, type, order or shape, or not as many bytes as the shape needs.

    Example:
        >>> read_npy(npy(np.zeros((2, 3), np.float32)), (2, None)).shape
        (2, 3)
    """
    file = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{what} is an .npy file of another version than 1.0: save it with numpy.save")
        found, columns_first, kind = np.lib.format.read_array_header_1_0(file)
    except ValueError:
        raise
    except Exception as error:  # a damaged header may raise anything at all
        raise ValueError(f"{what} is a damaged .npy file ({type(error).__name__})") from error
    values = content[file.tell() :]
    fits = len(found) == len(shape) and all(want in (None, got) for got, want in zip(found, shape, strict=True))
    if kind != np.dtype("<f4") or columns_first or not fits or len(values) != 4 * math.prod(found):
        axes = " × ".join("any length" if length is None else str(length) for length in shape)
        raise ValueError(f"{what} is {kind} {found} in {len(values)} bytes, not float32 of {axes}")
    return np.frombuffer(values, "<f4").reshape(found).copy()
