"""Plans and manifests of earlier formats -> the current one, a step a version: plain JSON in, plain JSON out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dsgan_datasets.checkpoints.migrations import recipe_v1_to_v2, schema_v1_to_v2
from dsgan_datasets.shards.errors import RESTORE_HINT, ShardError

#: What a manifest and a plan begin with.
FORMAT = {"format": "dsgan-shards", "version": 2}


def check_format(data: Mapping[str, Any], where: str) -> None:
    """ShardError unless this version can read a manifest or a plan; `where` names the file."""
    if data.get("format") != FORMAT["format"]:
        found = f"its format is {data.get('format')!r:.40}, not {FORMAT['format']!r}"
        raise ShardError(f"{where} is not a manifest of shards ({found}). {RESTORE_HINT}")
    version = data.get("version")
    if type(version) is not int or version not in (*_STEPS, FORMAT["version"]):
        raise ShardError(
            f"{where} has version {version!r:.40} of the {FORMAT['format']} format; this version of dsgan_datasets "
            f"reads {min(_STEPS)} to {FORMAT['version']}: use the version of dsgan_datasets that wrote it"
        )


def migrate(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A manifest or a plan in the current format.

    Args:
        data: as read.
        where: names the file in errors.

    Raises:
        ShardError: another format, or a version that this one does not read.
    """
    check_format(data, where)
    current = dict(data)
    while current["version"] != FORMAT["version"]:
        current = _STEPS[current["version"]](current)
    return current


def shard_v1_to_v2(shard: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a shard. Format 1 knew masks only, and had no checksums of records."""
    kept = {name: value for name, value in shard.items() if name not in ("pixels", "score")}
    return {**kept, "tallies": {"mask": shard["pixels"]}, "uncertainty_score": shard["score"]}


def _from_1(data: Mapping[str, Any]) -> dict[str, Any]:
    schema = data["schema"]
    migrated = {
        **{name: value for name, value in data.items() if name != "schema"},
        "version": 2,
        "targets": [schema_v1_to_v2(schema)],
        "recipe": recipe_v1_to_v2(data["recipe"], schema),
        "encoding": {**data["encoding"], "version": 1},
    }
    if "shards" in data:
        migrated["shards"] = [shard_v1_to_v2(shard) for shard in data["shards"]]
    return migrated


_STEPS: dict[int, Callable[[Mapping[str, Any]], dict[str, Any]]] = {1: _from_1}
