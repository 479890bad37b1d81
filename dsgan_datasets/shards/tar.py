"""Records -> one tar, and what must be known of it; a record out of the middle of a tar."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import tarfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from dsgan_datasets.shards.folder import Folder
from dsgan_datasets.shards.manifest import Shard

#: How far a tar that may be anybody's is read: files, and bytes of a description.
_FILES_OF_A_RECORD, _LONGEST_DESCRIPTION = 8, 1 << 20


@dataclass(frozen=True)
class TarFacts:
    """What writing a tar showed: its size, its SHA-256 (hex), and where each record begins and the last one ends."""

    bytes: int
    sha256: str
    offsets: tuple[int, ...]


def write_tar(file: BinaryIO, records: Iterable[Mapping[str, bytes]]) -> TarFacts:
    """Write records (name -> content) as USTAR; time, user and group are 0, so equal records give equal bytes.

    Example:
        >>> file = io.BytesIO()
        >>> write_tar(file, [{"0.json": b"{}", "0.png": b"..."}, {"1.json": b"{}"}]).offsets
        (0, 2048, 3072)
    """
    hashed: Any = _Hashing(file)
    offsets = [0]
    with tarfile.open(fileobj=hashed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for files in records:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
            offsets.append(hashed.written)
    return TarFacts(hashed.written, hashed.digest.hexdigest(), tuple(offsets))


class _Hashing:
    """A file that is hashed while it is written: what the disk later gives back must be what was meant."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.written = 0

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self.written += len(content)
        return self.file.write(content)

    def tell(self) -> int:
        return self.written


def read_record(folder: Folder, shard: Shard, number: int) -> dict[str, bytes]:
    """The files of one record of a shard (extension -> content), without reading the rest.

    Raises:
        ValueError: there is no such record where the manifest says.
        OSError: the shard cannot be read.
    """
    start, end = shard.offsets[number], shard.offsets[number + 1]
    part = folder.read(shard.name, start, end)
    key = f"{shard.first + number:09d}"
    files = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(part), mode="r:") as tar:
            for entry in tar:
                found, _, extension = entry.name.partition(".")
                content = tar.extractfile(entry)
                if found != key or content is None:
                    raise ValueError(f"found {entry.name!r} where record {key} should be")
                files[extension] = content.read()
    except tarfile.TarError as error:
        raise ValueError(f"no record {key} at bytes {start} … {end}: {error}") from error
    return files


def first_description(folder: Folder, name: str) -> dict[str, Any]:
    """What the first record of a tar says of itself (its .json); empty if there is none, or the tar is damaged."""
    with (
        suppress(tarfile.TarError, OSError, EOFError, ValueError),
        folder.open(name) as file,
        tarfile.open(fileobj=file, mode="r|") as tar,
    ):
        for entry in itertools.islice(tar, _FILES_OF_A_RECORD):
            content = tar.extractfile(entry) if entry.name.endswith(".json") else None
            if content is not None:
                found = json.loads(content.read(_LONGEST_DESCRIPTION))
                return found if isinstance(found, dict) else {}
    return {}


def sha256(folder: Folder, name: str) -> str:
    """SHA-256 (hex) of a file."""
    with folder.open(name) as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
