"""What a shard set is (its plan) and what each of its tars holds: manifest.json, and the index of the `wids` package.

The plan is fixed before the first sample is made; whoever knows plan and checkpoint can make every byte of the set.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import PIL
import torch
from PIL import features as pillow_features

from dsgan_datasets.checks import integer
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.latents import MAX_INDEX, check_seed
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.shards.codec import Encoding
from dsgan_datasets.shards.folder import Folder
from dsgan_datasets.targets.segmentation import LabelSchema

MANIFEST = "manifest.json"
WIDS_INDEX = "wids.json"
#: While a set is being written: the plan, and an entry for each finished shard.
UNFINISHED = ".unfinished"
_FORMAT = {"format": "dsgan-shards", "version": 1}
#: Bounds of what a manifest may claim: pixels of a side, draws of an index.
_LONGEST_SIDE, _MOST_ATTEMPTS = 65_536, 2**32


class ShardError(ValueError):
    """Shards that are damaged, incomplete, or not those that were asked for."""


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of a shard set.

    Attributes:
        fingerprint: of checkpoint and recipe.
        weights: SHA-256 of the checkpoint's tensors, by file stem.
        recipe: as it was used.
        schema: classes of the masks.
        license: of the samples.
        image_size: (H, W).
        seed: of the samples.
        start: index of the first sample.
        num_samples: of all shards together.
        samples_per_shard: the last shard may hold fewer.
        encoding: what a record holds.
        made_with: versions and device, see `environment`.
    """

    fingerprint: str
    weights: Mapping[str, str]
    recipe: Recipe
    schema: LabelSchema
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
        height, width = (integer("image_size", side, 1, _LONGEST_SIDE) for side in self.image_size)
        object.__setattr__(self, "image_size", (height, width))
        for name in ("fingerprint", "license"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a text, not {getattr(self, name)!r}")
        for name in ("weights", "made_with"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name} must be an object, not {getattr(self, name)!r}")

    @classmethod
    def of(
        cls, labeled: LabeledGenerator, indices: range, seed: int, samples_per_shard: int, encoding: Encoding
    ) -> Plan:
        """The plan to write these samples, here and with these versions."""
        if not isinstance(indices, range) or indices.step != 1 or not indices or indices.start < 0:
            raise ValueError(f"indices must be a range of step 1 that begins at 0 or above and is not empty: {indices}")
        return cls(
            fingerprint=labeled.fingerprint,
            weights=labeled.weights,
            recipe=labeled.recipe,
            schema=labeled.schema,
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

    def indices(self, number: int) -> range:
        """Indices of the samples in a shard."""
        first = self.start + number * self.samples_per_shard
        return range(first, min(first + self.samples_per_shard, self.start + self.num_samples))

    def check(self, number: int, shard: Shard) -> None:
        """ValueError if that cannot be the record of this shard: readers go where it says."""
        indices, offsets, ends = self.indices(number), shard.offsets, (0, shard.bytes)
        facts = (shard.name, shard.first, shard.last, shard.count)
        expected = (self.name(number), indices[0], indices[-1], len(indices))
        rising = [integer("offset", offset, *ends) for offset in offsets] == sorted(set(offsets))
        if facts != expected:
            raise ValueError(f"shard {number} must be {expected} (name, first, last, count), not {facts}")
        if len(offsets) != len(indices) + 1 or offsets[0] != 0 or not rising:
            raise ValueError(f"{shard.name}: its {len(offsets)} offsets do not rise from 0 to the end of the file")
        if len(shard.pixels) != self.schema.num_classes:
            raise ValueError(
                f"{shard.name}: pixels of {len(shard.pixels)} classes, there are {self.schema.num_classes}"
            )
        if not all(i in indices and 0 <= attempt < _MOST_ATTEMPTS for i, attempt in shard.attempts.items()):
            raise ValueError(f"{shard.name}: attempts of samples that are not in it, or too many of them")

    @property
    def extensions(self) -> tuple[str, ...]:
        """Files of a record, in their order in the tar."""
        more = ("uncertainty.png",) * self.encoding.uncertainty + ("latent.npy",) * self.encoding.latent
        return (self.encoding.image_format, "seg.png", "json", *more)

    @property
    def facts(self) -> dict[str, Any]:
        """What every record of the set says."""
        return {"seed": self.seed, "fingerprint": self.fingerprint, "license": self.license}

    def differences(self, other: Plan) -> list[str]:
        """Where another plan differs: "seed is 1, there 0", and so on."""
        here, there = self.to_dict(), other.to_dict()
        names = [name for name in here if here[name] != there[name]]
        if "recipe" in names or "weights" in names or "schema" in names:
            names = [name for name in names if name != "fingerprint"]  # says the same in other words
        return [text for name in names for text in _differences(name, here[name], there[name])]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain |= {name: plain[name].to_dict() for name in ("recipe", "schema", "encoding")}
        return json.loads(json.dumps(plain))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Inverse of `to_dict`."""
        plain = {f.name: data[f.name] for f in fields(cls)}
        plain["recipe"] = Recipe.from_dict(plain["recipe"])
        plain["schema"] = LabelSchema.from_dict(plain["schema"])
        plain["encoding"] = Encoding(**plain["encoding"])
        return cls(**plain)


def _differences(name: str, here: Any, there: Any) -> list[str]:
    if isinstance(here, dict) and isinstance(there, dict):
        keys = [key for key in here | there if here.get(key) != there.get(key)]
        return [text for key in keys for text in _differences(f"{name}.{key}", here.get(key), there.get(key))]
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
        pixels: pixels of each class in all its masks.
        score: mean score, nats.
        origin: versions and device that made it, if they are not those of the plan.
    """

    name: str
    first: int
    last: int
    count: int
    bytes: int
    sha256: str
    offsets: tuple[int, ...]
    attempts: Mapping[int, int]
    pixels: tuple[int, ...]
    score: float
    origin: Mapping[str, Any] | None = field(default=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        plain = asdict(self) | {"attempts": {str(i): a for i, a in self.attempts.items()}}
        if self.origin is None:
            del plain["origin"]
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Shard:
        """Inverse of `to_dict`."""
        attempts = {int(i): integer("attempt", a, 0) for i, a in data["attempts"].items()}
        pixels = tuple(integer("pixels", n, 0) for n in data["pixels"])
        plain = {**data, "attempts": attempts, "offsets": tuple(data["offsets"]), "pixels": pixels}
        plain |= {name: integer(name, data[name], 0) for name in ("first", "last", "count", "bytes")}
        if not re.fullmatch("[0-9a-f]{64}", data["sha256"]) or not math.isfinite(data["score"]):
            raise ValueError(f"sha256 {data['sha256']!r} or score {data['score']!r} of {data['name']!r} is none")
        return cls(**plain)


@dataclass(frozen=True)
class Manifest:
    """A whole set: its plan, and its shards in order.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> _ = write_shards(labeled, tmp, range(6), samples_per_shard=4)
        >>> manifest = Manifest.read(Folder(tmp))
        >>> [(shard.name, shard.count) for shard in manifest.shards], manifest.plan.seed
        ([('shard-000000.tar', 4), ('shard-000001.tar', 2)], 0)
    """

    plan: Plan
    shards: tuple[Shard, ...]

    @cached_property
    def by_name(self) -> dict[str, Shard]:
        """File name -> shard."""
        return {shard.name: shard for shard in self.shards}

    def to_json(self) -> bytes:
        """Content of manifest.json: a shard a line, and a digest of all the rest."""
        head = json.dumps({**_FORMAT, **self.plan.to_dict()}, indent=1, ensure_ascii=False)
        lines = ",\n".join(f"  {json.dumps(shard.to_dict(), separators=(',', ':'))}" for shard in self.shards)
        body = f'{head[:-2]},\n "shards": [\n{lines}\n ]'
        return f'{body},\n "digest": "{_digest(json.loads(body + "}"))}"\n}}\n'.encode()

    @classmethod
    def from_json(cls, content: bytes, where: str) -> Manifest:
        """Inverse of `to_json`.

        Raises:
            ShardError: no manifest, a damaged one, or one of a newer version.
        """
        data = parse_json(content, where)
        if {name: data.get(name) for name in _FORMAT} != _FORMAT:
            raise ShardError(
                f"{where} is no manifest of version {_FORMAT['version']} of the {_FORMAT['format']} format "
                f"(format {data.get('format')!r}, version {data.get('version')!r}): {_WAY_BACK}"
            )
        digest = data.pop("digest", None)
        if digest != _digest(data):
            raise ShardError(f"{where} was changed since it was written: {_WAY_BACK}")
        with _damage_of(where):
            plan, shards = Plan.from_dict(data), tuple(map(Shard.from_dict, data["shards"]))
            if len(shards) != plan.num_shards:
                raise ValueError(f"it lists {len(shards)} shards of {plan.num_shards}")
            for number, shard in enumerate(shards):
                plan.check(number, shard)
            return cls(plan, shards)

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
            hint = "was it made by `dsgan shards write`? If so, running the same command again makes the manifest again"
            if "plan.json" in folder.names(UNFINISHED):
                hint = "its writing was not finished: run the same `dsgan shards write` command again"
            raise ShardError(f"{folder} has no {MANIFEST}: {hint}") from None
        return cls.from_json(content, folder.at(MANIFEST))

    def wids_index(self) -> bytes:
        """The index that the `wids` package reads (https://github.com/webdataset/webdataset)."""
        shards = [{"url": s.name, "nsamples": s.count, "filesize": s.bytes} for s in self.shards]
        index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": "dsgan", "shardlist": shards}
        return (json.dumps(index, indent=1) + "\n").encode()


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
        with _damage_of(where):
            return Plan.from_dict(parse_json(content, where))

    def write_plan(self, plan: Plan) -> None:
        """Begin a set."""
        self.folder.write(f"{UNFINISHED}/plan.json", json.dumps(plan.to_dict(), indent=1).encode())

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
                # A damaged entry is as good as none: the shard is made again.
                with suppress(FileNotFoundError, ShardError), _damage_of(where):
                    shard = Shard.from_dict(parse_json(self.folder.read(where), where))
                    plan.check(number, shard)
                    found[name] = shard
        return found

    def clear(self) -> None:
        """Remove all of it: the set is finished."""
        self.folder.remove_folder(UNFINISHED)


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """A JSON object; ShardError if it is none."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{where} is damaged ({error}): {_WAY_BACK}") from error
    if not isinstance(data, dict):
        raise ShardError(f"{where} is damaged (it holds {type(data).__name__}, not an object): {_WAY_BACK}")
    return data


#: What helps with any damage of a manifest or a plan.
_WAY_BACK = "get the original again, or remove it and run the same `dsgan shards write` command, which makes it again"


@contextmanager
def _damage_of(where: str) -> Iterator[None]:
    """Whatever wrong content does to the code that reads it is a ShardError."""
    try:
        yield
    except ShardError:
        raise
    except KeyError as error:
        raise ShardError(f"{where} is damaged ({error.args[0]!r} is missing): {_WAY_BACK}") from error
    except (TypeError, AttributeError) as error:
        raise ShardError(f"{where} is damaged (a value has the wrong type): {_WAY_BACK}") from error
    except (ValueError, OverflowError) as error:
        raise ShardError(f"{where} is damaged ({error}): {_WAY_BACK}") from error


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and device that decide the last bits of samples and the bytes of pictures.

    Example:
        >>> sorted(environment(torch.device("cpu")))
        ['device', 'dsgan_datasets', 'jpeg', 'numpy', 'pillow', 'torch', 'zlib']
    """
    from dsgan_datasets import __version__

    return {
        "dsgan_datasets": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "zlib": _feature("zlib_ng") or _feature("zlib"),
        "jpeg": _feature("libjpeg_turbo") or _feature("jpg"),
        "device": _device_facts(device),
    }


def _feature(name: str) -> str | None:
    version = pillow_features.version(name)
    return None if version is None else f"{name} {version}"


def _device_facts(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"type": device.type, "capability": torch.backends.cpu.get_cpu_capability()}
    return {
        "type": "cuda",
        "name": torch.cuda.get_device_name(device),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


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
