"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO
from uuid import uuid4


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, under a temporary name; flushed to the disk and renamed when the block ends without error.

    Raises:
        OSError: with the final name, if the file cannot be written; what was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    except FileNotFoundError as error:
        problem = "nothing was written: the folder is not there, or another process removed the file meanwhile"
        raise FileNotFoundError(error.errno, problem, os.fspath(path)) from error
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}, nothing was written", os.fspath(path)) from error
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
    """
    out = Path(os.path.realpath(out))
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} exists: choose another name, or remove it")
    made = [parent for parent in out.parents if not parent.exists()]
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
    """Write JSON that people may read too, whole or not at all."""
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed processes left of `path`.

    Call it only where no other process may be writing the same file: that one would lose its work, and say so.
    """
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Say before any work that nothing can be written to a folder, which may not exist yet; it leaves no trace.

    Raises:
        OSError: with the folder's name.
    """
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
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


def _flush_folder(folder: Path) -> None:
    """Make a rename last through a power cut."""
    with suppress(OSError):  # some network file systems cannot; the file itself is safe
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
