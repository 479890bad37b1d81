"""Files of a web server: parts of a file are asked for, and what comes is compared with what was asked for.

fsspec's own file believes the server: it takes a whole file for a part of it, and reads an answer of any length. The
session, with its credentials and settings, is fsspec's.
"""

from __future__ import annotations

import io
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import IO, Any

from fsspec.asyn import sync

#: Bytes of one request, at least: a stream asks for some records at a time.
_REQUEST = 1 << 20
#: Bytes of a file that is read whole: the manifest of ten million samples.
_LARGEST_DOCUMENT = 1 << 29


class WholeFilesOnly(OSError):
    """The server answers with whole files when it is asked for a part."""


def read(files: Any, url: str, start: int | None = None, end: int | None = None) -> bytes:
    """A file, or the bytes from `start` up to `end` of it, fewer where it ends.

    Args:
        files: fsspec's file system.
        url: of the file.
        start, end: both or none.

    Raises:
        WholeFilesOnly: the server does not give parts.
        OSError: there is no such file, the server gives something else, or more than any manifest has.
    """
    content: bytes = sync(files.loop, _read, files, url, start, end)
    return content


def open_parts(files: Any, url: str) -> IO[bytes]:
    """A seekable file, of which only what is read is asked for."""
    return io.BufferedReader(_Parts(files, url), _REQUEST)


def open_whole(files: Any, url: str) -> IO[bytes]:
    """A file to read from front to back, in one request."""
    # With any size, so that fsspec does not ask for it.
    file: IO[bytes] = files.open(url, "rb", block_size=0, size=1, headers=_headers(files))
    return file


class _Parts(io.RawIOBase):
    def __init__(self, files: Any, url: str) -> None:
        self._files, self._url, self._position = files, url, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end of a file of a server is not known")
        self._position = offset if whence == io.SEEK_SET else self._position + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        part = read(self._files, self._url, self._position, self._position + len(buffer))
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)


async def _read(files: Any, url: str, start: int | None, end: int | None) -> bytes:
    if start is None or end is None:
        async with _answer(files, url, {}) as response:
            return await _at_most(response, _LARGEST_DOCUMENT)
    async with _answer(files, url, {"Range": f"bytes={start}-{end - 1}"}) as response:
        if response.status == 416:  # beyond the end
            return b""
        if response.status != 206:
            raise WholeFilesOnly(
                "this server gives whole files only, and no parts of a file (HTTP range requests), which reading "
                "samples in any order needs: read with ShardDataset, which takes each tar as a whole, or copy the set "
                "to a disk"
            )
        given = response.headers.get("Content-Range", "")
        if not re.match(rf"bytes {start}-\d+/", given):
            raise OSError(f"the server was asked for the bytes from {start} on, and gave {given or 'others'!r}")
        return await _at_most(response, end - start)


@asynccontextmanager
async def _answer(files: Any, url: str, headers: dict[str, str]) -> AsyncIterator[Any]:
    session = await files.set_session()
    settings = {**files.kwargs, "headers": {**_headers(files), **headers}}
    async with session.get(files.encode_url(url), **settings) as response:
        if response.status == 404:
            raise FileNotFoundError(url)
        if response.status != 416:
            response.raise_for_status()
        if response.headers.get("Content-Encoding", "identity") not in ("", "identity"):
            raise OSError("the server compresses what it sends, though it was asked not to")
        yield response


def _headers(files: Any) -> dict[str, str]:
    """What the user configured, and that nothing is compressed: a small answer must not become a large one."""
    return {**files.kwargs.get("headers", {}), "Accept-Encoding": "identity"}


async def _at_most(response: Any, size: int) -> bytes:
    """The body; OSError as soon as it is larger."""
    parts, left = [], size
    while part := await response.content.read(1 << 20):
        parts.append(part)
        left -= len(part)
        if left < 0:
            raise OSError(f"the server sends more than the {size} bytes that can be there")
    return b"".join(parts)
