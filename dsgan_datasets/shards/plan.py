"""What a shard set is (its plan) and what each of its tars holds.

The plan is fixed before the first sample is generated: plan and checkpoint decide every byte of the set.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

from dsgan_datasets.checks import integer
from dsgan_datasets.environment import environment
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.latents import MAX_INDEX, check_seed
from dsgan_datasets.recipe import MAX_SIDE, Recipe
from dsgan_datasets.shards.codec import Encoding, extensions
from dsgan_datasets.targets.base import Target, target_from_dict
from dsgan_datasets.targets.segmentation import schema_of

#: Hex digits of a record's checksum: 128 bits of its SHA-256.
CHECKSUM_DIGITS = 32
#: Bounds of what a manifest may claim: draws of an index, shards of a set (their names have six digits).
_MOST_ATTEMPTS, _MOST_SHARDS = 2**32, 10**6
#: And bytes of a record: for each pixel (raw image, mask and uncertainty are less than half of that), for each value
#: that a label counts, and beside.
_BYTES_A_PIXEL, _BYTES_A_VALUE, _BYTES_BESIDE = 16, 4, 1 << 24


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of a shard set.

    A view group is never cut: `start`, `num_samples` and `samples_per_shard` are multiples of the recipe's group size.

    Attributes:
        fingerprint: of checkpoint and recipe.
        weights: SHA-256 of the checkpoint's tensors, by file stem.
        recipe: as it was used.
        targets: the labels of each sample.
        license: of the samples.
        image_size: (H, W).
        seed: of the samples.
        start: index of the first sample.
        num_samples: of all shards together.
        samples_per_shard: the last shard may hold fewer.
        encoding: what a record holds.
        made_with: versions and device, see `dsgan_datasets.environment.environment`.

    Raises:
        ValueError: a value out of range, or numbers that cut view groups (the message names numbers that work).

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> _ = write_shards(labeled, tmp, range(10, 14), samples_per_shard=2)
        >>> from dsgan_datasets.shards import Manifest
        >>> from dsgan_datasets.shards.folder import Folder
        >>> plan = Manifest.read(Folder(tmp)).plan
        >>> plan.start, plan.num_shards, plan.indices(1)
        (10, 2, range(12, 14))
    """

    fingerprint: str
    weights: Mapping[str, str]
    recipe: Recipe
    targets: tuple[Target, ...]
    license: str
    image_size: tuple[int, int]
    seed: int
    start: int
    num_samples: int
    samples_per_shard: int
    encoding: Encoding
    made_with: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name, lowest in (("start", 0), ("num_samples", 1), ("samples_per_shard", 1)):
            object.__setattr__(self, name, integer(name, getattr(self, name), lowest, MAX_INDEX))
        if (last := self.start + self.num_samples - 1) > MAX_INDEX:
            raise ValueError(f"the last sample would have the index {last}, the largest one is {MAX_INDEX}")
        if self.num_shards > _MOST_SHARDS:
            raise ValueError(
                f"{self.num_samples} samples would be {self.num_shards} shards, a set has {_MOST_SHARDS} at most: "
                f"raise samples_per_shard (--samples-per-shard) to {-(-self.num_samples // _MOST_SHARDS)} or more"
            )
        height, width = (integer("image_size", side, 1, MAX_SIDE) for side in self.image_size)
        object.__setattr__(self, "image_size", (height, width))
        for name in ("fingerprint", "license"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a text, not {getattr(self, name)!r}")
        for name in ("weights", "made_with"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name} must be an object, not {getattr(self, name)!r}")
        object.__setattr__(self, "targets", tuple(self.targets))
        self._check_groups()
        if len(set(self.extensions)) < len(self.extensions):
            raise ValueError(f"two files of a record would have one name: {', '.join(self.extensions)}")
        if self.encoding.parts and "mask" not in {target.field for target in self.targets}:
            raise ValueError(f"parts need masks; the labels are: {', '.join(t.field for t in self.targets)}")

    def _check_groups(self) -> None:
        group = self.recipe.group_size
        for name, lowest in (("start", 0), ("num_samples", group), ("samples_per_shard", group)):
            value = getattr(self, name)
            if value % group and not (name == "samples_per_shard" and value >= self.num_samples):
                below, above = value // group * group, -(-value // group) * group
                fitting = f"{below} or {above}" if below >= lowest else f"{above}"
                raise ValueError(
                    f"{name}={value} cuts a view group of {group} samples: use {fitting}, or another multiple"
                )

    @classmethod
    def of(
        cls, labeled: LabeledGenerator, indices: range, seed: int, samples_per_shard: int, encoding: Encoding
    ) -> Plan:
        """The plan to write these samples, here and with these versions."""
        if not hasattr(labeled, "labeler"):
            raise ValueError(
                f"expected a LabeledGenerator, got {labeled!r:.80}: use LabeledGenerator.from_pretrained(…)"
            )
        if not isinstance(indices, range) or indices.step != 1 or not indices or indices.start < 0:
            raise ValueError(f"indices must be a range of step 1 that begins at 0 or above and is not empty: {indices}")
        if encoding.uncertainty and not labeled.labeler.has_uncertainty:
            raise ValueError("this generator does not know how certain its labels are: write without the uncertainty")
        return cls(
            fingerprint=labeled.fingerprint,
            weights=labeled.weights,
            recipe=labeled.recipe,
            targets=labeled.targets,
            license=labeled.license,
            image_size=labeled.image_size,
            seed=seed,
            start=indices.start,
            num_samples=indices.stop - indices.start,  # which may be too many for len()
            samples_per_shard=samples_per_shard,
            encoding=encoding,
            made_with=environment(labeled.device),
        )

    @property
    def num_shards(self) -> int:
        """Number of tars."""
        return -(-self.num_samples // self.samples_per_shard)

    def name(self, number: int) -> str:
        """File name of a shard."""
        return f"shard-{number:06d}.tar"

    def number(self, name: str) -> int | None:
        """Number of the shard with a file name; None if it is not a shard of the set."""
        found = re.fullmatch(r"shard-(\d{6})\.tar", name, re.ASCII)
        return int(found[1]) if found and int(found[1]) < self.num_shards else None

    def indices(self, number: int) -> range:
        """Indices of the samples in a shard."""
        first = self.start + number * self.samples_per_shard
        return range(first, min(first + self.samples_per_shard, self.start + self.num_samples))

    def check(self, number: int, shard: Shard) -> None:
        """ValueError if that cannot be the description of this shard: readers trust its offsets."""
        indices, offsets, ends = self.indices(number), shard.offsets, (0, shard.bytes)
        facts = (shard.name, shard.first, shard.last, shard.count)
        expected = (self.name(number), indices[0], indices[-1], len(indices))
        rising = [integer("offset", offset, *ends) for offset in offsets] == sorted(set(offsets))
        if facts != expected:
            raise ValueError(f"shard {number} must be {expected} (name, first, last, count), not {facts}")
        if len(offsets) != len(indices) + 1 or offsets[0] != 0 or not rising:
            raise ValueError(f"{shard.name}: its {len(offsets)} offsets do not rise from 0 to the end of the file")
        largest = max(end - start for start, end in pairwise(offsets))
        if largest > (most := self._most_bytes):
            raise ValueError(f"{shard.name}: a record of {largest} bytes; images of this size need {most} at most")
        if shard.checksums is not None and len(shard.checksums) != CHECKSUM_DIGITS * len(indices):
            raise ValueError(f"{shard.name}: its checksums are not {CHECKSUM_DIGITS} digits for each record")
        tallies = {name: len(counts) for name, counts in shard.tallies.items()}
        if tallies != (needed := {target.field: len(target.tally_names) for target in self.targets}):
            raise ValueError(f"{shard.name}: its tallies have the lengths {tallies}, the targets need {needed}")
        if not all(i in indices and 0 <= attempt < _MOST_ATTEMPTS for i, attempt in shard.attempts.items()):
            raise ValueError(f"{shard.name}: attempts of samples that are not in it, or too many of them")

    @property
    def _most_bytes(self) -> int:
        """No record is longer."""
        values = sum(target.tally_total(self.image_size) for target in self.targets)
        return self.image_size[0] * self.image_size[1] * _BYTES_A_PIXEL + values * _BYTES_A_VALUE + _BYTES_BESIDE

    @property
    def schema(self) -> Any:
        """The `LabelSchema` of the masks; ValueError if there are none."""
        return schema_of(self.targets)

    @property
    def extensions(self) -> tuple[str, ...]:
        """Files of a record, in their order in the tar."""
        return extensions(self.encoding, self.targets)

    @property
    def facts(self) -> dict[str, Any]:
        """What every record of the set says."""
        return {"seed": self.seed, "fingerprint": self.fingerprint, "license": self.license}

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the plan: what is recorded of a shard says which plan it was written for."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Plan) -> list[str]:
        """Where another plan differs: "seed is 1, there 0", and so on."""
        here, there = self.to_dict(), other.to_dict()
        names = [name for name in here if here[name] != there[name]]
        if "recipe" in names or "weights" in names or "targets" in names:
            names = [name for name in names if name != "fingerprint"]  # says the same in other words
        return [text for name in names for text in _differences(name, here[name], there[name])]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain |= {name: plain[name].to_dict() for name in ("recipe", "encoding")}
        plain["targets"] = [target.to_dict() for target in self.targets]
        return json.loads(json.dumps(plain))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Inverse of `to_dict`; further keys are ignored."""
        plain = {f.name: data[f.name] for f in fields(cls)}
        plain["recipe"] = Recipe.from_dict(plain["recipe"])
        plain["targets"] = tuple(target_from_dict(target) for target in plain["targets"])
        plain["encoding"] = Encoding.from_dict(plain["encoding"])
        return cls(**plain)


def _differences(name: str, here: Any, there: Any) -> list[str]:
    if isinstance(here, dict) and isinstance(there, dict):
        keys = [key for key in here | there if here.get(key) != there.get(key)]
        return [text for key in keys for text in _differences(f"{name}.{key}", here.get(key), there.get(key))]
    if (
        isinstance(here, list)
        and isinstance(there, list)
        and len(here) == len(there)
        and here
        and isinstance(here[0], dict)
    ):
        pairs = enumerate(zip(here, there, strict=True))
        return [text for i, (a, b) in pairs if a != b for text in _differences(f"{name}[{i}]", a, b)]
    return [f"{name} is {_short(here)}, there {_short(there)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:50]}…"


@dataclass(frozen=True)
class Shard:
    """What a tar holds, recorded when it was written.

    Attributes:
        name: file name.
        first, last: index of its first and its last sample.
        count: samples in it.
        bytes: size of the file.
        sha256: of the file, hex.
        offsets: where each record begins, and where the last one ends; count + 1 numbers.
        attempts: index -> attempt, of the samples whose attempt is not 0.
        tallies: field of each target -> what its `tally` counts, summed over all samples (pixels of each class).
        uncertainty_score: mean score, nats; None if the generator has none.
        checksums: for each record the first 128 bits of the SHA-256 of its bytes, as 32 hex digits, one after the
            other; None if they are unknown (format 1).
        origin: versions and device that made it, if they are not those of the plan.
        more: what a newer version recorded; kept as it is.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> _ = write_shards(labeled, tmp, range(4), samples_per_shard=2)
        >>> from dsgan_datasets.shards import Manifest
        >>> from dsgan_datasets.shards.folder import Folder
        >>> shard = Manifest.read(Folder(tmp)).shards[1]
        >>> shard.name, shard.first, shard.last, len(shard.offsets)
        ('shard-000001.tar', 2, 3, 3)
    """

    name: str
    first: int
    last: int
    count: int
    bytes: int
    sha256: str
    offsets: tuple[int, ...]
    attempts: Mapping[int, int]
    tallies: Mapping[str, tuple[int, ...]]
    uncertainty_score: float | None = None
    checksums: str | None = None
    origin: Mapping[str, Any] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def checksum(self, number: int) -> str | None:
        """Checksum of a record, counted from 0; None if it is unknown."""
        start = number * CHECKSUM_DIGITS
        return None if self.checksums is None else self.checksums[start : start + CHECKSUM_DIGITS]

    def to_dict(self) -> dict[str, Any]:
        """JSON form; what is unknown is left out."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "more"}
        plain["attempts"] = {str(i): a for i, a in self.attempts.items()}
        return {name: value for name, value in plain.items() if value is not None} | dict(self.more)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Shard:
        """Inverse of `to_dict`."""
        known = {f.name for f in fields(cls)} - {"more"}
        plain: dict[str, Any] = {name: value for name, value in data.items() if name in known}
        plain |= {name: integer(name, data[name], 0) for name in ("first", "last", "count", "bytes")}
        plain["attempts"] = {int(i): integer("attempt", a, 0) for i, a in data["attempts"].items()}
        plain["offsets"] = tuple(data["offsets"])
        plain["tallies"] = {
            str(name): tuple(integer("tally", n, 0) for n in counts) for name, counts in data["tallies"].items()
        }
        if not re.fullmatch("[0-9a-f]{64}", data["sha256"]):
            raise ValueError(f"invalid sha256 {data['sha256']!r} for shard {data['name']!r}")
        if not math.isfinite(data.get("uncertainty_score", 0.0)):
            raise ValueError(f"invalid uncertainty_score {data['uncertainty_score']!r} for shard {data['name']!r}")
        if not re.fullmatch("[0-9a-f]*", data.get("checksums", "")):
            raise ValueError(f"invalid checksums for shard {data['name']!r}")
        return cls(**plain, more={name: value for name, value in data.items() if name not in known})


def numbers_of(plan: Plan, shard_range: Sequence[int] | None) -> range:
    """Numbers of the shards in a half-open range of them; None is all.

    Raises:
        ValueError: the range is empty, or begins beyond the last shard.
    """
    if shard_range is None:
        return range(plan.num_shards)
    first, end = (integer("shard_range", n, 0) for n in shard_range)
    if not first < min(end, plan.num_shards):
        raise ValueError(
            f"shard range {first}:{end} holds no shard: there are {plan.num_shards}, 0 … {plan.num_shards - 1}"
        )
    return range(first, min(end, plan.num_shards))
