"""Reads the snapshot pickles of stylegan2-ada-pytorch and stylegan3 without running anything from them.

A pickle is a program: it names functions and calls them. This reader knows a handful of names and answers each with an
inert stand-in of its own; every other name ends in an error that says what was asked for. The Python source that these
files carry along (``module_src``) is left alone. Layout of the files: docs/checkpoint-format.md.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from torch import Tensor

from dsgan_datasets.checkpoints.errors import CheckpointError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_NUMBER = {"f": {2: "e", 4: "f", 8: "d"}, "i": {1: "b", 2: "h", 4: "i", 8: "q"}, "u": {1: "B", 2: "H", 4: "I", 8: "Q"}}


class PersistentObject:
    """An object of the training code, as data: its class name and its attributes."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.class_name = class_name
        self.state = state

    def __setstate__(self, state: Any) -> NoReturn:
        raise CheckpointError("a persistent object is given a second state")

    def child(self, name: str) -> PersistentObject:
        """The submodule of that name."""
        found = _as_dict(self.state.get("_modules", {})).get(name)
        if not isinstance(found, PersistentObject):
            raise CheckpointError(f"{self.class_name} has no submodule {name!r}")
        return found

    def tensors(self, prefix: str = "", seen: set[int] | None = None) -> dict[str, Tensor]:
        """Parameters and buffers with their dotted names, submodules included.

        Raises:
            CheckpointError: a submodule that stands in two places: forty such levels would hold 2^40 modules.
        """
        seen = set() if seen is None else seen
        if id(self) in seen:
            raise CheckpointError(f"submodule {prefix}{self.class_name} stands in two places of its network")
        seen.add(id(self))
        found: dict[str, Tensor] = {}
        for kind in ("_parameters", "_buffers"):
            for name, value in _as_dict(self.state.get(kind, {})).items():
                if isinstance(value, Tensor):
                    found[f"{prefix}{name}"] = value
        for name, module in _as_dict(self.state.get("_modules", {})).items():
            if isinstance(module, PersistentObject):
                found.update(module.tensors(f"{prefix}{name}.", seen))
        return found


def read_snapshot(path: Path) -> dict[str, Any]:
    """The content of a snapshot pickle: plain data, tensors, numpy arrays of numbers and `PersistentObject`s.

    Args:
        path: a ``.pkl`` of pickle protocol 2 to 5.

    Returns:
        the dict that was pickled, with keys such as ``G``, ``D``, ``G_ema``.

    Raises:
        CheckpointError: not such a file, a damaged one, or one that asks for anything outside the allow-list; the
            message names what it asked for. Nothing from the file has run.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is no regular file")
    data = path.read_bytes()
    if len(data) < 2 or data[0] != 0x80 or not 2 <= data[1] <= 5:
        raise CheckpointError(f"{path} is not a pickle of protocol 2 to 5")
    content = _load(_SnapshotUnpickler, io.BytesIO(data), path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected the dict of a StyleGAN snapshot")
    return dict(content)


def _load(unpickler: type[pickle.Unpickler], stream: io.BytesIO, what: object) -> Any:
    """The next pickle of the stream."""
    try:
        start = stream.tell()
        _check_opcodes(stream)
        stream.seek(start)
        return unpickler(stream).load()
    except CheckpointError as error:
        raise CheckpointError(f"{what}: {error}") from error
    except Exception as error:  # a damaged pickle may raise anything at all
        raise CheckpointError(f"{what} is damaged or no snapshot: {type(error).__name__}: {error}") from error


def _check_opcodes(stream: io.BytesIO) -> None:
    """Refuse what costs memory or looks elsewhere before a name is asked for: far memo places, extensions."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) > count:
            raise CheckpointError(f"refused: opcode {count} stores at place {argument} of the memo")
        if opcode.name.startswith("EXT"):
            raise CheckpointError("refused: the file asks for an entry of the extension registry")


