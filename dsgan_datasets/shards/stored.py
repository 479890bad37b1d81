"""The boundary to storage packages: whatever they raise becomes an OSError that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import IO

from dsgan_datasets.shards.http import WholeFilesOnly

#: What these answers of a server mean.
_STATUS = {
    401: "the server asks for credentials, or does not know these",
    403: "the server does not allow this: check the credentials, and whether they have expired",
    429: "the server is asked too much: try again later",
}


def storage_error(error: Exception, where: str, shown: Callable[[str], str], seconds: float) -> OSError:
    """What to raise for an error of a storage package.

    Args:
        error: as it was raised.
        where: the file or folder, to show.
        shown: hides the credentials in a text.
        seconds: after which silence is a timeout.

    Returns:
        a FileNotFoundError, FileExistsError, PermissionError, TimeoutError or another OSError, whose message holds
        the location, the reason, and a way out where there is one.
    """
    if isinstance(error, MemoryError):
        raise error
    status = getattr(error, "status", None)
    reason = shown(str(error)).strip() or type(error).__name__
    if isinstance(error, FileNotFoundError) or status == 404:
        return FileNotFoundError(f"{where}: there is no such file ({reason})")
    if isinstance(error, FileExistsError):
        return FileExistsError(f"{where} is there already")
    if isinstance(error, WholeFilesOnly):
        return WholeFilesOnly(f"{where}: {reason}")
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return TimeoutError(
            f"{where}: the server was silent for {seconds:g} s. Try again; the environment variable DSGAN_TIMEOUT "
            "sets how many seconds are waited"
        )
    if isinstance(error, PermissionError) or status in (401, 403):
        return PermissionError(f"{where}: {_STATUS[401 if status == 401 else 403]} ({reason})")
    if status in _STATUS:
        return OSError(f"{where}: {_STATUS[status]} ({reason})")
    if isinstance(status, int) and status >= 500:
        return OSError(f"{where}: the server reports an error of its own ({reason}). Try again later")
    again = ". Try again" if _may_pass(error) else ""
    if isinstance(error, OSError):
        return OSError(f"{where}: {reason}{again}")
    return OSError(f"{where}: the storage cannot be used ({type(error).__name__}: {reason}){again}")


def _may_pass(error: Exception) -> bool:
    """Whether trying again may help, as after a lost connection."""
    name = type(error).__name__
    return isinstance(error, ConnectionError) or any(word in name for word in ("Connect", "Payload", "IncompleteRead"))


class StoredFile:
    """A file of a storage, to read: every call passes the boundary, and `read` gives all that it is asked for.

    Args:
        opened: opens it.
        errors: the boundary.
    """

    def __init__(self, opened: Callable[[], IO[bytes]], errors: Callable[[], AbstractContextManager[None]]) -> None:
        self._errors = errors
        with errors():
            self._file = opened()

    def __enter__(self) -> StoredFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, fewer only at the end."""
        parts: list[bytes] = []
        with self._errors():
            while size > 0 and (part := self._file.read(size)):
                parts.append(part)
                size -= len(part)
        return b"".join(parts)

    def seek(self, offset: int) -> int:
        """Go to a position."""
        with self._errors():
            return self._file.seek(offset)

    def close(self) -> None:
        """Close it."""
        with self._errors():
            self._file.close()
