"""Sample <-> the files of one WebDataset record; see docs/shard-format.md."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dsgan_datasets.checks import integer
from dsgan_datasets.polygons import encode_rle, tight_box
from dsgan_datasets.samples import Sample

#: Levels of a 16-bit uncertainty picture per nat: 0 … 8 nats in steps of 0.00012. JS of M members is at most ln M.
LEVELS_PER_NAT = 8192

#: zlib's effort. Level 6 takes twice the time of level 4 for 4 % fewer bytes (256² faces).
_PNG_EFFORT = 4


@dataclass(frozen=True)
class Encoding:
    """What the record of a sample holds beside mask and facts.

    Args:
        image_format: "png" is lossless; "jpg" is smaller, and pixels differ a little from the generated ones.
        quality: of JPEG, 1 … 100; colors are stored at full resolution.
        uncertainty: also the per-pixel uncertainty, as a 16-bit picture.
        latent: also z, as float32.
        parts: also box, area and COCO run-length code of every class in the mask (needs pycocotools).

    Raises:
        ValueError: an unknown format or a quality out of range.
        ImportError: parts are asked for, and pycocotools is not installed.
    """

    image_format: Literal["png", "jpg"] = "png"
    quality: int = 95
    uncertainty: bool = False
    latent: bool = False
    parts: bool = False

    def __post_init__(self) -> None:
        if self.image_format not in ("png", "jpg"):
            raise ValueError(f'image_format must be "png" or "jpg", not {self.image_format!r}')
        object.__setattr__(self, "quality", integer("quality", self.quality, 1, 100))
        if self.parts:
            encode_rle(np.zeros((1, 1), dtype=bool))  # says at once if pycocotools is missing

    @property
    def extras(self) -> tuple[str, ...]:
        """Fields of a sample that the generator makes only when asked."""
        return ("uncertainty",) * self.uncertainty + ("latent",) * self.latent

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def record(sample: Sample, encoding: Encoding, num_classes: int, facts: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of one sample: name -> content.

    Args:
        sample: with the fields that the encoding asks for.
        encoding: which files.
        num_classes: K, for the pixel counts.
        facts: what all samples have in common (seed, fingerprint, license); stored with every one.
    """
    key = f"{int(sample.index):09d}"
    description: dict[str, Any] = {
        "index": int(sample.index),
        "attempt": int(sample.attempt),
        "score": _shortest(sample.uncertainty_score),
        "pixels": pixel_counts(sample.mask, num_classes),
        **facts,
    }
    if "class_label" in sample:
        description["class_label"] = int(sample.class_label)
    if encoding.parts:
        description["parts"] = _parts(sample.mask, num_classes)
    files = {
        f"{key}.{encoding.image_format}": png(sample.image)
        if encoding.image_format == "png"
        else _jpg(sample.image, encoding.quality),
        f"{key}.seg.png": png(sample.mask),
        f"{key}.json": json.dumps(description).encode(),
    }
    if encoding.uncertainty:
        files[f"{key}.uncertainty.png"] = _uncertainty_png(sample.uncertainty)
    if encoding.latent:
        files[f"{key}.latent.npy"] = _npy(sample.latent)
    return files


def decode(files: Mapping[str, bytes]) -> Sample:
    """The sample of a record, as it was generated; its tensors are on the CPU.

    With PNG images it equals what `LabeledGenerator.stream` gave, bit for bit; `js` is stored in steps of 1/8192 nat.

    Args:
        files: extension ("png" or "jpg", "seg.png", "json", …) -> content. Files that are not ours are passed over.

    Raises:
        ValueError: a file is missing or damaged.
    """
    try:
        facts = json.loads(files["json"])
        picture = files["png"] if "png" in files else files["jpg"]
        fields = {
            "image": torch.from_numpy(_pixels(picture, "RGB").transpose(2, 0, 1).copy()),
            "mask": torch.from_numpy(_pixels(files["seg.png"], "L").astype(np.int64)),
            "uncertainty_score": torch.tensor(facts["score"], dtype=torch.float32),
            "index": torch.tensor(facts["index"]),
            "attempt": torch.tensor(facts["attempt"]),
        }
        if "class_label" in facts:
            fields["class_label"] = torch.tensor(facts["class_label"])
        if "uncertainty.png" in files:
            levels = _pixels(files["uncertainty.png"], "I;16").astype(np.float32)
            fields["uncertainty"] = torch.from_numpy(levels / np.float32(LEVELS_PER_NAT))
        if "latent.npy" in files:
            fields["latent"] = torch.from_numpy(np.load(io.BytesIO(files["latent.npy"]), allow_pickle=False))
    except KeyError as error:
        raise ValueError(f"a record lacks {error}; it has {', '.join(sorted(files)) or 'nothing'}") from error
    except (OSError, SyntaxError, TypeError) as error:  # Pillow raises SyntaxError for some damaged pictures
        raise ValueError(f"a record is damaged: {error}") from error
    return Sample(fields)


def pixel_counts(mask: Tensor, num_classes: int) -> list[int]:
    """Pixels of each class in a mask."""
    return mask.flatten().bincount(minlength=num_classes)[:num_classes].tolist()


def png(picture: Tensor) -> bytes:
    """An image [3, H, W] as RGB, or a mask [H, W] as 8-bit grayscale whose pixels are class ids, losslessly."""
    return _saved(_pillow(picture), format="PNG", compress_level=_PNG_EFFORT)


def _jpg(image: Tensor, quality: int) -> bytes:
    return _saved(_pillow(image), format="JPEG", quality=quality, subsampling="4:4:4")


def _uncertainty_png(js: Tensor) -> bytes:
    levels = (js.cpu().double() * LEVELS_PER_NAT).round().clamp(0, 65535)
    return _saved(Image.fromarray(levels.numpy().astype(np.uint16)), format="PNG", compress_level=_PNG_EFFORT)


def _npy(vector: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, vector.cpu().numpy(), allow_pickle=False)
    return buffer.getvalue()


def _pillow(picture: Tensor) -> Image.Image:
    array = picture.cpu().byte()
    return Image.fromarray(array.permute(1, 2, 0).contiguous().numpy() if array.dim() == 3 else array.numpy())


def _saved(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    return buffer.getvalue()


def _pixels(content: bytes, mode: str) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as picture:
        if picture.mode != mode:
            raise ValueError(f"a record's picture has mode {picture.mode}, not {mode}")
        return np.asarray(picture)


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
