"""Reads what training code of other projects saved, without running anything from it.

Such files are pickles, those of torch.save in either format, or one of these compressed with gzip. Which names are
known does not depend on that: tensors, numbers, numpy arrays, plain containers, and the "persistent" objects of
NVIDIA's code, whose Python source (``module_src``) is left alone. Every other name becomes a `Foreign` object, and only
what needs the object it stands for has to refuse it. Layout of the files: docs/checkpoint-format.md.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.checkpoints.kinds import kind_of
from dsgan_datasets.checkpoints.pickles import (
    SLACK,
    STORAGE_DTYPES,
    TORCH_NAMES,
    Budget,
    Foreign,
    Holder,
    Machine,
    Name,
    Storage,
    are_counts,
    check_content,
    make_dict,
)
from dsgan_datasets.checkpoints.torch_file import is_torch_file, read_legacy, read_torch_stream
from dsgan_datasets.files import is_file

_DTYPES = frozenset(("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"))
_START_BYTES = 512


def read_snapshot(path: Path) -> Any:
    """The content of a file that training code saved.

    Args:
        path: a pickle of protocol 2 to 5, a file of torch.save, or one of these compressed with gzip.

    Returns:
        plain data, tensors, numpy arrays of numbers, `Holder` for the persistent objects of NVIDIA's code, and
        `Foreign` for all else.

    Raises:
        CheckpointError: it is something else, which the message names, or damaged; nothing from the file has run.
    """
    if not is_file(path):
        raise CheckpointError(f"{path} is not a regular file")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _read(file, size)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # a damaged file may raise anything at all
        raise CheckpointError(
            f"{path} is damaged or cut off: {type(error).__name__}: {error}; if it was downloaded, download it again"
        ) from error


def _read(file: IO[bytes], size: int, *, compressed: bool = True) -> Any:
    start = file.read(_START_BYTES)
    file.seek(0)
    if compressed and start.startswith(b"\x1f\x8b"):
        data = _decompress(file, size)
        return _read(io.BytesIO(data), len(data), compressed=False)
    if is_torch_file(start):
        content = read_torch_stream(file, size, KNOWN_NAMES, foreign=True)
    elif start[:1] == b"\x80" and start[1:2] and 2 <= start[1] <= 5:
        content = Machine(KNOWN_NAMES, Budget(size), foreign=True).run(file)
    else:
        raise CheckpointError(f"it is {kind_of(start)}")
    check_content(content, size)
    return content


def _decompress(file: IO[bytes], size: int) -> bytes:
    """The content of a gzip file, which weights hardly make smaller: far more than the file is refused."""
    most = 4 * size + SLACK
    try:
        with gzip.GzipFile(fileobj=file) as stream:
            data = stream.read(most + 1)
    except (EOFError, zlib.error) as error:
        raise CheckpointError(f"a gzip file that is damaged or cut off ({error}): download it again") from error
    if len(data) > most:
        raise CheckpointError("refused: a gzip file that is far larger unpacked")
    return data


class _DType:
    """What `numpy.dtype` is in a snapshot: an order, and a letter with a size in bytes."""

    __slots__ = ("kind", "order")

    def __init__(self, name: Any, *_: Any) -> None:
        match = re.fullmatch(r"[<>|=]?([fiub][1248])", name) if isinstance(name, str) else None
        if match is None or match[1] not in _DTYPES:
            raise CheckpointError(
                f"numpy dtype {name if isinstance(name, str) else type(name)} is not on the allow-list"
            )
        self.kind, self.order = match[1], "<"

    def build(self, state: Any) -> None:
        """Take the order: the second item of numpy's state."""
        self.order = ">" if isinstance(state, tuple) and state[1:2] == (">",) else "<"

    def numpy(self) -> np.dtype[Any]:
        """The type itself."""
        return np.dtype(self.order + self.kind)


