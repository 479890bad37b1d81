"""manifest.json: a whole set, its plan and its shards; and the index of the `wids` package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from dsgan_datasets._deprecation import moved
from dsgan_datasets.shards.errors import RESTORE_HINT, ShardError, damage_as_shard_error, parse_json
from dsgan_datasets.shards.folder import Folder
from dsgan_datasets.shards.migrations import FORMAT, check_format, migrate
from dsgan_datasets.shards.plan import Plan, Shard
from dsgan_datasets.shards.progress import UNFINISHED

MANIFEST = "manifest.json"
WIDS_INDEX = "wids.json"

__getattr__ = moved(
    __name__,
    {
        "Progress": "dsgan_datasets.shards.progress:Progress",
        "environment": "dsgan_datasets.environment:environment",
        "numbers_of": "dsgan_datasets.shards.plan:numbers_of",
    },
)


@dataclass(frozen=True)
class Manifest:
    """A whole set.

    Attributes:
        plan: what decides its bytes.
        shards: its tars, in order.
        more: what a newer version recorded of the set; kept as it is.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> _ = write_shards(labeled, tmp, range(6), samples_per_shard=4)
        >>> manifest = Manifest.read(Folder(tmp))
        >>> [(shard.name, shard.count) for shard in manifest.shards], manifest.plan.seed
        ([('shard-000000.tar', 4), ('shard-000001.tar', 2)], 0)
    """

    plan: Plan
    shards: tuple[Shard, ...]
    more: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def by_name(self) -> dict[str, Shard]:
        """File name -> shard."""
        return {shard.name: shard for shard in self.shards}

    def to_json(self) -> bytes:
        """Content of manifest.json: a shard a line, and a digest of all the rest."""
        head = json.dumps({**FORMAT, **self.plan.to_dict(), **self.more}, indent=1, ensure_ascii=False)
        lines = ",\n".join(f"  {json.dumps(shard.to_dict(), separators=(',', ':'))}" for shard in self.shards)
        body = f'{head[:-2]},\n "shards": [\n{lines}\n ]'
        return f'{body},\n "digest": "{_digest(json.loads(body + "}"))}"\n}}\n'.encode()

    @classmethod
    def from_json(cls, content: bytes, where: str) -> Manifest:
        """Inverse of `to_json`; also reads format 1.

        Raises:
            ShardError: not a manifest, a damaged one, or one of a newer version.
        """
        stored = parse_json(content, where)
        check_format(stored, where)
        digest = stored.pop("digest", None)
        if digest != _digest(stored):
            raise ShardError(f"{where} was changed since it was written. {RESTORE_HINT}")
        with damage_as_shard_error(where):
            data = migrate(stored, where)
            plan, shards = Plan.from_dict(data), tuple(map(Shard.from_dict, data["shards"]))
            if len(shards) != plan.num_shards:
                raise ValueError(f"it lists {len(shards)} shards of {plan.num_shards}")
            for number, shard in enumerate(shards):
                plan.check(number, shard)
            known = {f.name for f in fields(Plan)} | {"shards", *FORMAT}
            return cls(plan, shards, {name: value for name, value in data.items() if name not in known})

    @classmethod
    def read(cls, folder: Folder) -> Manifest:
        """The manifest of a finished set.

        Raises:
            ShardError: there is none, or it is damaged.
            OSError: the folder cannot be read.
        """
        try:
            content = folder.read(MANIFEST)
        except FileNotFoundError:
            hint = "was it made by `dsgan shards write`? If so, running the same command again restores the manifest"
            if "plan.json" in folder.names(UNFINISHED):
                hint = "its writing was not finished: run the same `dsgan shards write` command again"
            raise ShardError(f"{folder} has no {MANIFEST}: {hint}") from None
        return cls.from_json(content, folder.at(MANIFEST))

    def wids_index(self) -> bytes:
        """The index that the `wids` package reads (https://github.com/webdataset/webdataset)."""
        shards = [{"url": s.name, "nsamples": s.count, "filesize": s.bytes} for s in self.shards]
        index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": "dsgan", "shardlist": shards}
        return (json.dumps(index, indent=1) + "\n").encode()


def write_manifest(folder: Folder, manifest: Manifest) -> None:
    """Write manifest.json, last of all: a set that has one is finished."""
    for name in (WIDS_INDEX, MANIFEST):
        folder.remove_leftovers(name)
    folder.write(WIDS_INDEX, manifest.wids_index())
    folder.write(MANIFEST, manifest.to_json())


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
