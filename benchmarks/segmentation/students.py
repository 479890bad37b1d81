"""Students, how they are trained - the same for every row - and how they are measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dsgan_datasets import LabelSchema
from dsgan_datasets.fitting.evaluation import ConfusionMatrix, count_pairs
from dsgan_datasets.imagenet import ImageNetEncoder
from dsgan_datasets.students import UNet, segmentation_loss, warm_up_and_cosine

from .augment import augment, network_input
from .data import IGNORE, Labeled

#: Name of a student -> what it is, for readers of the results.
STUDENTS = {
    "unet": "a small U-Net, from scratch",
    "efficientnet": "a U-Net on EfficientNet-Lite0, pretrained on ImageNet",
    "deeplabv3": "DeepLabv3 with a ResNet-50, from scratch",
}
FULL_RESOLUTION = 16  # channels beside those of the pretrained encoder, which begins at half the side
ENCODER_RATE = 0.1  # share of the learning rate that pretrained weights are trained with
PRECISIONS = ("float32", "bfloat16")
Predictor = Callable[[Tensor], Tensor]


class DeepLab(nn.Module):
    """torchvision's DeepLabv3 with a ResNet-50, from scratch."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        from torchvision.models.segmentation import deeplabv3_resnet50

        self.network = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Float [N, 3, H, W] in [-1, 1] -> logits [N, K, H, W]; N at least 2 in training."""
        return self.network(x)["out"]


class PretrainedUNet(UNet):
    """A U-Net whose way down is an encoder with ImageNet weights; what is at full resolution, and the way up, is new.

    The paper's row of transfer learning, in the size of this benchmark. Sides are multiples of 32.
    """

    def __init__(self, num_classes: int) -> None:
        encoder = ImageNetEncoder()
        super().__init__(num_classes, (FULL_RESOLUTION, *encoder.channels), up_convolutions=1, upsampling="nearest")
        self.down = self.down[:1]
        self.encoder = encoder

    def levels(self, x: Tensor) -> list[Tensor]:
        return [self.down[0](x), *self.encoder(x)]


class HalfPrecision(nn.Module):
    """A network that computes in bfloat16; its weights and logits stay float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            logits = self.network(x)
        return logits.float()


def build_student(num_classes: int, name: str, width: int, precision: str) -> nn.Module:
    """A student with fresh weights.

    Args:
        num_classes: K.
        name: one of `STUDENTS`.
        width: channels of "unet" at full resolution, a multiple of 4; they double at each of three halvings.
        precision: "float32" or "bfloat16".

    Raises:
        ImportError: the packages of the pretrained one are not installed.
    """
    network: nn.Module
    if name == "unet":
        network = UNet(num_classes, [width * 2**i for i in range(4)], up_convolutions=1, upsampling="nearest")
    else:
        network = {"efficientnet": PretrainedUNet, "deeplabv3": DeepLab}[name](num_classes)
    return HalfPrecision(network) if precision == "bfloat16" else network


@dataclass(frozen=True)
class StudentSettings:
    """What the search chooses."""

    learning_rate: float
    steps: int
    augmentation: str  # "weak" or "strong"


class Batch(NamedTuple):
    """Labeled images (masks of ids or soft), and unlabeled ones for the rows that use them."""

    image: Tensor
    mask: Tensor
    unlabeled: Tensor | None = None


class Objective(Protocol):
    """What a step minimizes; it may train networks of its own beside the student."""

    def __call__(self, student: nn.Module, batch: Batch) -> Tensor: ...

    def predictors(self, student: nn.Module) -> dict[str, Predictor]:
        """Ways to label images: the first is the row's, the others are reported beside it."""
        ...


class Supervised:
    """Cross-entropy and Dice on labeled images."""

    def __init__(self, num_classes: int, steps: int, device: str) -> None:
        pass

    def __call__(self, student: nn.Module, batch: Batch) -> Tensor:
        return segmentation_loss(student(batch.image), batch.mask, IGNORE)

    def predictors(self, student: nn.Module) -> dict[str, Predictor]:
        return {"": student}


def parameter_groups(student: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
    """What AdamW trains, with its learning rate: pretrained weights keep most of what they know."""
    encoders = (module for module in student.modules() if isinstance(module, ImageNetEncoder))
    pretrained = [parameter for encoder in encoders for parameter in encoder.parameters()]
    held = set(map(id, pretrained))
    fresh = [parameter for parameter in student.parameters() if id(parameter) not in held]
    groups = [{"params": fresh, "lr": learning_rate}, {"params": pretrained, "lr": ENCODER_RATE * learning_rate}]
    return [group for group in groups if group["params"]]


def train(
    student: nn.Module,
    batches: Iterator[Batch],
    settings: StudentSettings,
    schema: LabelSchema,
    objective: Objective,
    name: str = "training",
) -> list[float]:
    """Train in place with AdamW; the loss of every step."""
    optimizer = torch.optim.AdamW(parameter_groups(student, settings.learning_rate), weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(warm_up_and_cosine, steps=settings.steps))
    student.train().to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    losses = []
    bar = tqdm(islice(batches, settings.steps), name, settings.steps, unit="step", delay=2, leave=False)
    for image, mask, unlabeled in bar:
        image, mask = augment(image, mask, settings.augmentation, schema)
        if unlabeled is not None:
            unlabeled, _ = augment(unlabeled, torch.zeros_like(unlabeled[:, 0]), settings.augmentation, schema)
        loss = objective(student, Batch(image, mask, unlabeled))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    student.eval()
    return losses


@torch.no_grad()
def predict(predictor: Predictor, images: Tensor, device: str, batch_size: int = 50) -> Tensor:
    """Masks uint8 [N, H, W] of images, on the CPU."""
    parts = (predictor(network_input(part.to(device))).argmax(1) for part in images.split(batch_size))
    return torch.cat([part.to("cpu", torch.uint8) for part in parts])


def class_iou(predicted: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """IoU of each class, pixels of all images pooled, float64 [K]; NaN for a class that occurs in neither.

    Example:
        >>> class_iou(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 3)
        tensor([0.5000, 0.5000,    nan], dtype=torch.float64)
    """
    return ConfusionMatrix(count_pairs(truth.long(), predicted.long(), num_classes, IGNORE)).iou


def evaluate(predictor: Predictor, data: Labeled, num_classes: int, device: str) -> tuple[Tensor, Tensor]:
    """IoU of each class, and the predicted masks."""
    masks = predict(predictor, data.images, device)
    return class_iou(masks, data.masks.cpu(), num_classes), masks
