"""What is known of a set while it is being written."""

from __future__ import annotations

import json
from contextlib import suppress

from dsgan_datasets.shards.errors import ShardError, damage_as_shard_error, parse_json
from dsgan_datasets.shards.folder import Folder
from dsgan_datasets.shards.migrations import FORMAT, migrate, shard_v1_to_v2
from dsgan_datasets.shards.plan import Plan, Shard

#: While a set is being written: the plan, and an entry for each finished shard.
UNFINISHED = ".unfinished"


class Progress:
    """The plan of an unfinished set and the entries of its finished shards, in a folder of their own.

    Every process that writes a part of the set adds to it; none changes what another has written.

    Args:
        folder: of the set.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def read_plan(self) -> Plan | None:
        """The plan; None if nobody has begun."""
        try:
            content = self.folder.read(f"{UNFINISHED}/plan.json")
        except FileNotFoundError:
            return None
        where = self.folder.at(f"{UNFINISHED}/plan.json")
        with damage_as_shard_error(where):
            first_version = {**FORMAT, "version": 1}  # which its plans did not say
            return Plan.from_dict(migrate(first_version | parse_json(content, where), where))

    def write_plan(self, plan: Plan) -> None:
        """Begin a set."""
        content = json.dumps({**FORMAT, **plan.to_dict()}, indent=1)
        self.folder.write(f"{UNFINISHED}/plan.json", content.encode())

    def add(self, shard: Shard) -> None:
        """Record a shard that is about to appear."""
        self.folder.write(f"{UNFINISHED}/{shard.name}.json", json.dumps(shard.to_dict()).encode())

    def entries(self, plan: Plan) -> dict[str, Shard]:
        """What is recorded of finished shards, by name."""
        names = set(self.folder.names(UNFINISHED))
        found = {}
        for number, name in enumerate(map(plan.name, range(plan.num_shards))):
            if f"{name}.json" in names:
                where = f"{UNFINISHED}/{name}.json"
                # A damaged entry counts as a missing one: the shard is regenerated.
                with suppress(FileNotFoundError, ShardError), damage_as_shard_error(where):
                    data = parse_json(self.folder.read(where), where)
                    shard = Shard.from_dict(shard_v1_to_v2(data) if plan.encoding.version == 1 else data)
                    plan.check(number, shard)
                    found[name] = shard
        return found

    def clear(self) -> None:
        """Remove all of it: the set is finished."""
        self.folder.remove_folder(UNFINISHED)
