"""Sample <-> the files of one WebDataset record; see docs/shard-format.md."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dsgan_datasets.checks import integer
from dsgan_datasets.images import jpg, png, read_pixels
from dsgan_datasets.polygons import encode_rle
from dsgan_datasets.samples import Sample
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.instances import tight_box
from dsgan_datasets.targets.segmentation import schema_of

#: Levels of a 16-bit uncertainty picture per nat: 0 … 8 nats in steps of 0.00012. JS of M members is at most ln M.
LEVELS_PER_NAT = 8192

#: Layout of the files of a record. 1: facts with "score" and "pixels". 2: with "uncertainty_score" and "tallies".
RECORD_VERSION = 2


@dataclass(frozen=True)
class Encoding:
    """What the record of a sample holds besides labels and facts.

    Args:
        image_format: "png" is lossless; "jpg" is smaller, and pixels differ a little from the generated ones.
        quality: of JPEG, 1 … 100; colors are stored at full resolution.
        uncertainty: also the per-pixel uncertainty, as a 16-bit picture.
        latent: also z, as float32.
        parts: also box, area and COCO run-length code of every class in the mask (needs pycocotools).
        version: of the layout of a record. Records of version 1 are read, but no longer written.

    Raises:
        ValueError: an unknown format or version, or a quality out of range.
        ImportError: parts are asked for, and pycocotools is not installed.
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
        contents.append(_npy(sample["latent"]))
    names = (f"{int(sample.index):09d}.{extension}" for extension in extensions(encoding, targets))
    return dict(zip(names, contents, strict=True))


def _facts(sample: Sample, encoding: Encoding, targets: Sequence[Target], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Content of the record's JSON."""
    description: dict[str, Any] = {"index": int(sample.index), "attempt": int(sample.attempt)}
    if "uncertainty_score" in sample:
        description["uncertainty_score"] = _shortest(sample["uncertainty_score"])
    description |= {"tallies": tallies(sample, targets), **facts}
    if "class_label" in sample:
        description["class_label"] = int(sample["class_label"])
    if encoding.parts:
        description["parts"] = _parts(sample.mask, schema_of(targets).num_classes)
    return description


def decode(files: Mapping[str, bytes], targets: Sequence[Target]) -> Sample:
    """The sample of a record, as it was generated; its tensors are on the CPU.

    With PNG images it equals what `LabeledGenerator.stream` gave, bit for bit; `uncertainty` is stored in steps of
    1/8192 nat.

    Args:
        files: extension ("png" or "jpg", "seg.png", "json", …) -> content. Files that are not ours are ignored.
        targets: the labels of the set, as its plan says.

    Raises:
        ValueError: a file is missing or damaged.
    """
    try:
        facts = json.loads(files["json"])
        picture = files["png"] if "png" in files else files["jpg"]
        fields = {"image": torch.from_numpy(read_pixels(picture, "RGB").transpose(2, 0, 1).copy())}
        fields |= {target.field: target.decode(files[target.extension]) for target in targets}
        if (score := facts.get("uncertainty_score", facts.get("score"))) is not None:
            fields["uncertainty_score"] = torch.tensor(float(score), dtype=torch.float32, device="cpu")
        fields |= {"index": _integer(facts["index"]), "attempt": _integer(facts["attempt"])}
        if "class_label" in facts:
            fields["class_label"] = _integer(facts["class_label"])
        if "uncertainty.png" in files:
            levels = read_pixels(files["uncertainty.png"], "I;16").astype(np.float32)
            fields["uncertainty"] = torch.from_numpy(levels / np.float32(LEVELS_PER_NAT))
        if "latent.npy" in files:
            fields["latent"] = torch.from_numpy(np.load(io.BytesIO(files["latent.npy"]), allow_pickle=False))
    except KeyError as error:
        raise ValueError(f"a record lacks {error}; it has {', '.join(sorted(files)) or 'nothing'}") from error
    except (OSError, EOFError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"a record is damaged: {error}") from error
    return Sample(fields)


def tallies(sample: Sample, targets: Sequence[Target]) -> dict[str, list[int]]:
    """Field of each target -> its counts of this sample: pixels of each class, for a mask."""
    return {target.field: target.tally(sample[target.field][None])[0].tolist() for target in targets}


def _integer(value: Any) -> Tensor:
    return torch.tensor(integer("a fact of a record", value, 0), dtype=torch.int64, device="cpu")


def _uncertainty_png(uncertainty: Tensor) -> bytes:
    levels = (uncertainty.cpu().double() * LEVELS_PER_NAT).round().clamp(0, 65535)
    return png(levels.numpy().astype(np.uint16))


def _npy(vector: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, vector.cpu().numpy(), allow_pickle=False)
    return buffer.getvalue()


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