class _Allowed:
    """A callable that a pickle may name. It has no attributes that a pickle could set."""

    __slots__ = ("_make",)
    _make: Callable[..., Any]

    def __init__(self, make: Callable[..., Any]) -> None:
        object.__setattr__(self, "_make", make)

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise CheckpointError(f"the file tries to set {name!r} on a function")

    def __setstate__(self, state: Any) -> NoReturn:
        raise CheckpointError("the file tries to change a function")


class _Dict(dict[Any, Any]):
    """Stands in for OrderedDict and EasyDict; attributes that a pickle would set on it are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _DType:
    """Stands in for numpy.dtype: a letter, a size in bytes, an order."""

    __slots__ = ("kind", "order", "size")

    def __init__(self, name: str) -> None:
        match = re.fullmatch(r"[<>|=]?([fiub])(\d)", name) if isinstance(name, str) else None
        if match is None or (match[1] != "b" and int(match[2]) not in _NUMBER[match[1]]):
            raise CheckpointError(f"numpy dtype {name!r} is not on the allow-list")
        self.kind, self.size, self.order = match[1], int(match[2]), "<"

    def __setstate__(self, state: Any) -> None:
        self.order = "<" if state[1] in "<|=" else ">"


class _Array(np.ndarray[Any, Any]):
    """What `numpy.ndarray` is in a snapshot: empty until its state has been checked."""

    def __setstate__(self, state: Any, /) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise CheckpointError("a numpy array with a malformed state")
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _DType) or not isinstance(data, bytes) or not _counts(shape) or len(shape) > 8:
            raise CheckpointError("a numpy array with malformed shape, dtype or values")
        if math.prod(shape) * dtype.size != len(data):
            raise CheckpointError(f"a numpy array of shape {shape} has {len(data)} bytes")
        kind = np.dtype(f"{dtype.order}{dtype.kind}{dtype.size}")
        super().__setstate__((1, tuple(shape), kind, bool(fortran), data))  # type: ignore[arg-type]  # its stub errs


def _array(kind: Any, shape: Any, _: Any) -> _Array:
    """numpy.core.multiarray._reconstruct: an empty array; its state follows."""
    if kind is not _Array or shape != (0,):
        raise CheckpointError("a numpy array that is not rebuilt as numpy does")
    return _Array(shape, np.uint8)


def _number(dtype: Any, data: Any) -> int | float | bool:
    """numpy.core.multiarray.scalar, as a Python number."""
    if not isinstance(dtype, _DType) or not isinstance(data, bytes) or len(data) != dtype.size:
        raise CheckpointError("a numpy scalar does not fit its dtype")
    code = "?" if dtype.kind == "b" else _NUMBER[dtype.kind][dtype.size]
    value: int | float | bool = struct.unpack(dtype.order + code, data)[0]
    return value


def _persistent_object(meta: Any) -> PersistentObject:
    meta = _as_dict(meta)
    state = meta.get("state")
    if meta.get("type") != "class" or not isinstance(meta.get("class_name"), str) or not isinstance(state, dict):
        raise CheckpointError("a persistent object without class name and state")
    return PersistentObject(meta["class_name"], state)


def _storage(data: Any) -> Tensor:
    """torch.storage._load_from_bytes: the nested legacy torch.save file of one storage, as a flat tensor."""
    if not isinstance(data, bytes):
        raise CheckpointError("a storage must be given as bytes")
    stream = io.BytesIO(data)
    header = [_load(_StorageUnpickler, stream, "storage header") for _ in range(3)]
    if header[:2] != [_LEGACY_MAGIC, 1001]:
        raise CheckpointError("a storage is not in the legacy torch.save format")
    declared = _load(_StorageUnpickler, stream, "storage")
    keys = _load(_StorageUnpickler, stream, "storage keys")
    if not isinstance(declared, _DeclaredStorage) or keys != [declared.key]:
        raise CheckpointError("a nested torch.save file must hold exactly one storage")
    body = stream.read()
    expected = declared.count * declared.dtype.itemsize
    if len(body) != 8 + expected or struct.unpack("<q", body[:8])[0] != declared.count:
        raise CheckpointError(
            f"a storage of {declared.count} × {declared.dtype} has {len(body) - 8} bytes, not {expected}"
        )
    if not declared.count:
        return torch.empty(0, dtype=declared.dtype)
    return torch.frombuffer(bytearray(body[8:]), dtype=declared.dtype)


class _DeclaredStorage:
    """What the persistent id of a storage says about it."""

    __slots__ = ("count", "dtype", "key")

    def __init__(self, key: str, dtype: torch.dtype, count: int) -> None:
        self.key, self.dtype, self.count = key, dtype, count

    def __setstate__(self, state: Any) -> NoReturn:
        raise CheckpointError("the file tries to change a storage")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v2: a view with its own strides, checked against the storage, made contiguous."""
    if not isinstance(storage, Tensor) or not _counts([offset]) or not _counts(size) or not _counts(stride):
        raise CheckpointError("a tensor with malformed storage, offset, size or stride")
    if len(size) != len(stride) or len(size) > 8:
        raise CheckpointError(f"a tensor with size {size} and stride {stride}")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    elements = 1
    for n in size:
        elements *= n
    # A zero stride could turn one stored number into terabytes: a tensor is never larger than its storage.
    if elements and (last >= storage.numel() or elements > storage.numel()):
        raise CheckpointError(
            f"a tensor of size {size}, stride {stride} reaches beyond its {storage.numel()} stored values"
        )
    if not elements:
        return torch.empty(size, dtype=storage.dtype)
    return torch.as_strided(storage, size, stride, offset).clone(memory_format=torch.contiguous_format)


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise CheckpointError("a parameter without a tensor")
    return data


