"""The error of everything that is wrong with shards, and how damaged content becomes one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: What helps when a manifest or a plan is damaged.
RESTORE_HINT = "restore the original, or remove it and run the same `dsgan shards write` command, which regenerates it"
#: What helps when a shard is damaged.
REPAIR_HINT = "`dsgan shards verify FOLDER` lists the damage; with --repair it regenerates damaged shards"


class ShardError(ValueError):
    """Shards that are damaged, incomplete, or not those that were asked for."""


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """A JSON object; ShardError if the content is anything else."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{where} is damaged ({error}): {RESTORE_HINT}") from error
    if not isinstance(data, dict):
        raise ShardError(f"{where} is damaged (it holds {type(data).__name__}, not an object): {RESTORE_HINT}")
    return data


@contextmanager
def damage_as_shard_error(where: str) -> Iterator[None]:
    """Turn any error raised while parsing damaged content into a ShardError that names the file."""
    try:
        yield
    except ShardError:
        raise
    except KeyError as error:
        raise ShardError(f"{where} is damaged ({error.args[0]!r} is missing): {RESTORE_HINT}") from error
    except (TypeError, AttributeError) as error:
        raise ShardError(f"{where} is damaged (a value has the wrong type): {RESTORE_HINT}") from error
    except (ValueError, OverflowError) as error:
        raise ShardError(f"{where} is damaged ({error}): {RESTORE_HINT}") from error
