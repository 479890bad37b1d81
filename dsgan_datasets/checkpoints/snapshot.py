"""Reads the snapshot pickles of stylegan2-ada-pytorch and stylegan3 without running anything from them.

A pickle is a program: it names functions and calls them. This reader knows a handful of names and answers each with an
inert placeholder of its own; every other name ends in an error that says what was asked for. The Python source that
these files carry along (``module_src``) is left alone. Layout of the files: docs/checkpoint-format.md.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.checkpoints.pickles import (
    STORAGE_DTYPES,
    TORCH_NAMES,
    Budget,
    Holder,
    Machine,
    Name,
    Storage,
    are_counts,
    check_content,
    make_dict,
)
from dsgan_datasets.checkpoints.torch_file import read_legacy

_DTYPES = frozenset(("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"))


class PersistentObject(Holder):
    """An object of the training code, as data: its class name and its attributes."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.class_name = class_name
        self.state = state

    def child(self, name: str) -> PersistentObject:
        """The submodule of that name."""
        found = _as_dict(self.state.get("_modules", {})).get(name)
        if not isinstance(found, PersistentObject):
            raise CheckpointError(f"{self.class_name} has no submodule {name!r}")
        return found

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Parameters and buffers with their dotted names, submodules included."""
        found: dict[str, Tensor] = {}
        for kind in ("_parameters", "_buffers"):
            for name, value in _as_dict(self.state.get(kind, {})).items():
                if isinstance(value, Tensor):
                    found[f"{prefix}{name}"] = value
        for name, module in _as_dict(self.state.get("_modules", {})).items():
            if isinstance(module, PersistentObject):
                found.update(module.tensors(f"{prefix}{name}."))
        return found


def read_snapshot(path: Path, names: Mapping[tuple[str, str], Any] | None = None) -> dict[str, Any]:
    """The content of a snapshot pickle: plain data, tensors, numpy arrays of numbers and `PersistentObject`s.

    Args:
        path: a ``.pkl`` of pickle protocol 2 to 5.
        names: the allow-list, see `Machine`; None is `SNAPSHOT_NAMES`.

    Returns:
        the dict that was pickled, with keys such as ``G``, ``D``, ``G_ema``.

    Raises:
        CheckpointError: not such a file, a damaged one, or one that asks for anything outside the allow-list; the
            message names what it asked for. Nothing from the file has run.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(2)
            if len(start) < 2 or start[0] != 0x80 or not 2 <= start[1] <= 5:
                raise CheckpointError("not a pickle of protocol 2 to 5")
            file.seek(0)
            content = Machine(SNAPSHOT_NAMES if names is None else names, Budget(size)).run(file)
        if not isinstance(content, dict):
            raise CheckpointError(f"holds a {type(content).__name__}; expected the dict of a StyleGAN snapshot")
        check_content(content, size)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle may raise anything at all
        raise CheckpointError(f"{path} is damaged or not a snapshot: {type(error).__name__}: {error}") from error
    return content


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
    if not isinstance(dtype, _DType) or not isinstance(data, bytes) or len(data) != dtype.numpy().itemsize:
        raise CheckpointError("a numpy scalar does not fit its dtype")
    value: int | float | bool = np.frombuffer(data, dtype.numpy())[0].item()
    return value


def _persistent_object(meta: Any) -> PersistentObject:
    meta = _as_dict(meta)
    state = meta.get("state")
    if meta.get("type") != "class" or not isinstance(meta.get("class_name"), str) or not isinstance(state, dict):
        raise CheckpointError("a persistent object without class name and state")
    return PersistentObject(meta["class_name"], state)


def _storage(data: Any) -> Storage:
    """torch.storage._load_from_bytes: the nested legacy torch.save file of one storage."""
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
#: What the snapshots of stylegan2-ada-pytorch and stylegan3 need.
SNAPSHOT_NAMES: Mapping[tuple[str, str], Any] = {
    **{key: value for key, value in TORCH_NAMES.items() if key not in _STORAGE_NAMES},
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Name(_persistent_object),
    ("torch.storage", "_load_from_bytes"): Name(_storage),
    ("dnnlib.util", "EasyDict"): Name(make_dict),
    ("numpy", "dtype"): Name(_DType),
    ("numpy", "ndarray"): _ARRAY,
    **{
        (f"numpy.{core}.multiarray", name): Name(call)
        for core in ("core", "_core")
        for name, call in (("scalar", _number), ("_reconstruct", _array))
    },
}
