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
_PLAN = f"{UNFINISHED}/plan.json"


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
            content = self.folder.read(_PLAN)
        except FileNotFoundError:
            return None
        where = self.folder.at(_PLAN)
        with damage_as_shard_error(where):
            first_version = {**FORMAT, "version": 1}  # which its plans did not say
            return Plan.from_dict(migrate(first_version | parse_json(content, where), where))

    def begin(self, plan: Plan) -> None:
        """Begin a set, unless somebody has begun one: then that one's plan stays, which `read_plan` gives."""
        content = json.dumps({**FORMAT, **plan.to_dict()}, indent=1)
        with suppress(FileExistsError):
            self.folder.create(_PLAN, content.encode())

    def add(self, plan: Plan, shard: Shard) -> None:
        """Record a shard that is about to appear."""
        entry = {**shard.to_dict(), "plan": plan.digest}
        self.folder.write(f"{UNFINISHED}/{shard.name}.json", json.dumps(entry).encode())

    def entries(self, plan: Plan) -> dict[str, Shard]:
        """What is recorded of finished shards of this plan, by name."""
        digest, found = plan.digest, {}
        for file in self.folder.names(UNFINISHED):
            name, number = file.removesuffix(".json"), plan.number(file.removesuffix(".json"))
            if number is None or name == file:
                continue
            # A damaged entry counts as a missing one, as does that of another plan: the shard is regenerated.
            with suppress(FileNotFoundError, ShardError), damage_as_shard_error(file):
                data = parse_json(self.folder.read(f"{UNFINISHED}/{file}"), file)
                old = plan.encoding.version == 1  # which said nothing of the plan
                if old or data.pop("plan", None) == digest:
                    shard = Shard.from_dict(shard_v1_to_v2(data) if old else data)
                    plan.check(number, shard)
                    found[name] = shard
        return found

    def clear(self) -> None:
        """Remove all of it, if there is any: the set is finished."""
        if self.folder.names(UNFINISHED):
            with suppress(OSError):  # the set is whole without that, perhaps on a disk that cannot be written to
                self.folder.remove_folder(UNFINISHED)
