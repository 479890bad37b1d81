"""Where shards lie: a folder of this machine, or anything that fsspec reaches (s3://, gs://, hf://, memory:// …).

`UPath` (universal-pathlib) parses, joins and pickles locations. Files are read and listed through its file system
(fsspec), because UPath costs more there: it has no reads of byte ranges, asks for the type of every listed file
separately, and knows nothing of stale listings. Atomic writes to local disks are ours, see `files.atomic_write`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from fsspec.implementations.local import LocalFileSystem
from upath import UPath

from dsgan_datasets.files import atomic_write, remove_leftovers


class Folder:
    """Files by name; a file appears whole or not at all.

    On a file system of this machine a file is written under a temporary name, flushed and renamed. Elsewhere it is
    written here first and uploaded when whole: an object store shows an object when its upload is complete, and an
    interrupted upload leaves nothing.

    Args:
        location: path, or URL of a protocol that fsspec knows.

    Raises:
        ValueError: the protocol is not known, or its package is not installed.

    Example:
        >>> folder = Folder("memory://faces")
        >>> folder.write("note.json", b"{}")
        >>> folder.read("note.json"), folder.names()
        (b'{}', ['note.json'])
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        text = os.fspath(location)
        if not text.strip():
            raise ValueError("the path of the folder of shards is empty")
        if text.startswith("pipe:"):
            raise ValueError(f"{text!r}: shards are never read through a command; give a path or a URL")
        try:
            root = UPath(text.rstrip("/") or "/")
            if isinstance(root.fs, LocalFileSystem):  # absolute: other processes have other working directories
                root = UPath(os.path.abspath(os.path.expanduser(root.path)))
        except (ValueError, ImportError) as error:
            raise ValueError(f"cannot reach {text}: {error}") from error
        self._root, self._process = root, os.getpid()
        if self.local is not None and self.local.is_file():
            raise ValueError(f"{self} is a file: name the folder that the shards are in")

    @property
    def root(self) -> UPath:
        """The folder; connected anew in a process that was forked or sent this, as connections do not survive that."""
        if self._process != os.getpid():
            self._root, self._process = UPath(str(self._root)), os.getpid()
        return self._root

    @property
    def files(self) -> Any:
        """fsspec's file system."""
        return self.root.fs

    @property
    def local(self) -> Path | None:
        """The folder as a path, if it is one of this machine."""
        return Path(self._root.path) if isinstance(self.files, LocalFileSystem) else None

    def __str__(self) -> str:
        return str(self._root)

    @property
    def location(self) -> str:
        """Full path or URL."""
        return str(self)

    def at(self, name: str) -> str:
        """Full path or URL of a file."""
        return str(self._root / name)

    def _at(self, name: str) -> str:
        """A file, as the file system calls it."""
        return str((self._root / name).path if name else self._root.path)

    def names(self, under: str = "") -> list[str]:
        """Names of the files in the folder, or in a folder of it; empty if there is none."""
        with self._as_os_error(under):
            self.files.invalidate_cache()
            try:
                entries = self.files.ls(self._at(under), detail=True)
            except FileNotFoundError:
                return []
            found = [entry["name"].rstrip("/").rsplit("/", 1)[1] for entry in entries if entry["type"] == "file"]
            return sorted(found)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""
        with self._as_os_error(name):
            self.files.invalidate_cache()
            try:
                return int(self.files.size(self._at(name)))
            except FileNotFoundError:
                return None

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Content of a file, or the bytes from `start` up to `end` of it; FileNotFoundError if there is none."""
        with self._as_os_error(name):
            return bytes(self.files.cat_file(self._at(name), start=start, end=end))

    def open(self, name: str) -> IO[bytes]:
        """A file to read from, seekable."""
        with self._as_os_error(name):
            file: IO[bytes] = self.files.open(self._at(name), "rb")
            return file

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A file to write to; it appears under its name when the block ends without error."""
        local = self.local
        if local is not None:
            with self._as_os_error(name):
                (local / name).parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(local / name) as file:
                yield file
            return
        with tempfile.TemporaryDirectory(prefix="dsgan-upload-") as scratch:
            whole = Path(scratch) / Path(name).name
            with whole.open("wb") as file:
                yield file
            with self._as_os_error(name):
                self.files.put_file(os.fspath(whole), self._at(name))

    def write(self, name: str, content: bytes) -> None:
        """Create or replace a file."""
        with self.writing(name) as file:
            file.write(content)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._as_os_error(name):
            try:
                self.files.rm_file(self._at(name))
            except FileNotFoundError:
                return

    def remove_folder(self, name: str) -> None:
        """Remove a folder of this folder with all that is in it."""
        with self._as_os_error(name):
            try:
                self.files.rm(self._at(name), recursive=True)
            except FileNotFoundError:
                return

    def remove_leftovers(self, name: str) -> None:
        """Remove what a killed process left of a file that it was writing."""
        if self.local is not None:
            remove_leftovers(self.local / name)

    @contextmanager
    def _as_os_error(self, name: str) -> Iterator[None]:
        """Turn exceptions of storage packages into an OSError, so that callers need not know them."""
        try:
            yield
        except (OSError, ValueError):
            raise
        except Exception as error:
            raise OSError(f"{self.at(name) if name else self}: {error or type(error).__name__}") from error
