"""A continuous value, or several, for every pixel: depth, normals, and whatever else is measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dsgan_datasets.arrays import npy, read_npy
from dsgan_datasets.checks import integer, is_number
from dsgan_datasets.images import png, read_pixels
from dsgan_datasets.targets.base import Color, register
from dsgan_datasets.targets.colors import heat
from dsgan_datasets.targets.parts import part_names

#: Steps between the lowest and the highest value in 16 bits: level 0 stands for "unknown", 1 … 65535 for values.
STEPS = 65534
#: Bars of the histogram of each channel.
_BINS = 8
_MOST_CHANNELS = 64
#: Fields of samples, endings of files, and files and folders of exports that have another meaning.
_FIELDS = ("attempt", "class_label", "image", "index", "keypoints", "latent", "mask", "probabilities", "uncertainty")
_ENDINGS = ("jpg", "json", "png", "seg")
_BESIDE = ("_known", "uncertainty", "uncertainty_score")
_FOLDERS = ("annotations", "classes", "images", "labels", "masks", "masks_color", "targets")


@dataclass(frozen=True)
class DenseMap:
    """A range, a unit and names of channels: the `Target` of values for every pixel.

    A label is float32 [C, H, W], finite values in `low` … `high`; NaN where a value is unknown. With one channel its
    file is a 16-bit grayscale PNG: 0 is unknown, else the value is low + (pixel - 1) · (high - low) / 65534, and
    samples hold values rounded to those steps. With more channels it is an .npy file, float32 [C, H, W], which is
    exact. Its tally is a histogram of each channel in eight bars.

    Args:
        field: key in a sample and in file names, such as "depth": lowercase letters, digits and underscores.
        low, high: ends of the range; values beyond them are cut.
        unit: of the values, for people, such as "m".
        channels: name of each channel; left out, there is one that is called like the field.
        signed: ids of channels that change their sign when the image is mirrored, such as x of surface normals; the
            range must then be symmetric.

    Raises:
        ValueError: a field that samples use for something else, a range that is empty or too narrow for float32, or
            channels that do not fit.

    Example:
        >>> depth = DenseMap("depth", low=0, high=10, unit="m")
        >>> value = depth.rounded(torch.tensor([[[[5.0, torch.nan]]]]))[0]
        >>> depth.decode(depth.encode(value), (1, 2))
        tensor([[[5., nan]]])
    """

    kind: ClassVar[str] = "dense_map"
    tally_unit: ClassVar[str] = "values"
    tally_measures: ClassVar[bool] = True
    ignored_as: ClassVar[None] = None

    field: str
    low: float
    high: float
    unit: str = ""
    channels: tuple[str, ...] = ()
    signed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        fill = object.__setattr__
        if not isinstance(self.field, str) or not re.fullmatch("[a-z][a-z0-9_]{0,39}", self.field):
            raise ValueError(
                f"field must be a short name of lowercase letters, digits and underscores, such as depth, not "
                f"{self.field!r:.60}"
            )
        if self.field in (*_FIELDS, *_ENDINGS, *_FOLDERS) or self.field.endswith(_BESIDE):
            raise ValueError(f"field {self.field!r} has another meaning in samples and files: choose another name")
        if not all(is_number(end) and abs(end) < 1e30 for end in (self.low, self.high)) or not self.low < self.high:
            raise ValueError(
                f"low and high must be numbers, low below high, not {self.low!r:.40} and {self.high!r:.40}"
            )
        fill(self, "low", float(self.low))
        fill(self, "high", float(self.high))
        if 4 * np.spacing(np.float32(max(abs(self.low), abs(self.high)))) > self.step:
            raise ValueError(
                f"the range {self.low:g} … {self.high:g} is so far from 0 that float32 cannot hold its {STEPS} steps: "
                "subtract an offset from the values"
            )
        if not isinstance(self.unit, str) or (self.unit and not self.unit.isprintable()):
            raise ValueError(f"unit must be a text, such as m, not {self.unit!r:.40}")
        fill(self, "channels", part_names("channel", self.channels or (self.field,)))
        if len(self.channels) > _MOST_CHANNELS:
            raise ValueError(f"a map has at most {_MOST_CHANNELS} channels, not {len(self.channels)}")
        fill(self, "signed", tuple(integer("signed", i, 0, self.num_channels - 1) for i in self.signed))
        if len(set(self.signed)) < len(self.signed) or (self.signed and self.low != -self.high):
            raise ValueError(
                f"signed {self.signed} must be different channels, and their range symmetric, not {self.low:g} … "
                f"{self.high:g}"
            )

    @property
    def num_channels(self) -> int:
        """Number of channels C."""
        return len(self.channels)

    @property
    def step(self) -> float:
        """Difference between two neighboring levels of the 16-bit PNG, in the unit of the map."""
        return (self.high - self.low) / STEPS

    @property
    def folder(self) -> str:
        """The field."""
        return self.field

    @property
    def extension(self) -> str:
        """Such as "depth.png", or "normals.npy" with more than one channel."""
        return f"{self.field}.{'png' if self.num_channels == 1 else 'npy'}"

    @property
    def tally_names(self) -> tuple[str, ...]:
        """Eight parts of the range, of each channel."""
        edges = [self.low + (self.high - self.low) * i / _BINS for i in range(_BINS + 1)]
        parts = [f"{a:.6g} … {b:.6g} {self.unit}".rstrip() for a, b in pairwise(edges)]
        if self.num_channels == 1:
            return tuple(parts)
        return tuple(f"{channel} {part}" for channel in self.channels for part in parts)

    @property
    def tally_colors(self) -> tuple[Color, ...]:
        """The colors of the parts in a heat map."""
        ramp = heat((np.arange(_BINS) + 0.5) / _BINS)
        return tuple((int(r), int(g), int(b)) for r, g, b in ramp) * self.num_channels

    @property
    def summary(self) -> str:
        """Range, unit and channels."""
        channels = f", {self.num_channels} channels: {', '.join(self.channels)}" if self.num_channels > 1 else ""
        return f"{self.low:g} … {self.high:g} {self.unit}".rstrip() + channels

    @property
    def rounding(self) -> list[Any]:
        """The range, and the steps in it."""
        return [self.field, self.low, self.high, STEPS if self.num_channels == 1 else None]

    def check(self, value: Tensor, size: tuple[int, int]) -> None:
        """Raise a ValueError unless this is float32 [C, H, W] of NaN and values in the range."""
        shape = (self.num_channels, *size)
        if value.dtype != torch.float32 or value.shape != shape:
            raise ValueError(f"{self.field} is float32 {list(shape)}, got {str(value.dtype)[6:]} {list(value.shape)}")
        known = value[~value.isnan()]
        if known.numel() and not ((known >= self.low) & (known <= self.high)).all():
            low, high = (float(end) for end in known.aminmax())
            raise ValueError(
                f"{self.field} holds {low:g} … {high:g}; its range is {self.low:g} … {self.high:g} {self.unit}".rstrip()
            )

    def mirror(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """The map of the mirrored image, [C, H, W] or [N, C, H, W]; `signed` channels change their sign."""
        channels = values.flip(-1).unbind(-3)
        return torch.stack([-c if i in self.signed else c for i, c in enumerate(channels)], -3)

    def ignore(self, values: Tensor, pixels: Tensor) -> Tensor:
        """Maps [N, C, H, W] that are unknown where `pixels` (bool [N, H, W]) is set."""
        return values.masked_fill(pixels[:, None], torch.nan)

    def rounded(self, values: Tensor) -> Tensor:
        """Maps cut to the range and, with one channel, in its 65,534 steps."""
        if self.num_channels > 1:
            return values.clamp(self.low, self.high)
        return self._of_levels(self._levels(values))

    def encode(self, value: Tensor) -> bytes:
        """A 16-bit PNG, or an .npy file if there is more than one channel."""
        if self.num_channels > 1:
            return npy(value.cpu().numpy())
        return png(self._levels(value)[0].nan_to_num(0).cpu().numpy().astype(np.uint16))

    def decode(self, content: bytes, size: tuple[int, int]) -> Tensor:
        """Inverse of `encode`, float32 [C, H, W].

        Raises:
            ValueError: not a 16-bit grayscale PNG, or not a float32 .npy file of that shape with values in the range.
        """
        if self.num_channels > 1:
            value = torch.from_numpy(read_npy(content, (self.num_channels, *size), self.field))
            self.check(value, size)
            return value
        levels = torch.from_numpy(read_pixels(content, "I;16", size=size, verified=True).astype(np.float64))
        return self._of_levels(levels.masked_fill(levels == 0, torch.nan))[None]

    def _levels(self, values: Tensor) -> Tensor:
        """1 … 65535 as float64, NaN where the value is unknown."""
        return ((values.double() - self.low) / self.step).round().clamp(0, STEPS) + 1

    def _of_levels(self, levels: Tensor) -> Tensor:
        """Inverse of `_levels`."""
        return ((levels - 1) * self.step + self.low).float()

    def tally(self, values: Tensor) -> Tensor:
        """Values of maps [N, C, H, W] in each part of the range, int64 [N, 8 C]; unknown ones are not counted."""
        parts = ((values.double() - self.low) * (_BINS / (self.high - self.low))).nan_to_num(0).long()
        first = _BINS * torch.arange(self.num_channels, device=values.device)[:, None, None]
        unknown = _BINS * self.num_channels
        places = (parts.clamp(0, _BINS - 1) + first).masked_fill(values.isnan(), unknown).flatten(1)
        counts = torch.zeros(len(values), unknown + 1, dtype=torch.int64, device=values.device)
        return counts.scatter_add_(1, places, torch.ones_like(places))[:, :unknown]

    def tally_total(self, size: tuple[int, int]) -> int:
        """Pixels times channels."""
        return size[0] * size[1] * self.num_channels

    def wrap(self, value: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Two ``tv_tensors.Mask`` [C, H, W], which transforms resize without mixing pixels.

        FIELD holds the values, `low` where they are unknown; FIELD_known is uint8, 1 where they are known, else 0."""
        from torchvision import tv_tensors

        unknown = value.isnan()
        return {
            self.field: tv_tensors.Mask(value.masked_fill(unknown, self.low)),
            f"{self.field}_known": tv_tensors.Mask((~unknown).to(torch.uint8)),
        }

    def unwrap(self, entries: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
        """The map after transforms; what they filled in beside the image is unknown."""
        values, known = (entries[name].as_subclass(Tensor) for name in (self.field, f"{self.field}_known"))
        if not values.is_floating_point():
            raise ValueError(
                f"transforms must leave {self.field} float32, they made it {str(values.dtype)[6:]}: choose what they "
                "convert by its key, not by its type"
            )
        return values.masked_fill(known != 1, torch.nan)

    def draw(
        self, image: Image.Image, value: Tensor, size: tuple[int, int], opacity: float | None = None
    ) -> Image.Image:
        """A heat map, dark is low; with three channels their values as red, green and blue. Unknown pixels show the
        image."""
        known = ~value.isnan().any(0).cpu().numpy()
        shares = ((value.cpu().double() - self.low) / (self.high - self.low)).nan_to_num(0).clamp(0, 1).numpy()
        pixels = (255 * shares).round().astype(np.uint8).transpose(1, 2, 0) if len(shares) == 3 else heat(shares[0])
        colors, shown = (Image.fromarray(p).resize(image.size, Image.Resampling.NEAREST) for p in (pixels, known))
        drawn = Image.composite(colors, image, shown)
        return drawn if opacity is None else Image.blend(image, drawn, opacity)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as stored in config.json."""
        return {
            "kind": self.kind,
            "field": self.field,
            "low": self.low,
            "high": self.high,
            "unit": self.unit,
            "channels": list(self.channels),
            "signed": list(self.signed),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DenseMap:
        """Inverse of `to_dict`; unit, channels and signed may be left out.

        Raises:
            ValueError: values that do not fit (see the class).
        """
        more = {name: data[name] for name in ("unit", "channels", "signed") if name in data}
        return cls(data["field"], data["low"], data["high"], **more)


register(DenseMap.kind, DenseMap.from_dict)
