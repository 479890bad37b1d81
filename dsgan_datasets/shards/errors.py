"""The error of everything that is wrong with shards, and how damaged content becomes one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dsgan_datasets.checks import one_line
from dsgan_datasets.credentials import without_credentials

#: What helps when a manifest or a plan is damaged.
RESTORE_HINT = "Restore the original, or remove it and run the same `dsgan shards write` command, which regenerates it"
#: What helps when a shard is damaged.
REPAIR_HINT = "`dsgan shards verify FOLDER` lists the damage; with --repair it regenerates damaged shards"
#: What is wrong with a shard that is not there.
NO_FILE = "there is no such file"
#: Characters of a parser's message that are quoted.
_LONGEST = 500


class NotAFile(FileNotFoundError):
    """There is a folder, a pipe or a device where a file should be: opening it might wait without end."""


def no_file(error: FileNotFoundError) -> str:
    """What is wrong with a shard that is not there, in words."""
    return error.args[1] if isinstance(error, NotAFile) else NO_FILE


class ShardError(ValueError):
    """Shards that are damaged, incomplete, or not those that were asked for.

    The message is printable and shows no credentials: it may quote what a stranger's file holds, or a URL.

    Example:
        >>> tmp.mkdir()
        >>> try:
        ...     ShardDataset(tmp)
        ... except ShardError as error:
        ...     print(str(error).rpartition(tmp.name)[2].partition(":")[0].strip())
        has no manifest.json
    """

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(one_line, without_credentials(message).split("\n"))))


def damaged(where: str, reason: str, hint: str = RESTORE_HINT) -> ShardError:
    """The error for a file that is not as it was written."""
    return ShardError(f"{where} is damaged: {reason}. {hint}")


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """A JSON object; ShardError if the content is anything else."""
    with damage_as_shard_error(where):
        data = json.loads(content)
        if not isinstance(data, dict):
            raise ValueError(f"it holds {type(data).__name__}, not an object")
        return data


@contextmanager
def damage_as_shard_error(where: str, hint: str = RESTORE_HINT) -> Iterator[None]:
    """The boundary to content that may be anybody's: any error of reading it is a ShardError that names the file.

    Parsers raise nearly every kind of error for hostile content. Errors of the storage (OSError) are none of the
    content, and pass; so does a lack of memory.
    """
    try:
        yield
    except (ShardError, OSError, MemoryError):
        raise
    except Exception as error:
        raise damaged(where, _reason(error), hint) from error


def _reason(error: Exception) -> str:
    """The error in words, not in those of programmers."""
    if isinstance(error, KeyError):
        return f"{error.args[0]!r:.80} is missing"
    if isinstance(error, TypeError | AttributeError):
        return "a value has the wrong type"
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return f"{error}"[:_LONGEST] or type(error).__name__
