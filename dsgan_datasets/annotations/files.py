"""Files that somebody handed over: a folder of any depth, a zip archive, or a file alone."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from dsgan_datasets.contents import ContentError, kind_of, read_bounded, shown
from dsgan_datasets.files import is_file, is_folder

#: Bytes of one file, and files of a folder or an archive.
LONGEST_FILE, _MOST_FILES = 2**28, 100_000
#: Bytes of the table at the end of a zip archive, which is read whole.
_LONGEST_TABLE = 2**24
#: Names that file managers of Windows, macOS and network drives leave in folders.
_LEFT_BY_SYSTEMS = ("Thumbs.db", "desktop.ini", "Icon\r")


@dataclass(frozen=True)
class File:
    """One of them.

    Attributes:
        name: to call it in messages: its path.
        path: within what was handed over, with slashes.
        read: gives the content; raises a ContentError or an OSError.
    """

    name: str
    path: str
    read: Callable[[], bytes]

    @property
    def suffix(self) -> str:
        """Ending of the name, in small letters."""
        return PurePosixPath(self.path).suffix.lower()


def files_in(given: Path, name: Callable[[Path], str] = str) -> list[File]:
    """All files of a folder or a zip archive, ordered by path, but hidden ones and those of file managers.

    Args:
        given: folder, archive or file.
        name: what to call a path in messages.

    Raises:
        ContentError: an archive that cannot be read, or more than 100,000 files.
        OSError: it is not there.
    """
    if is_folder(given):
        found = list(_walked(given, name))
    elif _is_zip(given):
        found = _packed(given, name(given))
    else:
        found = [File(name(given), given.name, partial(read_bounded, given, LONGEST_FILE))]
    return sorted((file for file in found if not _left_behind(file.path)), key=lambda file: file.path)


def _walked(folder: Path, name: Callable[[Path], str]) -> Iterator[File]:
    count = 0
    for parent, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not _left_behind(f)]
        for file in files:
            if (count := count + 1) > _MOST_FILES:
                raise ContentError(f"holds more than {_MOST_FILES} files: give the folder of the annotations")
            path = Path(parent, file)
            yield File(name(path), path.relative_to(folder).as_posix(), partial(read_bounded, path, LONGEST_FILE))


def _left_behind(path: str) -> bool:
    """Hidden, or of a file manager: __MACOSX, @eaDir, Thumbs.db, …"""
    parts = PurePosixPath(path).parts
    return any(part.startswith((".", "__", "@")) or part in _LEFT_BY_SYSTEMS for part in parts)


def _is_zip(path: Path) -> bool:
    if not is_file(path):
        return False
    with path.open("rb") as file:
        return kind_of(file.read(4)) == "a zip archive"


def _packed(path: Path, name: str) -> list[File]:
    try:
        _check_table(path)
        archive = zipfile.ZipFile(path)  # closed with the last file that is read from it
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    except OSError:
        raise
    except Exception as error:
        raise ContentError(f"is a damaged zip archive ({shown(str(error))}): unpack it, and give the folder") from None
    if len(entries) > _MOST_FILES:
        raise ContentError(f"holds more than {_MOST_FILES} files: unpack it, and give the folder of the annotations")
    return [
        File(f"{name}/{entry.filename}", entry.filename.replace("\\", "/"), partial(_unpacked, archive, entry))
        for entry in entries
    ]


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(entry) as file:
            content = file.read(LONGEST_FILE + 1)
    except OSError:
        raise
    except Exception as error:  # zipfile and what is behind it raise nearly anything for a damaged or encrypted file
        raise ContentError(
            f"cannot be unpacked ({shown(str(error))}): unpack the archive, and give the folder"
        ) from None
    if len(content) > LONGEST_FILE:
        raise ContentError(f"has more than {LONGEST_FILE} bytes unpacked, which is the most that is read")
    return content


def _check_table(path: Path) -> None:
    """Before zipfile reads the table of contents: it may be as long as the archive."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 2**16 - 22, 0))
        end = file.read()
    at = end.rfind(b"PK\x05\x06")
    if at < 0 or len(end) < at + 22:
        raise ValueError("it ends early")
    if int.from_bytes(end[at + 12 : at + 16], "little") > _LONGEST_TABLE or b"PK\x06\x07" in end[max(at - 20, 0) : at]:
        raise ValueError("its table of contents is too long, or of the format zip64")
