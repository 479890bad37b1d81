"""Where shards lie: a folder of this machine, or anything that fsspec reaches (s3://, gs://, hf://, memory:// …).

`UPath` (universal-pathlib) parses and joins locations. Files are read and listed through its file system (fsspec),
because UPath costs more there: it has no reads of byte ranges, asks for the type of every listed file separately, and
knows nothing of stale listings. Atomic writes to local disks are ours, see `files.atomic_write`; so are reads through
HTTP, see `http.py`. Names are never given to a call that takes patterns: they may hold brackets and stars.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.parse import unquote

import fsspec
from fsspec.callbacks import TqdmCallback
from fsspec.implementations.local import LocalFileSystem
from upath import UPath

from dsgan_datasets.credentials import secrets_of, without_credentials
from dsgan_datasets.files import atomic_write, create, is_file, is_folder, remove_leftovers
from dsgan_datasets.shards import http
from dsgan_datasets.shards.errors import NotAFile
from dsgan_datasets.shards.stored import StoredFile, storage_error

#: Seconds of silence after which a server counts as stalled.
TIMEOUT_VARIABLE, _TIMEOUT = "DSGAN_TIMEOUT", 30.0


def timeout() -> float:
    """Seconds without a byte after which a server counts as stalled; the environment variable DSGAN_TIMEOUT, or 30.

    Raises:
        ValueError: DSGAN_TIMEOUT is not a positive number.
    """
    text = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(text or _TIMEOUT)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{TIMEOUT_VARIABLE} must be a positive number of seconds, not {text!r}")
    return seconds


def location_text(location: str | os.PathLike[str]) -> str:
    """A path or URL as text; ValueError for anything else."""
    if not isinstance(location, str | os.PathLike):
        raise ValueError(f"expected the path or URL of a folder of shards, not {location!r:.80}")
    return os.fspath(location)


#: Protocol -> the extra that installs what it needs.
_EXTRAS = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3"}


class Folder:
    """Files by name; a file appears whole or not at all.

    On a file system of this machine a file is written under a temporary name, flushed and renamed. Elsewhere it is
    written here first and uploaded when whole: an object store shows an object when its upload is complete, and an
    interrupted upload leaves nothing.

    A location may hold credentials (``https://user:password@host/set``, ``…?sig=…``). They are used, and never shown:
    `str`, `at` and every error hide them.

    Args:
        location: path, or URL of a protocol that fsspec knows.

    Raises:
        ValueError: the protocol is not known, or its package is not installed.
        OSError: the storage cannot be reached.

    Example:
        >>> folder = Folder("memory://faces")
        >>> folder.write("note.json", b"{}")
        >>> folder.read("note.json"), folder.names()
        (b'{}', ['note.json'])
        >>> str(Folder("https://me:secret@host/faces"))
        'https://***@host/faces'
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        text = location_text(location)
        self._secrets = secrets_of(text)
        if not text.strip():
            raise ValueError("the path of the folder of shards is empty")
        if text.startswith("pipe:"):
            raise ValueError(f"{self._shown(text)!r}: shards are never read through a command; give a path or a URL")
        # What follows a "?" belongs to every request through HTTP; elsewhere it is part of a name.
        self._base, self._query = text, ""
        if text.lower().startswith(("http://", "https://")):
            self._base, mark, query = text.partition("?")
            self._query = mark + query
        self._base = self._base.rstrip("/") or "/"
        self._root, self._process = self._connect(), os.getpid()
        if self.local is not None:  # absolute: other processes have other working directories
            self._base = os.path.abspath(os.path.expanduser(self._root.path))
            self._root = UPath(self._base)
            if is_file(self.local):
                raise ValueError(f"{self} is a file: name the folder that the shards are in")

    def _connect(self) -> UPath:
        try:
            root = UPath(self._base, **_options(self._base))
            root.fs  # noqa: B018 (some packages connect here)
            return root
        except MemoryError:
            raise
        except Exception as error:
            kind = ValueError if isinstance(error, ValueError | ImportError) else OSError
            reason = self._shown(f"{error}" or type(error).__name__)
            extra = _EXTRAS.get(self._base.partition("://")[0].lower())
            if isinstance(error, ImportError) and extra is not None:
                reason += f". pip install 'dsgan_datasets[{extra}]'"
            raise kind(f"cannot reach {self._shown(self._base)}: {reason}") from None

    def __reduce__(self) -> tuple[type[Folder], tuple[str]]:
        return Folder, (self.location,)

    @property
    def root(self) -> UPath:
        """The folder; connected anew in a process that was forked, as connections do not survive that."""
        if self._process != os.getpid():
            self._root, self._process = self._connect(), os.getpid()
        return self._root

    @property
    def files(self) -> Any:
        """fsspec's file system."""
        return self.root.fs

    @property
    def local(self) -> Path | None:
        """The folder as a path, if it is one of this machine."""
        return Path(self._root.path) if isinstance(self._root.fs, LocalFileSystem) else None

    @property
    def _is_http(self) -> bool:
        return "http" in self.files.protocol

    def __str__(self) -> str:
        return self._shown(self._base + self._query)

    def __repr__(self) -> str:
        return f"Folder({str(self)!r})"

    @property
    def location(self) -> str:
        """Full path or URL, with the credentials that it was given; `str` hides them."""
        return self._base + self._query

    def url(self, name: str) -> str:
        """Full path or URL of a file, with credentials."""
        return f"{self._base.rstrip('/')}/{name}{self._query}"

    def at(self, name: str) -> str:
        """Full path or URL of a file, to show: without credentials."""
        return self._shown(self.url(name) if name else self.location)

    def _shown(self, text: str) -> str:
        return without_credentials(text, self._secrets)

    def _at(self, name: str) -> str:
        """A file, as the file system calls it."""
        return str((self.root / name).path if name else self.root.path) + self._query

    def names(self, under: str = "") -> list[str]:
        """Names of the files in the folder, or in a folder of it; empty if there is none, or if it cannot be listed."""
        with self._errors(under):
            self.files.invalidate_cache()
            try:
                entries = self.files.ls(self._at(under), detail=True)
            except FileNotFoundError:
                return []
            found = [entry["name"].rstrip("/").rsplit("/", 1)[1] for entry in entries if entry["type"] == "file"]
            if self._is_http:  # links of a page
                found = [unquote(name.partition("?")[0]) for name in found]
            return sorted({name for name in found if name})

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""
        with self._errors(name):
            self.files.invalidate_cache()
            try:
                return int(self.files.size(self._at(name)))
            except FileNotFoundError:
                return None

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Content of a file, or the bytes from `start` up to `end` of it; FileNotFoundError if there is none."""
        with self._errors(name):
            if self._is_http:
                return http.read(self.files, self._at(name), start, end)
            self._check_ordinary(name)
            return bytes(self.files.cat_file(self._at(name), start=start, end=end))

    def open(self, name: str) -> BinaryIO | StoredFile:
        """A file to read from, seekable.

        Raises:
            WholeFilesOnly: here or when it is read: a web server that gives no parts of files, see `open_whole`.
            OSError: it cannot be read.
        """
        if (local := self.local) is not None:
            self._check_ordinary(name)
            return (local / name).open("rb")
        return StoredFile(lambda: self._open(name), lambda: self._errors(name))

    def open_whole(self, name: str) -> BinaryIO | StoredFile:
        """A file to read from front to back; any server can give that."""
        if not self._is_http:
            return self.open(name)
        return StoredFile(lambda: http.open_whole(self.files, self._at(name)), lambda: self._errors(name))

    def _open(self, name: str) -> IO[bytes]:
        if self._is_http:
            return http.open_parts(self.files, self._at(name))
        file: IO[bytes] = self.files.open(self._at(name), "rb")
        return file

    def _check_ordinary(self, name: str) -> None:
        """NotAFile if something else than a file has the name, on this machine: a pipe would be waited for."""
        if (local := self.local) is not None and not stat.S_ISREG(mode := (local / name).stat().st_mode):
            kind = "folder" if stat.S_ISDIR(mode) else "device or a pipe"
            reason = f"there is a {kind} in its place: move that elsewhere"
            raise NotAFile(errno.ENOENT, reason, os.fspath(local / name))

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A file to write to; it appears under its name when the block ends without error."""
        local = self.local
        if local is not None:
            (local / name).parent.mkdir(parents=True, exist_ok=True)
            if is_folder(local / name):
                raise IsADirectoryError(
                    errno.EISDIR, "there is a folder in its place: move that elsewhere", self.at(name)
                )
            with atomic_write(local / name) as file:
                yield file
            return
        self._check_writable()
        with tempfile.TemporaryDirectory(prefix="dsgan-upload-") as scratch:
            whole = Path(scratch) / "file"
            with whole.open("wb") as file:
                yield file
            with self._errors(name):
                self._upload(whole, name)

    def write(self, name: str, content: bytes) -> None:
        """Create or replace a file."""
        with self.writing(name) as file:
            file.write(content)

    def create(self, name: str, content: bytes) -> None:
        """Create a file that must not be there yet: of several processes one succeeds.

        A storage that cannot do that in one step looks first and writes then; read the file afterwards.

        Raises:
            FileExistsError: it is there.
            OSError: it cannot be written.
        """
        if (local := self.local) is not None:
            (local / name).parent.mkdir(parents=True, exist_ok=True)
            create(local / name, content)
            return
        self._check_writable()
        with self._errors(name):
            self.files.invalidate_cache()
            try:
                self.files.pipe_file(self._at(name), content, mode="create")
                return
            except (TypeError, NotImplementedError):
                if self.files.exists(self._at(name)):
                    raise FileExistsError(name) from None
            self.files.pipe_file(self._at(name), content)

    def _check_writable(self) -> None:
        if self._is_http:
            raise OSError(
                f"{self}: a web server can be read from, not written to: write to a folder or an object store"
            )

    def _upload(self, whole: Path, name: str) -> None:
        """Upload a file. An interrupted upload is given up for good: what arrived of it is invisible, and is billed."""
        bar = {"desc": f"uploading {name}", "unit": "B", "unit_scale": True, "delay": 2, "leave": False}
        arguments = (os.fspath(whole), self._at(name))
        try:
            with TqdmCallback(tqdm_kwargs=bar) as callback:
                if self.files.async_impl:
                    _cancellable(self.files, "_put_file", *arguments, callback=callback)
                else:
                    self.files.put_file(*arguments, callback=callback)
        except BaseException:
            with suppress(Exception):
                self.remove_leftovers(name)
            raise

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._errors(name), suppress(FileNotFoundError):
            self.files.rm_file(self._at(name))

    def remove_folder(self, name: str) -> None:
        """Remove a folder of this folder with all files in it."""
        if (local := self.local) is not None:
            with suppress(FileNotFoundError):
                shutil.rmtree(local / name)
            return
        for file in self.names(name):
            self.remove(f"{name}/{file}")
        with suppress(Exception):  # an object store has no folders
            self.files.rmdir(self._at(name))

    def remove_leftovers(self, name: str) -> None:
        """Remove what a killed process left of a file that it was writing or uploading."""
        if (local := self.local) is not None:
            remove_leftovers(local / name)
        elif hasattr(self.files, "list_multipart_uploads"):  # S3
            bucket, key, _ = self.files.split_path(self._at(name))
            with suppress(OSError), self._errors(name):  # not everyone may look for uploads, nor can every server
                found = self.files.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key)
                for upload in found.get("Uploads", []):
                    if upload["Key"] == key:
                        self.files.abort_mpu(bucket, key, upload["UploadId"])

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Errors of storage packages as OSErrors that name the file and show no credentials.

        What a package raised is not chained: its text, and that of its own causes, may hold the URL as it is.
        """
        if self.local is not None:
            yield
            return
        try:
            yield
        except Exception as error:
            raise storage_error(error, self.at(name), self._shown, timeout()) from None


def _options(location: str) -> dict[str, Any]:
    """Limits of time, for file systems whose own are long; what the user configured in fsspec goes first."""
    protocol = location.partition("://")[0].lower()
    options: dict[str, Any] = {}
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        seconds = timeout()  # and none for the whole: a large tar may take long
        options = {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)}}
    elif protocol in ("s3", "s3a"):
        seconds, retries = timeout(), {"max_attempts": 1}  # s3fs tries five times itself
        options = {"config_kwargs": {"connect_timeout": seconds, "read_timeout": seconds, "retries": retries}}
    configured = fsspec.config.conf.get(protocol, {})
    return {name: value for name, value in options.items() if name not in configured}


def _cancellable(files: Any, method: str, *arguments: Any, **keywords: Any) -> None:
    """Call an asynchronous method of a file system; when this is interrupted, the call is, too, and has ended."""
    ended = threading.Event()

    async def call() -> None:
        try:
            await getattr(files, method)(*arguments, **keywords)
        finally:
            ended.set()

    future = asyncio.run_coroutine_threadsafe(call(), files.loop)
    try:
        future.result()
    except BaseException:
        if future.cancel():
            ended.wait(5)
        raise
