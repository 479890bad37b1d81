"""Sample <-> the files of one WebDataset record; see docs/shard-format.md."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dsgan_datasets.arrays import npy, read_npy
from dsgan_datasets.checks import boolean, integer
from dsgan_datasets.images import jpg, open_picture, png, read_pixels
from dsgan_datasets.polygons import encode_rle
from dsgan_datasets.samples import Sample
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.instances import tight_box
from dsgan_datasets.targets.segmentation import schema_of

#: Levels of an uncertainty picture (16 bits) per nat: 0 … 8 nats in steps of 0.00012. JS of M members is at most ln M.
LEVELS_PER_NAT = 8192

#: Layout of the files of a record. 1: facts with "score" and "pixels", the uncertainty is a 16-bit picture. 2: facts
#: with "uncertainty_score" and "tallies", the uncertainty is in the colors of a picture.
RECORD_VERSION = 2


@dataclass(frozen=True)
class Encoding:
    """What the record of a sample holds besides labels and facts.

    Args:
        image_format: "png" is lossless; "jpg" is smaller, and pixels differ a little from the generated ones.
        quality: of JPEG, 1 … 100; colors are stored at full resolution.
        uncertainty: also the per-pixel uncertainty, as a picture whose colors hold 16 bits.
        latent: also z, as float32.
        parts: also box, area and COCO run-length code of every class in the mask (needs pycocotools).
        version: of the layout of a record. Records of version 1 are read, but no longer written.

    Raises:
        ValueError: an unknown format or version, a quality out of range, or a switch that is not True or False.
        ImportError: parts are asked for, and pycocotools is not installed.

    Example:
        >>> Encoding("jpg", quality=90).version
        2
    """

    image_format: Literal["png", "jpg"] = "png"
    quality: int = 95
    uncertainty: bool = False
    latent: bool = False
    parts: bool = False
    version: int = RECORD_VERSION

    def __post_init__(self) -> None:
        if self.image_format not in ("png", "jpg"):
            raise ValueError(f'image_format must be "png" or "jpg", not {self.image_format!r}')
        object.__setattr__(self, "quality", integer("quality", self.quality, 1, 100))
        object.__setattr__(self, "version", integer("version", self.version, 1, RECORD_VERSION))
        for name in ("uncertainty", "latent", "parts"):
            object.__setattr__(self, name, boolean(name, getattr(self, name)))
        if self.parts:
            encode_rle(np.zeros((1, 1), dtype=bool))  # fails at once if pycocotools is missing

    @property
    def extras(self) -> tuple[str, ...]:
        """Fields of a sample that the generator makes only when asked."""
        return ("uncertainty",) * self.uncertainty + ("latent",) * self.latent

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Encoding:
        """Inverse of `to_dict`; ValueError for an option that this version does not know: it decides bytes."""
        if unknown := sorted(set(data) - set(asdict(cls()))):
            raise ValueError(
                f"unknown options of the encoding {unknown}: written by a newer version of dsgan_datasets?"
            )
        return cls(**data)


def extensions(encoding: Encoding, targets: Sequence[Target]) -> tuple[str, ...]:
    """Files of a record, in their order: image, labels, facts, extras."""
    more = ("uncertainty.png",) * encoding.uncertainty + ("latent.npy",) * encoding.latent
    return (encoding.image_format, *(target.extension for target in targets), "json", *more)


def record(sample: Sample, encoding: Encoding, targets: Sequence[Target], facts: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of one sample: name -> content.

    Args:
        sample: with the fields that the encoding asks for.
        encoding: which files.
        targets: its labels; each encodes and counts its own field.
        facts: what all samples have in common (seed, fingerprint, license); stored with every one.
    """
    image = png(sample.image) if encoding.image_format == "png" else jpg(sample.image, encoding.quality)
    contents = [image, *(target.encode(sample[target.field]) for target in targets)]
    contents.append(json.dumps(_facts(sample, encoding, targets, facts)).encode())
    if encoding.uncertainty:
        contents.append(_uncertainty_png(sample["uncertainty"]))
    if encoding.latent:
        contents.append(npy(sample["latent"].cpu().numpy()))
    names = (f"{int(sample.index):09d}.{extension}" for extension in extensions(encoding, targets))
    return dict(zip(names, contents, strict=True))


