"""What a user names -> the shards there, in order, as their manifests describe them."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from dsgan_datasets.credentials import without_credentials
from dsgan_datasets.shards.errors import ShardError
from dsgan_datasets.shards.folder import Folder
from dsgan_datasets.shards.manifest import MANIFEST, Manifest
from dsgan_datasets.shards.plan import Plan, Shard
from dsgan_datasets.targets.base import Target

Locations = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
#: What they may be, for messages.
SHARDS_ARE = "a folder or URL of shards that `dsgan shards write` made, or a list of them"


@dataclass(frozen=True, eq=False)
class Place:
    """A tar, the folder it lies in, and the plan of its set."""

    folder: Folder
    shard: Shard
    plan: Plan

    @cached_property
    def where(self) -> str:
        """Path or URL of the tar, to show."""
        return self.folder.at(self.shard.name)


class ShardSet:
    """Shards of one or several sets, in order, as their manifests describe them; no tar is opened.

    Args:
        path_or_urls: a folder that `write_shards` made, or tars in such folders, or several of these; paths or URLs of
            any protocol that fsspec knows. Braces are expanded: ``"s3://bucket/faces/shard-{000000..000009}.tar"``.

    Attributes:
        targets: the labels of each sample.
        license: of the samples.
        image_size: (H, W).
        extensions: of the files of a record.
        fingerprints: of checkpoint and recipe, one a set.
        digests: of everything that decides the samples, one a set, see `Plan.digest`.

    Raises:
        ShardError: no manifest, a damaged one, a tar that it does not list, or sets that do not fit together.
        OSError: a folder cannot be read.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> _ = write_shards(labeled, tmp, range(4), samples_per_shard=2)
        >>> found = ShardSet(tmp)
        >>> found.image_size, found.license
        ((64, 64), 'CC0-1.0')
    """

    def __init__(self, path_or_urls: Locations) -> None:
        locations = [path_or_urls] if isinstance(path_or_urls, str | os.PathLike) else list(path_or_urls)
        manifests: dict[str, tuple[Folder, Manifest]] = {}
        self._places: list[Place] = []
        for location in (found for given in locations for found in _expanded(os.fspath(given))):
            parent, name = _split(location)
            if parent not in manifests:
                folder = Folder(parent)
                manifests[parent] = folder, Manifest.read(folder)
            folder, manifest = manifests[parent]
            self._places += [Place(folder, shard, manifest.plan) for shard in _shards(manifest, name, folder)]
        if not self._places:
            raise ShardError("no shards were given: name a folder that `dsgan shards write` made")
        plans = [manifest.plan for _, manifest in manifests.values()]
        _check_alike(plans, [str(folder) for folder, _ in manifests.values()])
        self._plans = plans
        self.targets: tuple[Target, ...] = plans[0].targets
        self.license = plans[0].license
        self.image_size = plans[0].image_size
        self.extensions = plans[0].extensions
        self.fingerprints = tuple(plan.fingerprint for plan in plans)
        self.digests = tuple(plan.digest for plan in plans)
        self._ends = list(accumulate(place.shard.count for place in self._places))

    def __len__(self) -> int:
        """Samples in all."""
        return self._ends[-1]

    @property
    def places(self) -> Sequence[Place]:
        """The shards and where they lie."""
        return self._places

    def find(self, number: int) -> tuple[Place, int]:
        """The shard of a sample, and its place in that."""
        which = bisect_right(self._ends, number)
        return self._places[which], number - (self._ends[which] - self._places[which].shard.count)

    @property
    def group(self) -> int:
        """Samples of a view group, all of which are in one shard; 1 if the sets have groups of different sizes."""
        sizes = {plan.recipe.group_size for plan in self._plans}
        return sizes.pop() if len(sizes) == 1 else 1


def _expanded(location: str) -> list[str]:
    """Braces as in a shell."""
    if "{" not in location or os.path.exists(location):
        return [location]
    try:
        import braceexpand
    except ImportError as error:
        raise ImportError(
            f"{without_credentials(location)}: braces need the package braceexpand: pip install "
            '"dsgan_datasets[webdataset]", or name the folder or each shard'
        ) from error
    return list(braceexpand.braceexpand(location))


def _split(location: str) -> tuple[str, str | None]:
    """(folder, name of the tar in it, if it is one)."""
    path, mark, query = location.partition("?") if location.startswith("http") else (location, "", "")
    if not path.endswith(".tar"):
        return location, None
    parent, slash, name = path.rpartition("/")
    return ((parent or slash or ".") + mark + query, name)


def _shards(manifest: Manifest, name: str | None, folder: Folder) -> Iterable[Shard]:
    if name is None:
        return manifest.shards
    if name not in manifest.by_name:
        raise ShardError(
            f"{folder.at(MANIFEST)} does not list {name}, only {manifest.shards[0].name} … {manifest.shards[-1].name}"
        )
    return [manifest.by_name[name]]


def _check_alike(plans: Sequence[Plan], where: Sequence[str]) -> None:
    first = plans[0]
    for plan, location in zip(plans[1:], where[1:], strict=True):
        for name in ("targets", "image_size", "extensions"):
            here, there = getattr(plan, name), getattr(first, name)
            if here != there:
                raise ShardError(f"{location} does not fit {where[0]}: its {name} is {here}, there it is {there}")


def was_replaced(place: Place) -> bool:
    """Whether the folder holds another set by now, or a repaired one, than the manifest that was read of it says."""
    try:
        now = Manifest.read(place.folder)
    except (OSError, ShardError):
        return False  # what is wrong with the shard says more
    return now.plan != place.plan or now.by_name.get(place.shard.name) != place.shard
