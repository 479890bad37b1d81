"""Reads what torch.save wrote, in the zip format (since PyTorch 1.6) and in the one before it.

Why not ``torch.load(weights_only=True)``? It runs no code from a file, but it is not bounded. With torch 2.14, a file
of one kilobyte, sixty tuples of tuples as a dict key, keeps it hashing forever; one of 350 bytes calls ``bytearray``
and gets its 4 GB; a deflated archive may unpack to any size. A scan of the opcodes in front of it would have to follow
every value through the memo to see that, which is what the machine in `pickles` does anyway; and that one is needed for
snapshots too. So it reads these files as well: tensors, numbers, texts and plain containers.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.checkpoints.pickles import (
    TORCH_NAMES,
    Budget,
    Foreign,
    Machine,
    Storage,
    are_counts,
    check_content,
)
from dsgan_datasets.files import is_file

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_HEADER_OPCODES = 1000
_MAX_ENTRIES = 100_000  # of a zip file; a state dict has one for each tensor

#: How a file in the older format begins: protocol 2, and the magic number.
_LEGACY_START = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e"


def is_torch_file(start: bytes) -> bool:
    """Whether a file that begins with these bytes may be one of torch.save."""
    return start.startswith((b"PK\x03\x04", _LEGACY_START))


def read_torch_file(path: Path, names: Mapping[tuple[str, str], Any] = TORCH_NAMES) -> Any:
    """Content of a ``.pt`` / ``.pth`` file, restricted to tensors and plain containers, on the CPU.

    Tensors keep their strides and share storages as they did when they were saved. Ordered dicts are plain dicts, which
    keep their order.

    Args:
        path: the file.
        names: the allow-list, see `Machine`.

    Raises:
        CheckpointError: unreadable, or it holds anything else; nothing from the file has run.
    """
    if not is_file(path):
        raise CheckpointError(f"{path} is not a regular file")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            magic = file.read(4)
            file.seek(0)
            if magic[:1] != b"\x80" and magic != b"PK\x03\x04":
                raise CheckpointError("neither of the two formats of torch.save")
            content = read_torch_stream(file, size, names)
        check_content(content, size)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # a damaged file may raise anything at all
        raise CheckpointError(
            f"{path} is damaged or cut off, or not a torch file: {type(error).__name__}: {error}"
        ) from error
    return content


def read_torch_stream(
    file: IO[bytes], size: int, names: Mapping[tuple[str, str], Any], *, foreign: bool = False
) -> Any:
    """`read_torch_file` of an open file at its start, without `check_content`; a damaged one may raise anything.

    Args:
        file: at its start.
        size: bytes in it.
        names, foreign: see `Machine`.
    """
    read = _read_zip if file.read(1) == b"P" else read_legacy
    file.seek(0)
    return read(file, size, names, foreign=foreign)


def _read_zip(file: IO[bytes], size: int, names: Mapping[tuple[str, str], Any], *, foreign: bool) -> Any:
    """Content of an archive with entries x/data.pkl and x/data/0, x/data/1, …; all stored as they are."""
    if _count_entries(file) > _MAX_ENTRIES:
        raise CheckpointError(f"refused: an archive of more than {_MAX_ENTRIES} files")
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(entries) != len(archive.infolist()):
            raise CheckpointError("refused: an archive with two files of one name")
        roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1 or f"{roots[0]}constants.pkl" in entries:
            raise CheckpointError(
                "an archive, but not one of torch.save: unpack it and pass the file inside "
                "(TorchScript archives cannot be read)"
            )
        root, budget = roots[0], Budget(size)

        def read(name: str, expected: int | None = None) -> bytes:
            entry = entries[f"{root}{name}"]
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                raise CheckpointError(f"refused: {name} in the archive is compressed, or longer than the archive")
            if expected not in (None, entry.file_size):
                raise CheckpointError(f"a storage of {expected} bytes has {entry.file_size}")
            return archive.read(entry)

        if f"{root}byteorder" in entries and read("byteorder", 6) != b"little":
            raise CheckpointError("a file of big-endian numbers, which cannot be read")

        def fill(key: str, values: Tensor) -> None:
            as_bytes(values)[:] = read(f"data/{key}", values.nbytes)

        storages = _Storages(budget, fill, foreign=foreign)
        return Machine(names, budget, storages, foreign=foreign).run(io.BytesIO(read("data.pkl")))


def _count_entries(file: IO[bytes]) -> int:
    """An upper bound, by the signature of each: ZipFile itself would take 1 kB of memory for 50 bytes of file."""
    count = sum(block.count(b"PK\x01\x02") for block in iter(lambda: file.read(2**20), b""))
    file.seek(0)
    return count


def read_legacy(stream: IO[bytes], size: int, names: Mapping[tuple[str, str], Any], *, foreign: bool = False) -> Any:
    """Content in the format before PyTorch 1.6: three pickles of header, the object, the keys of its storages, and
    their values one after the other.

    Args:
        stream: at its start.
        size: bytes in the stream.
        names, foreign: see `Machine`.

    Raises:
        CheckpointError: it is not allowed or does not fit together. A damaged one may raise anything else.
    """
    budget = Budget(size)
    magic, version, system = (Machine({}, budget, None, _HEADER_OPCODES).run(stream) for _ in range(3))
    if magic != LEGACY_MAGIC or version != _LEGACY_VERSION or not isinstance(system, dict):
        raise CheckpointError("neither of the two formats of torch.save")
    if system.get("little_endian") is not True:
        raise CheckpointError("a file of big-endian numbers, which cannot be read")
    storages = _Storages(Budget(size), lambda key, values: None, foreign=foreign)
    content = Machine(names, budget, storages, foreign=foreign).run(stream)
    keys = Machine({}, budget).run(stream)
    if not isinstance(keys, list) or any(type(key) is not str for key in keys) or sorted(keys) != sorted(storages.made):
        raise CheckpointError("the storages that follow are not those that the tensors refer to")
    for key in keys:
        _read_values(stream, storages.made[key].values)
    if stream.read(1):
        raise CheckpointError("the file continues after its last storage")
    return content


def _read_values(stream: IO[bytes], values: Tensor) -> None:
    expected = struct.pack("<q", values.numel())
    if stream.read(8) != expected or stream.readinto(as_bytes(values)) != values.nbytes:  # type: ignore[attr-defined]
        raise CheckpointError(f"a storage of {values.numel()} × {values.dtype} is shorter or longer than that")


def as_bytes(values: Tensor) -> memoryview:
    """The bytes of a flat tensor, to be written to."""
    return values.view(torch.uint8).numpy().data


class _Storages:
    """Answers the persistent ids of storages, each made once.

    Args:
        budget: pays for their bytes.
        fill: is called with the key and the empty values of each.
        foreign: whether classes may be asked for, too, as the older format does for whole networks.
    """

    def __init__(self, budget: Budget, fill: Callable[[str, Tensor], None], *, foreign: bool) -> None:
        self.made: dict[str, Storage] = {}
        self._foreign = foreign
        self._budget = budget
        self._fill = fill

    def __call__(self, pid: Any) -> Storage | Foreign:
        if self._foreign and isinstance(pid, tuple) and pid[:1] == ("module",) and isinstance(pid[1], Foreign):
            return pid[1]  # a class, with its source, which is left alone
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or pid[5:] not in ((), (None,)):
            raise CheckpointError("refused: the file asks for an external object that is not a storage")
        _, dtype, key, _, count = pid[:5]
        if not isinstance(dtype, torch.dtype) or type(key) is not str or not are_counts([count]):
            raise CheckpointError("a malformed storage")
        if key not in self.made:
            self._budget.spend(count * dtype.itemsize)
            self.made[key] = Storage(torch.empty(count, dtype=dtype, device="cpu"))
            self._fill(key, self.made[key].values)
        values = self.made[key].values
        if values.dtype != dtype or values.numel() != count:
            raise CheckpointError("two tensors see one storage as different types")
        return self.made[key]
