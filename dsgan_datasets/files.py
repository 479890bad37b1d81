"""Files that appear whole or not at all, and whether they are there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO
from uuid import uuid4

#: What `link` fails with on file systems that have no second names.
_WITHOUT_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)

#: What `stat` fails with where nothing is; a link to itself leads nowhere.
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def exists(path: Path) -> bool:
    """Whether something is there.

    What keeps from knowing, such as a folder that may not be entered, is an error: it is neither free nor missing. To
    the methods of `Path` it is missing since Python 3.14.

    Raises:
        OSError: with the name and the reason.

    Example:
        >>> exists(tmp)
        False
    """
    return _mode(path) != 0


def is_file(path: Path) -> bool:
    """Whether a regular file is there, or a link to one; errors as of `exists`.

    Example:
        >>> is_file(tmp)
        False
    """
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Whether a folder is there, or a link to one; errors as of `exists`.

    Example:
        >>> tmp.mkdir()
        >>> is_folder(tmp)
        True
    """
    return stat.S_ISDIR(_mode(path))


def _mode(path: Path) -> int:
    """The type and permissions of what is there; 0 if nothing is."""
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno in _NOTHING_THERE:
            return 0
        raise
    except ValueError:  # no name at all: it holds a null character, or is not UTF-8
        return 0


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, under a temporary name; flushed to the disk and renamed when the block ends without error.

    The temporary name is unique among all processes of all machines: containers on one volume share process numbers.

    Raises:
        OSError: with the final name, if the file cannot be written; what was there before is still there.

    Example:
        >>> tmp.mkdir()
        >>> with atomic_write(tmp / "report.txt") as file:
        ...     _ = file.write(b"done")
        ...     (tmp / "report.txt").exists()  # not yet
        False
        >>> (tmp / "report.txt").read_bytes()
        b'done'
    """
    with _temporary(path) as (temporary, file):
        yield file
        _flush(file)
        temporary.replace(path)
        _flush_folder(path.parent)


def create(path: Path, content: bytes) -> None:
    """Write a file that must not be there yet, whole or not at all; of several processes one succeeds.

    Raises:
        FileExistsError: it is there.
        OSError: it cannot be written.

    Example:
        >>> tmp.mkdir()
        >>> create(tmp / "claim", b"by this process")
        >>> create(tmp / "claim", b"by another one")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
            ...
        FileExistsError: [Errno 17] is there already: 'claim'
    """
    with _temporary(path) as (temporary, file):
        file.write(content)
        _flush(file)
        try:
            os.link(temporary, path)  # unlike a rename, it never replaces a file
        except FileExistsError:
            raise FileExistsError(errno.EEXIST, "is there already", os.fspath(path)) from None
        except OSError as error:
            if error.errno not in _WITHOUT_LINKS:
                raise
            with path.open("xb") as only:
                only.write(content)
                _flush(only)
        _flush_folder(path.parent)


@contextmanager
def _temporary(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A locked file beside `path`, which is gone afterwards; errors name `path`."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            _lock(file)
            yield temporary, file
    except OSError as error:
        if error.errno is None or error.filename not in (None, os.fspath(temporary)):
            raise  # of another file, which what is written came from
        problem = f"{error.strerror}, nothing was written"
        if isinstance(error, FileNotFoundError):
            problem = "nothing was written: the folder is not there, or another process removed the file meanwhile"
        raise OSError(error.errno, problem, os.fspath(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A folder to write to, under a temporary name beside `out`: renamed when the block ends without error, or removed.

    Args:
        out: new, or an empty folder; nothing else is replaced.

    Raises:
        ValueError: something is at `out`.
        OSError: with the final name, if the folder cannot be written; nothing is left.

    Example:
        >>> with written_whole(tmp / "out") as folder:
        ...     _ = (folder / "part.txt").write_text("1")
        >>> [file.name for file in (tmp / "out").iterdir()]
        ['part.txt']
    """
    out = Path(os.path.realpath(out))
    if exists(out) and not (is_folder(out) and not any(out.iterdir())):
        raise ValueError(f"{out} exists: choose another name, or remove it")
    made = [parent for parent in out.parents if not exists(parent)]
    temporary = out.with_name(f".{out.name}.{uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(out)
        _flush_folder(out.parent)
    except OSError as error:
        if error.filename is not None and not os.fspath(error.filename).startswith(os.fspath(temporary)):
            raise  # about another file: the source cannot be read
        raise OSError(error.errno, f"{error.strerror or error}, nothing was written", os.fspath(out)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # it holds the finished folder
                parent.rmdir()


def write_json(path: Path, content: object) -> None:
    """Write JSON that people may read too, whole or not at all.

    Example:
        >>> tmp.mkdir()
        >>> write_json(tmp / "a.json", {"seed": 3})
        >>> (tmp / "a.json").read_text().split()
        ['{', '"seed":', '3', '}']
    """
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


@contextmanager
def one_at_a_time(folder: Path, patience: float = 10.0) -> Iterator[None]:
    """Only one block with this folder runs at a time, on all threads and processes: to read a file, then to replace it.

    Nothing is written for it. A file system that cannot lock folders lets all blocks run.

    Args:
        folder: of the file; it must exist.
        patience: seconds to wait for another block.

    Raises:
        TimeoutError: another block has run that long.
        OSError: the folder cannot be opened.

    Example:
        >>> tmp.mkdir()
        >>> with one_at_a_time(tmp):
        ...     with one_at_a_time(tmp, patience=0):  # doctest: +IGNORE_EXCEPTION_DETAIL
        ...         pass
        Traceback (most recent call last):
            ...
        TimeoutError: [Errno 110] another program keeps it locked: 'folder'
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        end = time.monotonic() + patience
        while not _lock(descriptor):
            if time.monotonic() >= end:
                problem = f"another program keeps it locked for {patience:g} s: try again, or end that program"
                raise TimeoutError(errno.ETIMEDOUT, problem, os.fspath(folder))
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed processes left of `path`; those of processes at work are locked, and stay.

    A file system without locks cannot tell them apart: there, a process at work loses its file, and says so.

    Example:
        >>> tmp.mkdir()
        >>> (tmp / ".data.json.killed.tmp").touch()
        >>> remove_leftovers(tmp / "data.json")
        >>> list(tmp.iterdir())
        []
    """
    names = os.listdir(path.parent) if is_folder(path.parent) else []
    for temporary in (path.with_name(name) for name in names if name.endswith(".tmp")):
        if temporary.name.startswith(f".{path.name}."):  # a name is not a pattern: it may hold brackets and stars
            with suppress(FileNotFoundError), temporary.open("r+b") as file:
                if _lock(file):
                    temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Say before any work that nothing can be written to a folder, which may not exist yet; it leaves no trace.

    Raises:
        OSError: with the folder's name.

    Example:
        >>> check_writable(tmp / "new" / "folder")
        >>> (tmp / "new").exists()
        False
    """
    made = [parent for parent in (folder, *folder.parents) if not exists(parent)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, f"cannot be written to: {error.strerror}", os.fspath(folder)) from error
    finally:
        for parent in made:
            with suppress(OSError):
                parent.rmdir()


def _lock(file: BinaryIO | int) -> bool:
    """Lock a file, or what a descriptor is of, until it is closed; False if another process has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here
        return True
    return True


def _flush(file: BinaryIO) -> None:
    """Wait until the disk has the file."""
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make a rename last through a power cut."""
    with suppress(OSError):  # some network file systems cannot; the file itself is safe
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
