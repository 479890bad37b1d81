"""Records -> one tar, and what must be known of it; records out of the middle of a tar."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from tarfile import BLOCKSIZE, TarInfo
from typing import Any, BinaryIO, Protocol

from dsgan_datasets.shards.errors import REPAIR_HINT, damage_as_shard_error, damaged, no_file
from dsgan_datasets.shards.folder import Folder
from dsgan_datasets.shards.plan import CHECKSUM_DIGITS, Shard

#: How far a tar that may be anybody's is read: files, and bytes of a description.
_FILES_OF_A_RECORD, _LONGEST_DESCRIPTION = 8, 1 << 24
#: Types of plain files.
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)
#: Bytes that are read at a time.
_BUFFER = 1 << 20


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
    where, start = folder.at(shard.name), shard.offsets[first]
    try:
        content = memoryview(folder.read(shard.name, start, shard.offsets[end]))
    except FileNotFoundError as error:
        raise damaged(where, no_file(error), REPAIR_HINT) from error
    for number in range(first, end):
        with damage_as_shard_error(where, REPAIR_HINT):
            part = bytes(content[shard.offsets[number] - start : shard.offsets[number + 1] - start])
            files = parse_record(part, shard, number)
        yield files


def is_intact(part: bytes, shard: Shard, number: int) -> bool:
    """Whether these are the bytes of a record, as far as the manifest can tell."""
    return len(part) == shard.offsets[number + 1] - shard.offsets[number] and (
        shard.checksum(number) in (None, checksum(part))
    )


def parse_record(part: bytes, shard: Shard, number: int) -> dict[str, bytes]:
    """Extension -> content of a record's files; ValueError, with its key, if the bytes are not those of the record.

    Only what `write_tar` writes is understood: plain files, each with one header. What else a tar may hold, such as
    links, sparse files and headers that change the meaning of others, is an error, so that nothing can claim to be
    larger than the bytes that are there.
    """
    key, files, position = f"{shard.first + number:09d}", dict[str, bytes](), 0
    if not is_intact(part, shard, number):
        raise ValueError(f"record {key}, its bytes are not those that were written")
    while position < len(part):
        try:
            entry = TarInfo.frombuf(part[position : position + BLOCKSIZE], "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise ValueError(f"record {key}, it cannot be read ({error})") from error
        found, _, extension = entry.name.partition(".")
        position += BLOCKSIZE
        if found != key or extension in files or entry.type not in _PLAIN:
            raise ValueError(f"record {key}, it holds {entry.name!r:.100}")
        if not 0 <= entry.size <= len(part) - position:
            raise ValueError(f"record {key}, {entry.name!r:.100} claims {entry.size} bytes")
        files[extension] = part[position : position + entry.size]
        position += _padded(entry.size)
    return files


def names_in(file: _Readable, most: int, size: int) -> list[str]:
    """Names of the files in a tar that may be damaged, as far as they can be found.

    Args:
        file: to read from front to back.
        most: names.
        size: of the tar as it should be; what lies beyond is not read.
    """
    names: list[str] = []
    with suppress(tarfile.HeaderError, ValueError):
        while len(names) < most and size > 0:
            entry = TarInfo.frombuf(file.read(BLOCKSIZE), "utf-8", "strict")
            names.append(entry.name)
            _skip(file, min(_padded(entry.size), size))
            size -= BLOCKSIZE + _padded(entry.size)
    return names


def first_description(folder: Folder, name: str) -> dict[str, Any]:
    """What the first record of a tar says of itself (its .json); empty if there is none, or the tar is damaged."""
    with suppress(tarfile.HeaderError, OSError, ValueError, RecursionError), folder.open_whole(name) as file:
        for _ in range(_FILES_OF_A_RECORD):
            entry = TarInfo.frombuf(file.read(BLOCKSIZE), "utf-8", "strict")
            if entry.name.endswith(".json") and 0 <= entry.size <= _LONGEST_DESCRIPTION:
                found = json.loads(file.read(entry.size))
                return found if isinstance(found, dict) else {}
            _skip(file, _padded(entry.size))
    return {}


def measure(folder: Folder, name: str, most: int, bar: Bar | None = None) -> tuple[int, str]:
    """Bytes and SHA-256 (hex) of a file, which is read once.

    Args:
        folder: that it is in.
        name: of the file.
        most: bytes that are of interest: one more is read of a longer file, which may have no end.
        bar: is moved on by the bytes that were read.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    with folder.open_whole(name) as file:
        while block := file.read(min(_BUFFER, most + 1 - size)):
            digest.update(block)
            size += len(block)
            if bar is not None:
                bar.update(len(block))
    return size, digest.hexdigest()


def is_as_recorded(folder: Folder, shard: Shard, bar: Bar | None = None) -> bool:
    """Whether a shard has the recorded SHA-256; see `measure`."""
    return measure(folder, shard.name, shard.bytes, bar)[1] == shard.sha256


def _skip(file: _Readable, size: int) -> None:
    """Read over a number of bytes, or up to the end: what a server streams cannot be sought in."""
    while size > 0 and (part := file.read(min(size, _BUFFER))):
        size -= len(part)


def _padded(size: int) -> int:
    """Bytes that a file of this size takes in a tar, after its header."""
    return -(-size // BLOCKSIZE) * BLOCKSIZE


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Bar(Protocol):
    """What shows progress, such as ``tqdm``."""

    def update(self, n: int, /) -> object: ...  # noqa: D102
