"""Samples with masks, keypoints and depth, by an interpreter that needs no fitting: for tests of what uses labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from conftest import SCHEMA, small_labeled
from torch import Tensor

from dsgan_datasets import DenseMap, InterpretedLabeler, Keypoints, LabeledGenerator, PixelEnsemble
from dsgan_datasets.interpreters.base import DEFAULT_OPTIONS, Frame, LabelingOptions, Prediction
from dsgan_datasets.targets import Target

POINTS = Keypoints(("nose", "left_eye", "right_eye", "chin"), skeleton=((0, 1), (0, 2)), flip_pairs=((1, 2),))
DEPTH = DenseMap("depth", -1.5, 1.5, "m")
TARGETS: tuple[Target, ...] = (SCHEMA, POINTS, DEPTH)


class KindsInterpreter:
    """The masks of an ensemble; keypoints and depth straight from the last feature map."""

    architecture = "kinds of a test"

    def __init__(self, ensemble: PixelEnsemble, fields: Sequence[str]) -> None:
        self.ensemble, self.fields = ensemble, tuple(fields)
        self.layout, self.channels, self.num_classes = ensemble.layout, ensemble.channels, ensemble.num_classes
        self.has_uncertainty = "mask" in fields
        self.config = {**ensemble.config, "architecture": self.architecture, "fields": list(fields)}

    @classmethod
    def from_parts(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        stock = {name: value for name, value in config.items() if name != "fields"}
        stock["architecture"] = PixelEnsemble.architecture
        return cls(PixelEnsemble.from_parts(stock, tensors), config["fields"])

    @property
    def device(self) -> torch.device:
        return self.ensemble.device

    def check_options(self, options: LabelingOptions) -> None:
        self.ensemble.check_options(options)

    def predict(
        self, features: Sequence[Tensor], frame: Frame, options: LabelingOptions = DEFAULT_OPTIONS
    ) -> Prediction:
        labels = {"keypoints": _points(features[-1], frame), "depth": _depth(features[-1], frame)}
        found = self.ensemble.predict(features, frame, options) if "mask" in self.fields else Prediction({})
        return replace(found, labels={**found.labels, **{f: v for f, v in labels.items() if f in self.fields}})

    def state_dict(self) -> Mapping[str, Tensor]:
        return self.ensemble.state_dict()

    def to(self, device: torch.device | str) -> Self:
        self.ensemble = self.ensemble.to(device)
        return self


def _points(features: Tensor, frame: Frame) -> Tensor:
    """The center of gravity of one channel for each point; the channel's sign says whether it is visible."""
    (height, width), (top, bottom) = frame.size, frame.kept
    maps = features[:, : POINTS.num_points].double()
    weights = (4 * maps).flatten(2).softmax(-1).view_as(maps)
    rows, columns = maps.shape[2:]
    x = (weights.sum(2) * (torch.arange(columns) + 0.5)).sum(-1) * (width / columns)
    y = (weights.sum(3) * (torch.arange(rows) + 0.5)).sum(-1) * (height / rows) - top
    strength = maps.mean((2, 3))
    v = torch.where(strength > 0, 2, 1).masked_fill((y < 0) | (y > bottom - top) | (strength.abs() < 0.02), 0)
    return torch.stack([x, y, v], -1).masked_fill((v == 0)[..., None], 0).float()


def _depth(features: Tensor, frame: Frame) -> Tensor:
    """The mean of the channels, beyond the range in places, unknown where it is lowest."""
    mean = features.double().mean(1, keepdim=True) * 4
    resized = F.interpolate(mean, size=frame.size, mode="bilinear")[:, :, slice(*frame.kept)]
    return resized.masked_fill(resized < -1.0, torch.nan).float()


def kinds_labeled(fields: Sequence[str] = ("mask", "keypoints", "depth"), **recipe: Any) -> LabeledGenerator:
    """16-pixel samples with the labels of some fields."""
    stock = small_labeled()
    interpreter = KindsInterpreter(stock.interpreter, fields)
    targets = [target for target in TARGETS if target.field in fields]
    labeler = InterpretedLabeler(stock.generator, interpreter, targets)
    return LabeledGenerator(labeler, stock.recipe.override(**recipe))
