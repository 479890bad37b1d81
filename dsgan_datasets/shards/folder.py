"""Where shards lie: a folder of this machine, or anything that fsspec reaches (s3://, gs://, hf://, memory:// …)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

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
        if not os.fspath(location).strip():
            raise ValueError("the path of the folder of shards is empty")
        self.location = os.fspath(location).rstrip("/") or "/"
        if self.location.startswith("pipe:"):
            raise ValueError(f"{self.location!r}: shards are never read through a command; give a path or a URL")
        self._connect()

    def _connect(self) -> None:
        try:
            self._files, self._path = fsspec.core.url_to_fs(self.location)
        except (ValueError, ImportError) as error:
            raise ValueError(f"cannot reach {self.location}: {error}") from error
        if isinstance(self._files, LocalFileSystem):
            self.location = self._path  # absolute: processes elsewhere have another working directory
            if Path(self._path).is_file():
                raise ValueError(f"{self.location} is a file: name the folder that the shards are in")
        self._process = os.getpid()

    @property
    def files(self) -> Any:
        """fsspec's file system, made anew in a process that was forked: connections do not survive that."""
        if self._process != os.getpid():
            self._connect()
        return self._files

    @property
    def local(self) -> Path | None:
        """The folder as a path, if it is one of this machine."""
        return Path(self._path) if isinstance(self._files, LocalFileSystem) else None

    def __str__(self) -> str:
        return self.location

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["location"])  # type: ignore[misc]

    def at(self, name: str) -> str:
        """Full path or URL of a file."""
        return f"{self.location}/{name}"

    def _at(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"

    def names(self, under: str = "") -> list[str]:
        """Names of the files in the folder, or in a folder of it; empty if there is none."""
        with self._as_os_error(under):
            self.files.invalidate_cache()
            try:
                entries = self.files.ls(self._at(under) if under else self._path, detail=True)
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
        """Make or replace a file."""
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
        """Storage packages raise exceptions of their own; whoever calls should need to know none of them."""
        try:
            yield
        except (OSError, ValueError):
            raise
        except Exception as error:
            raise OSError(f"{self.at(name) if name else self.location}: {error or type(error).__name__}") from error