def _facts(sample: Sample, encoding: Encoding, targets: Sequence[Target], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Content of the record's JSON."""
    description: dict[str, Any] = {"index": int(sample.index), "attempt": int(sample.attempt)}
    description |= {name: _shortest(sample[name]) for name in _scores(targets) if name in sample}
    description |= {"tallies": tallies(sample, targets), **facts}
    if "class_label" in sample:
        description["class_label"] = int(sample["class_label"])
    if encoding.parts:
        description["parts"] = _parts(sample.mask, schema_of(targets).num_classes)
    return description


def _scores(targets: Sequence[Target]) -> tuple[str, ...]:
    """Fields of scores: of the first label with an uncertainty, and of further ones."""
    return "uncertainty_score", *(f"{target.field}_uncertainty_score" for target in targets)


def decode(
    files: Mapping[str, bytes],
    targets: Sequence[Target],
    size: tuple[int, int],
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> Sample:
    """The sample of a record, as it was generated; its tensors are on the CPU.

    With PNG images it equals what `LabeledGenerator.stream` gave, bit for bit; `uncertainty` is stored in steps of
    1/8192 nat. No picture is decoded whose header claims another size, so that a small file cannot take much memory.

    Args:
        files: extension ("png" or "jpg", "seg.png", "json", …) -> content, whose checksum was compared. Files that are
            not ours are ignored.
        targets: the labels of the set, as its plan says.
        size: (H, W) of the images of the set.
        facts: what the record's JSON must say, such as index and seed.

    Raises:
        ValueError: a file is missing, damaged, or not what plan and manifest say of it.
    """
    try:
        return Sample(_fields(files, targets, size, facts))
    except KeyError as error:
        raise ValueError(f"a record lacks {error}; it has {', '.join(sorted(files)) or 'nothing'}") from error
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # Pillow raises nearly every kind of error for damaged pictures
        raise ValueError(f"it cannot be decoded ({error or type(error).__name__})") from error


def _fields(
    files: Mapping[str, bytes], targets: Sequence[Target], size: tuple[int, int], facts: Mapping[str, Any]
) -> dict[str, Tensor]:
    found = json.loads(files["json"])
    for name, value in facts.items():
        if found.get(name) != value:
            raise ValueError(f"its {name} is {found.get(name)!r:.100}, the manifest says {value!r:.100}")
    picture, kind = (files["png"], "PNG") if "png" in files else (files["jpg"], "JPEG")
    image = read_pixels(picture, "RGB", formats=(kind,), size=size, verified=True)
    fields = {"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}
    for target in targets:
        fields[target.field] = target.decode(files[target.extension], size)
        target.check(fields[target.field], size)
    if "score" in found:  # as version 1 calls it
        found.setdefault("uncertainty_score", found["score"])
    fields |= {name: _score(found[name]) for name in _scores(targets) if found.get(name) is not None}
    fields |= {name: _integer(found[name]) for name in ("index", "attempt")}
    if "class_label" in found:
        fields["class_label"] = _integer(found["class_label"])
    if "uncertainty.png" in files:
        fields["uncertainty"] = torch.from_numpy(_nats(files["uncertainty.png"], size))
    if "latent.npy" in files:
        fields["latent"] = torch.from_numpy(read_npy(files["latent.npy"], (None,), "the latent"))
    return fields


def tallies(sample: Sample, targets: Sequence[Target]) -> dict[str, list[int]]:
    """Field of each target -> its counts of this sample: pixels of each class, for a mask."""
    return {target.field: target.tally(sample[target.field][None])[0].tolist() for target in targets}


def _integer(value: Any) -> Tensor:
    return torch.tensor(integer("a fact of a record", value, 0), dtype=torch.int64, device="cpu")


def _score(value: Any) -> Tensor:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"its uncertainty_score is {value!r:.100}")
    return torch.tensor(float(value), dtype=torch.float32, device="cpu")


def _uncertainty_png(uncertainty: Tensor) -> bytes:
    """Red and green hold the upper 8 bits of a level, blue the lower ones.

    Not a 16-bit picture: the decoders of WebDataset and most others turn those into white.
    """
    levels = (uncertainty.cpu().double() * LEVELS_PER_NAT).round().clamp(0, 65535).numpy().astype(np.uint16)
    upper, lower = levels >> 8, levels & 255
    return png(np.stack([upper, upper, lower], axis=2))


def _nats(content: bytes, size: tuple[int, int]) -> np.ndarray:
    """Inverse of `_uncertainty_png`; also reads the 16-bit pictures of version 1."""
    picture = open_picture(content, size=size, verified=True)
    if picture.mode not in ("RGB", "I;16"):
        raise ValueError(f"the uncertainty is a picture of mode {picture.mode}, not RGB")
    pixels = np.asarray(picture).astype(np.float32)
    levels = pixels if pixels.ndim == 2 else pixels[..., 0] * 256 + pixels[..., 2]
    nats: np.ndarray = levels / np.float32(LEVELS_PER_NAT)
    return nats


def _shortest(score: Tensor) -> float:
    """The number of fewest digits that gives the same float32 when read."""
    return float(str(score.numpy()))


def _parts(mask: Tensor, num_classes: int) -> list[dict[str, Any]]:
    """Box (x, y, width, height), area and COCO run-length code of each class that occurs."""
    regions = ((class_id, (mask == class_id).cpu().numpy()) for class_id in range(num_classes))
    return [
        {"class": class_id, "area": int(region.sum()), "box": tight_box(region), "rle": encode_rle(region)}
        for class_id, region in regions
        if region.any()
    ]