def _make_set(values: Any = ()) -> set[Any]:
    return set(values)


class _SnapshotUnpickler(pickle.Unpickler):
    """Knows these names and no others."""

    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Allowed(_persistent_object),
        ("torch._utils", "_rebuild_parameter"): _Allowed(_parameter),
        ("torch._utils", "_rebuild_tensor_v2"): _Allowed(_tensor),
        ("torch.storage", "_load_from_bytes"): _Allowed(_storage),
        ("collections", "OrderedDict"): _Dict,
        ("dnnlib.util", "EasyDict"): _Dict,
        ("builtins", "set"): _Allowed(_make_set),
        ("__builtin__", "set"): _Allowed(_make_set),  # protocol 2
        ("numpy", "ndarray"): _Array,
        ("numpy.core.multiarray", "_reconstruct"): _Allowed(_array),
        ("numpy._core.multiarray", "_reconstruct"): _Allowed(_array),
        ("numpy", "dtype"): _Allowed(lambda name, *_: _DType(name)),
        ("numpy.core.multiarray", "scalar"): _Allowed(_number),
        ("numpy._core.multiarray", "scalar"): _Allowed(_number),
    }

    def find_class(self, module: str, name: str) -> Any:
        found = self._ALLOWED.get((module, name))
        if found is None:
            raise CheckpointError(f"refused: the file asks for {module}.{name}, which is not on the allow-list")
        return found

    def persistent_load(self, pid: Any) -> NoReturn:
        raise CheckpointError("refused: the file asks for an external object (persistent id)")


class _StorageUnpickler(pickle.Unpickler):
    """For the pickles inside a storage: the only names are torch's storage types."""

    def find_class(self, module: str, name: str) -> Any:
        if module != "torch" or name not in _STORAGE_DTYPES:
            raise CheckpointError(f"refused: a nested file asks for {module}.{name}, which is not on the allow-list")
        return _STORAGE_DTYPES[name]

    def persistent_load(self, pid: Any) -> _DeclaredStorage:
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or any(pid[5:]):
            raise CheckpointError("refused: a nested file asks for something other than a storage")
        _, dtype, key, _, count = pid[:5]
        if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or not _counts([count]):
            raise CheckpointError("a malformed storage")
        return _DeclaredStorage(key, dtype, count)


def _counts(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(type(v) is int and 0 <= v < 2**48 for v in values)


def _as_dict(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"expected a dict, found a {type(value).__name__}")
    return value
