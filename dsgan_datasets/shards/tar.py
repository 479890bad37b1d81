"""Records -> one tar, and what must be known of it; records out of the middle of a tar."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from dsgan_datasets.shards.errors import REPAIR_HINT, ShardError
from dsgan_datasets.shards.folder import Folder
from dsgan_datasets.shards.plan import CHECKSUM_DIGITS, Shard

#: How far a tar that may be anybody's is read: files, and bytes of a description.
_FILES_OF_A_RECORD, _LONGEST_DESCRIPTION = 8, 1 << 20


@dataclass(frozen=True)
class TarFacts:
    """What writing a tar showed.

    Attributes:
        bytes: its size.
        sha256: of the file, hex.
        offsets: where each record begins, and where the last one ends.
        checksums: of the records, see `checksum`, one after the other.
    """

    bytes: int
    sha256: str
    offsets: tuple[int, ...]
    checksums: str


def checksum(record: bytes) -> str:
    """Checksum of the bytes of a record: the first 128 bits of their SHA-256, as 32 hex digits.

    SHA-256 rather than a CRC: it needs no further package, `sha256sum` can check it, and processors compute it in
    hardware, so it is cheap beside decoding a picture. 128 bits keep the manifest small and still rule out that a
    damaged or exchanged record passes.

    Example:
        >>> checksum(b"")
        'e3b0c44298fc1c149afbf4c8996fb924'
    """
    return hashlib.sha256(record).hexdigest()[:CHECKSUM_DIGITS]


def write_tar(file: BinaryIO, records: Iterable[Mapping[str, bytes]]) -> TarFacts:
    """Write records (name -> content) as USTAR; time, user and group are 0, so equal records give equal bytes.

    Example:
        >>> file = io.BytesIO()
        >>> write_tar(file, [{"0.json": b"{}", "0.png": b"..."}, {"1.json": b"{}"}]).offsets
        (0, 2048, 3072)
    """
    hashed: Any = _Hashing(file)
    offsets, checksums = [0], []
    with tarfile.open(fileobj=hashed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for files in records:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
            offsets.append(hashed.written)
            checksums.append(hashed.end_record())
    return TarFacts(hashed.written, hashed.digest.hexdigest(), tuple(offsets), "".join(checksums))


class _Hashing:
    """A file that is hashed while it is written: what the disk later gives back must be what was meant."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.record = hashlib.sha256()
        self.written = 0

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self.record.update(content)
        self.written += len(content)
        return self.file.write(content)

    def end_record(self) -> str:
        """Checksum of what was written since the last call."""
        found, self.record = self.record.hexdigest()[:CHECKSUM_DIGITS], hashlib.sha256()
        return found

    def tell(self) -> int:
        return self.written


def read_record(folder: Folder, shard: Shard, number: int) -> dict[str, bytes]:
    """The files of one record of a shard (extension -> content), without reading the rest.

    Args:
        folder: that the shard is in.
        shard: its entry in the manifest.
        number: of the record in the shard, 0 … shard.count - 1.

    Raises:
        ShardError: the shard is missing, or the record is not the one that was written.
        OSError: the shard cannot be read.
    """
    return next(iter(read_records(folder, shard, number, number + 1)))


def read_records(folder: Folder, shard: Shard, first: int, end: int) -> Iterator[dict[str, bytes]]:
    """The files of consecutive records of a shard, in order: records first … end - 1, with one read of the storage.

    Each record is compared with its checksum when it is asked for; the records before a damaged one are given.

    Args:
        folder: that the shard is in.
        shard: its entry in the manifest.
        first: number of the first record in the shard, from 0.
        end: number after the last one, at most shard.count.

    Raises:
        ShardError: the shard is missing, or a record is not the one that was written; names both.
        OSError: the shard cannot be read.
    """
    if not 0 <= first < end <= shard.count:
        raise IndexError(f"{shard.name} has records 0 … {shard.count - 1}, not {first} … {end - 1}")
    start = shard.offsets[first]
    try:
        content = memoryview(folder.read(shard.name, start, shard.offsets[end]))
    except FileNotFoundError as error:
        raise ShardError(f"{folder.at(shard.name)} is damaged: there is no such file. {REPAIR_HINT}") from error
    for number in range(first, end):
        part = bytes(content[shard.offsets[number] - start : shard.offsets[number + 1] - start])
        try:
            yield parse_record(part, shard, number)
        except ValueError as error:
            raise ShardError(f"{folder.at(shard.name)} is damaged: {error}. {REPAIR_HINT}") from error


def is_intact(part: bytes, shard: Shard, number: int) -> bool:
    """Whether these are the bytes of a record, as far as the manifest can tell."""
    return len(part) == shard.offsets[number + 1] - shard.offsets[number] and (
        shard.checksum(number) in (None, checksum(part))
    )


def parse_record(part: bytes, shard: Shard, number: int) -> dict[str, bytes]:
    """Extension -> content of a record's files; ValueError, with its key, if the bytes are not those of the record."""
    key, files = f"{shard.first + number:09d}", {}
    if not is_intact(part, shard, number):
        raise ValueError(f"record {key}, its bytes are not those that were written")
    try:
        with tarfile.open(fileobj=io.BytesIO(part), mode="r:") as tar:
            for entry in tar:
                found, _, extension = entry.name.partition(".")
                content = tar.extractfile(entry) if entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE) else None
                if found != key or content is None:
                    raise ValueError(f"record {key}, it holds a file {entry.name!r}")
                files[extension] = content.read()
    except tarfile.TarError as error:
        raise ValueError(f"record {key}, it cannot be read ({error})") from error
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
