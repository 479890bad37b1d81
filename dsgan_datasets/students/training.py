"""A small student of a stream: trained for some minutes, then asked for the labels of images that it has not seen."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from dsgan_datasets.device import has_fast_bfloat16
from dsgan_datasets.samples import SampleBatch
from dsgan_datasets.sources.base import SampleSource
from dsgan_datasets.sources.datasets import DSGANIterableDataset
from dsgan_datasets.students.heads import HEADS, Head
from dsgan_datasets.students.reuse import reused
from dsgan_datasets.students.unet import UNet
from dsgan_datasets.targets.base import Target

#: Pixels along the longer side of what a student sees, at most, and what its sides are multiples of.
_LONGEST, _STEP = 128, 8
#: Channels at full, half, … resolution.
_WIDTHS = (16, 32, 64, 128)
#: Samples a step, and how often each is seen where making one takes longer than learning from it.
_BATCH, _USES = 8, 4
_LEARNING_RATE, _WEIGHT_DECAY = 6e-3, 1e-2
#: The bar counts seconds.
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}"
#: Half-width of random changes of contrast and brightness: photos are not lit like samples.
_RECOLOR = 0.1


class Student(nn.Module):
    """A U-Net of half a million weights that reads labels of images; make one with `train_student`.

    Args:
        targets: what it learns, of the kinds in `HEADS`.
        size: (H, W) of the images; larger ones than 128 pixels are reduced to that.

    Attributes:
        steps: of its training so far.

    Raises:
        ValueError: it can learn none of the labels.

    Example:
        >>> student = Student([LabelSchema(("background", "face"))], (64, 64))
        >>> student.steps
        0
    """

    def __init__(self, targets: Sequence[Target], size: tuple[int, int]) -> None:
        super().__init__()
        self.targets = tuple(target for target in targets if target.kind in HEADS)
        if not self.targets:
            kinds = ", ".join(target.kind for target in targets)
            raise ValueError(f"a student learns labels of the kinds {', '.join(HEADS)}, and these are {kinds}")
        scale = min(1.0, _LONGEST / max(size))
        height, width = (max(1, round(side * scale / _STEP)) * _STEP for side in size)
        self.seen_size = (height, width)
        self._channels = [self._head(target).channels(target) for target in self.targets]
        self.network = UNet(sum(self._channels), _WIDTHS, up_convolutions=1, upsampling="nearest")
        self.steps = 0

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Outputs for each target, float32 [N, c, h, w], of images uint8 [N, 3, H, W]."""
        return self._outputs(images.float() / 127.5 - 1)

    def loss(self, images: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        """What training minimizes, for images uint8 [N, 3, H, W] and the label of each target by its field."""
        size = (images.shape[2], images.shape[3])
        outputs = self._outputs(_recolored(images.float() / 127.5 - 1))
        losses = [
            self._head(target).loss(output, labels[target.field], target, size)
            for target, output in zip(self.targets, outputs, strict=True)
        ]
        return torch.stack(losses).sum()

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """The label of each target, by its field, of images uint8 [N, 3, H, W]."""
        size = (images.shape[2], images.shape[3])
        return {
            target.field: self._head(target).predict(output, target, size)
            for target, output in zip(self.targets, self(images), strict=True)
        }

    def _outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        if x.shape[2:] != self.seen_size:
            x = F.interpolate(x, self.seen_size, mode="bilinear", antialias=True, align_corners=False)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=has_fast_bfloat16(x.device)):
            outputs = self.network(x)
        parts: tuple[Tensor, ...] = outputs.float().split(self._channels, 1)
        return parts

    @staticmethod
    def _head(target: Target) -> Head:
        return HEADS[target.kind]


def train_student(source: SampleSource, *, minutes: float, seed: int = 0) -> Student:
    """Train a student on a stream of samples for some time, with a progress bar.

    How far it comes depends on the machine, so it is not the same again; `Student.steps` says how far.

    Args:
        source: gives the samples, on the device to train on.
        minutes: of training, above 0; at least one step is done.
        seed: of the samples, and of the student's first weights.

    Raises:
        ValueError: labels that it cannot learn, or no minutes.

    Example:
        >>> student = train_student(labeled, minutes=5)  # doctest: +SKIP
        >>> student.predict(photos)["mask"].shape  # doctest: +SKIP
        torch.Size([3, 64, 64])
    """
    if not 0 < minutes < 1e6:
        raise ValueError(f"minutes of training must be a number above 0, not {minutes!r:.40}")
    with torch.random.fork_rng([source.device] if source.device.type == "cuda" else []):
        torch.manual_seed(seed)
        return _trained(source, 60 * minutes, seed)


def _trained(source: SampleSource, seconds: float, seed: int) -> Student:
    student = Student(source.targets, source.image_size).to(source.device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(student.parameters(), _LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    uses = 1 if source.device.type == "cuda" else _USES
    stream = DSGANIterableDataset(source, seed=seed, batch_size=_BATCH // uses)
    fields = [target.field for target in student.targets]
    started, shown = time.monotonic(), 0
    student.train()
    with (
        closing(cast(Generator[SampleBatch], stream.batches())) as batches,
        tqdm(total=round(seconds), desc="training a student", bar_format=_BAR, delay=2, leave=False) as bar,
    ):
        samples = (tuple(batch[name] for name in ("image", *fields)) for batch in batches)
        for images, *labels in reused(samples, _BATCH, uses, seed):
            done = (time.monotonic() - started) / seconds
            if done >= 1 and student.steps:
                break
            for group in optimizer.param_groups:
                group["lr"] = _LEARNING_RATE * warm_up_and_cosine(round(1000 * min(done, 1)), 1000)
            loss = student.loss(images, dict(zip(fields, labels, strict=True)))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            student.steps += 1
            now = min(round(time.monotonic() - started), round(seconds))
            bar.update(now - shown)
            shown = now
            bar.set_postfix(steps=student.steps, loss=f"{loss.item():.3f}", refresh=False)
    return student.eval()


def warm_up_and_cosine(step: int, steps: int) -> float:
    """Factor of the learning rate: up over the first tenth of the steps, then down to 0 on a cosine.

    Example:
        >>> [round(warm_up_and_cosine(step, 100), 2) for step in (0, 9, 50, 99)]
        [0.1, 1.0, 0.59, 0.0]
    """
    warm = max(1, steps // 10)
    return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * max(0, step - warm) / max(1, steps - warm)))


def _recolored(x: Tensor) -> Tensor:
    """Images [N, 3, H, W] from -1 to 1 with another contrast and brightness each."""
    contrast, brightness = (1 + _RECOLOR * (2 * torch.rand(2, len(x), 1, 1, 1, device=x.device) - 1)).unbind(0)
    return (x * contrast + brightness - 1).clamp(-1, 1)
