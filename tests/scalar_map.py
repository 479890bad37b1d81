"""A second kind of label, as a third party would add it: a map of depths, and an interpreter that predicts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from conftest import small_labeled
from PIL import Image
from torch import Tensor

from dsgan_datasets import InterpretedLabeler, LabeledGenerator, PixelEnsemble
from dsgan_datasets.images import png, read_pixels
from dsgan_datasets.interpreters.base import DEFAULT_OPTIONS, Frame, LabelingOptions, Prediction
from dsgan_datasets.pictures import heat_map
from dsgan_datasets.targets.base import Color, register

_LEVELS = 65534  # the last level of 16 bits stands for "unknown"


@dataclass(frozen=True)
class ScalarMap:
    """Depth from 0 to 1, float32 [H, W] in steps of 1/65534, NaN where it is unknown; its tally is a histogram."""

    bins: int = 4

    kind: ClassVar[str] = "scalar map"
    field: ClassVar[str] = "depth"
    folder: ClassVar[str] = "depths"
    extension: ClassVar[str] = "depth.png"

    @property
    def tally_names(self) -> tuple[str, ...]:
        return tuple(f"{i / self.bins:.2f} - {(i + 1) / self.bins:.2f}" for i in range(self.bins))

    @property
    def tally_colors(self) -> tuple[Color, ...]:
        row = np.asarray(heat_map(np.linspace(0, 1, self.bins)[None], 1))[0]
        return tuple((int(r), int(g), int(b)) for r, g, b in row)

    tally_unit: ClassVar[str] = "pixels"
    tally_measures: ClassVar[bool] = True
    rounding: ClassVar[None] = None
    summary: ClassVar[str] = "depth from 0 to 1"

    @property
    def ignored_as(self) -> None:
        return None

    def check(self, value: Tensor, size: tuple[int, int]) -> None:
        known = value[~value.isnan()]
        if value.dtype != torch.float32 or value.shape != size or not ((known >= 0) & (known <= 1)).all():
            raise ValueError(f"a depth map is float32 {list(size)} from 0 to 1, got {value.dtype} {list(value.shape)}")

    def mirror(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        return values.flip(-1)

    def ignore(self, values: Tensor, pixels: Tensor) -> Tensor:
        return values.masked_fill(pixels, torch.nan)

    def rounded(self, values: Tensor) -> Tensor:
        return values

    def encode(self, value: Tensor) -> bytes:
        levels = (value.double() * _LEVELS).round().nan_to_num(_LEVELS + 1)
        return png(levels.cpu().numpy().astype(np.uint16))

    def decode(self, content: bytes, size: tuple[int, int]) -> Tensor:
        levels = torch.from_numpy(read_pixels(content, "I;16", size=size, verified=True).astype(np.float64))
        return (levels / _LEVELS).masked_fill(levels > _LEVELS, torch.nan).float()

    def tally(self, values: Tensor) -> Tensor:
        edges = torch.linspace(0, 1, self.bins + 1, device=values.device)[1:-1]
        bin_ids = torch.bucketize(values.flatten(1), edges, right=True).masked_fill(
            values.flatten(1).isnan(), self.bins
        )
        counts = torch.zeros(len(values), self.bins + 1, dtype=torch.int64, device=values.device)
        return counts.scatter_add_(1, bin_ids, torch.ones_like(bin_ids))[:, : self.bins]

    def tally_total(self, size: tuple[int, int]) -> int:
        return size[0] * size[1]

    def wrap(self, value: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        from torchvision import tv_tensors

        return {self.field: tv_tensors.Mask(value)}  # resized without mixing neighbors

    def unwrap(self, entries: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
        return entries[self.field]

    def draw(
        self, image: Image.Image, value: Tensor, size: tuple[int, int], opacity: float | None = None
    ) -> Image.Image:
        return heat_map(value.nan_to_num().cpu().numpy(), 1).resize(image.size, Image.Resampling.NEAREST)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "field": self.field, "bins": self.bins}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(int(data["bins"]))


register(ScalarMap.kind, ScalarMap.from_dict)


class DepthInterpreter:
    """The masks of an ensemble and, as depth, the mean of the last feature map; depth alone if `bare`."""

    architecture = "depth of a test"

    def __init__(self, ensemble: PixelEnsemble, *, bare: bool) -> None:
        self.ensemble, self.bare = ensemble, bare
        self.layout, self.channels = ensemble.layout, ensemble.channels
        self.fields = ("depth",) if bare else ("mask", "depth")
        self.has_uncertainty = not bare
        self.config = {**ensemble.config, "architecture": self.architecture}

    @property
    def device(self) -> torch.device:
        return self.ensemble.device

    def check_options(self, options: LabelingOptions) -> None:
        self.ensemble.check_options(options)

    def predict(
        self, features: Sequence[Tensor], frame: Frame, options: LabelingOptions = DEFAULT_OPTIONS
    ) -> Prediction:
        brightness = features[-1].double().mean(1, keepdim=True).sigmoid()
        resized = F.interpolate(brightness, size=frame.size, mode="bilinear")[:, 0, slice(*frame.kept)]
        depth = ((resized * _LEVELS).round() / _LEVELS).float()
        if self.bare:
            return Prediction({"depth": depth})
        found = self.ensemble.predict(features, frame, options)
        return replace(found, labels={**found.labels, "depth": depth})

    def state_dict(self) -> Mapping[str, Tensor]:
        return self.ensemble.state_dict()

    def to(self, device: torch.device | str) -> Self:
        self.ensemble = self.ensemble.to(device)
        return self


def depth_labeled(*, bare: bool = False, **recipe: Any) -> LabeledGenerator:
    """16-pixel samples with mask and depth; with depth alone and without uncertainty if `bare`."""
    stock = small_labeled(**recipe)
    interpreter = DepthInterpreter(stock.interpreter, bare=bare)
    targets = [ScalarMap()] if bare else [*stock.targets, ScalarMap()]
    return LabeledGenerator(InterpretedLabeler(stock.generator, interpreter, targets), stock.recipe)