class _Array(np.ndarray[Any, Any]):
    """What `numpy.ndarray` is in a snapshot: empty until its state has been checked."""

    def build(self, state: Any) -> None:
        """Take shape, type and values."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise CheckpointError("a numpy array with a malformed state")
        _, shape, dtype, fortran, data = state
        data = _as_bytes(data)
        if not isinstance(dtype, _DType) or not isinstance(data, bytes) or not are_counts(shape) or len(shape) > 8:
            raise CheckpointError("a numpy array with malformed shape, dtype or values")
        kind = dtype.numpy()
        if math.prod(shape) * kind.itemsize != len(data):
            raise CheckpointError(f"a numpy array of shape {shape} has {len(data)} bytes")
        self.__setstate__((1, tuple(shape), kind, bool(fortran), data))  # type: ignore[arg-type]  # its stub errs


def _array(kind: Any, shape: Any, *_: Any) -> _Array:
    """numpy.core.multiarray._reconstruct: an empty array; its state follows."""
    if kind is not _ARRAY or shape != (0,):
        raise CheckpointError("a numpy array that is not rebuilt as numpy does")
    return _Array((0,), np.uint8)


def _number(dtype: Any, data: Any) -> int | float | bool:
    """numpy.core.multiarray.scalar, as a Python number."""
    data = _as_bytes(data)
    if not isinstance(dtype, _DType) or not isinstance(data, bytes) or len(data) != dtype.numpy().itemsize:
        raise CheckpointError("a numpy scalar does not fit its dtype")
    value: int | float | bool = np.frombuffer(data, dtype.numpy())[0].item()
    return value


def _array_of_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> _Array:
    """numpy.core.numeric._frombuffer: an array of pickle protocol 5."""
    found = _array(_ARRAY, (0,))
    found.build((1, shape, dtype, order == "F", data))
    return found


def _array_of_dill(function: Any, arguments: Any, state: Any, *_: Any) -> _Array:
    """dill._dill._create_array: the function that makes an array, its arguments, and the array's state."""
    found = _array(*arguments) if isinstance(arguments, tuple) and function is _RECONSTRUCT else _array(None, None)
    found.build(state)
    return found


def _as_bytes(data: Any) -> Any:
    """Bytes, which Python 2 writes as text, and protocol 5 as a bytearray."""
    try:
        return data.encode("latin-1") if isinstance(data, str) else bytes(data) if isinstance(data, bytearray) else data
    except UnicodeEncodeError as error:
        raise CheckpointError("bytes that are text of other characters") from error


def _encode(text: Any, encoding: Any = None, *_: Any) -> bytes:
    """_codecs.encode: bytes, before pickle protocol 3."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise CheckpointError("bytes that are not written as text of one byte a character")
    encoded: bytes = _as_bytes(text)
    return encoded


def _new_object(kind: Any, *_: Any) -> Foreign:
    """copyreg._reconstructor: an object of protocol 0 or 1."""
    return Foreign(kind.name if isinstance(kind, Foreign) else "copyreg._reconstructor")


def _persistent_object(meta: Any) -> Holder:
    meta = _as_dict(meta)
    state = meta.get("state")
    if meta.get("type") != "class" or not isinstance(meta.get("class_name"), str) or not isinstance(state, dict):
        raise CheckpointError("a persistent object without class name and state")
    return Holder(meta["class_name"], state)


def _storage(data: Any) -> Storage:
    """torch.storage._load_from_bytes: the nested legacy torch.save file of one storage."""
    data = _as_bytes(data)
    if not isinstance(data, bytes):
        raise CheckpointError("a storage must be given as bytes")
    try:
        found = read_legacy(io.BytesIO(data), len(data), _STORAGE_NAMES)
    except CheckpointError as error:
        raise CheckpointError(f"nested file of a storage: {error}") from error
    if not isinstance(found, Storage):
        raise CheckpointError("a nested torch.save file must hold exactly one storage")
    return found


def _as_dict(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"expected a dict, found a {type(value).__name__}")
    return value


_ARRAY = object()  # the class itself, which is only ever handed to _reconstruct
_STORAGE_NAMES = {("torch", name): dtype for name, dtype in STORAGE_DTYPES.items()}
_RECONSTRUCT = Name(_array)
#: All that is known, whatever the file.
KNOWN_NAMES: Mapping[tuple[str, str], Any] = {
    **TORCH_NAMES,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Name(_persistent_object),
    ("torch.storage", "_load_from_bytes"): Name(_storage),
    ("dnnlib.util", "EasyDict"): Name(make_dict),
    ("_codecs", "encode"): Name(_encode),
    **{(module, "_reconstructor"): Name(_new_object) for module in ("copyreg", "copy_reg")},
    ("dill._dill", "_create_array"): Name(_array_of_dill),
    ("numpy", "dtype"): Name(_DType),
    ("numpy", "ndarray"): _ARRAY,
    **{
        (f"numpy.{core}.{module}", name): call
        for core in ("core", "_core")
        for module, name, call in (
            ("multiarray", "scalar", Name(_number)),
            ("multiarray", "_reconstruct", _RECONSTRUCT),
            ("numeric", "_frombuffer", Name(_array_of_buffer)),
        )
    },
}
