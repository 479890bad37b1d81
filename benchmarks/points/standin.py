"""A U-Net that finds keypoints and depth: it annotates generated images in place of a person."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from annotator import WIDTHS
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm
from train_annotator import cut_out, degrade, muddle, recolor, tint_background

from dsgan_datasets.files import atomic_write
from dsgan_datasets.students import UNet
from dsgan_datasets.students.heads import centers

from .data import BACKGROUND, Renders

SIGMA = 1.0  # 64ths of the width, of a point's target


class StandIn(UNet):
    """Keypoints and depth of images of a half-trained generator.

    The outputs of a pixel are, of each point, the logit of being its place and that of being visible there, and depth
    and figure.

    Args:
        num_points: K.
        resolution: H = W of the images, pixels.

    Attributes:
        report: how it was trained and how good it was found to be.
    """

    def __init__(self, num_points: int, resolution: int) -> None:
        super().__init__(2 * num_points + 2, WIDTHS[resolution])
        self.num_points, self.resolution = num_points, resolution
        self.report: dict[str, object] = {}

    def read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log probability of places [N, K, H, W], logits of visibility [N, K], depth and logit of the figure [N, H, W],
        of images float [N, 3, H, W] in [-1, 1]."""
        places, visible, more = self(x).split([self.num_points, self.num_points, 2], 1)
        places = places.flatten(2).log_softmax(2).view_as(places)
        return places, (places.exp() * visible).sum((2, 3)), more[:, 0], more[:, 1]

    @torch.inference_mode()
    def annotate(self, images: Tensor, batch_size: int = 64) -> tuple[Tensor, Tensor]:
        """Points [N, K, 3] and depth [N, 1, H, W] of images uint8 [N, 3, H, W]."""
        points, depths = [], []
        for part in images.split(batch_size):
            places, visible, depth, figure = self.read(part.float() / 127.5 - 1)
            seen = (visible > 0).float() + 1
            points.append(torch.cat([centers(places.exp()), seen[..., None]], 2))
            depths.append(torch.where(figure > 0, depth.clamp(-1, 1.5), BACKGROUND))
        return torch.cat(points).clone(), torch.cat(depths)[:, None].clone()


def train(renders: Renders, *, steps: int, batch_size: int, lr: float, seed: int) -> StandIn:
    """Train from scratch on images with masks, points and depths, changed to look like those of a half-trained GAN."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    network = StandIn(renders.points.shape[1], renders.images.shape[3]).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    for _ in tqdm(range(steps), "train", unit="step", mininterval=10):
        rows = torch.randint(len(renders.images), (batch_size,), generator=random)
        loss = _loss(network, renders, rows, random)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval().requires_grad_(False)


def _loss(network: StandIn, renders: Renders, rows: Tensor, random: torch.Generator) -> Tensor:
    """Cross-entropy of places, visibility and figure, and absolute error of depth where it is known."""
    x, masks = renders.images[rows].float() / 255, renders.masks[rows].long()
    depths, points = renders.depths[rows], renders.points[rows]
    x, masks, depths, points = _moved(x, masks, depths, points, random)
    x = muddle(x, masks, random)
    x = tint_background(recolor(x, random), masks, random)
    x = cut_out(degrade(x, random), random).clamp(0, 1) * 2 - 1
    side = x.shape[3]
    at = torch.arange(side) + 0.5
    sigma = SIGMA * side / 64
    across, down = (torch.exp(-((at - points[..., i, None]) ** 2) / (2 * sigma**2)) for i in range(2))
    target = down[..., :, None] * across[..., None, :]
    weight = target.sum((2, 3))
    inside = (points[..., 2] > 0) & (weight > 0.5)
    target = target / weight.clamp_min(0.5)[..., None, None]
    with torch.autocast("cpu", torch.bfloat16):  # half the time where the processor has it; softmax stays in float32
        places, visible, depth, figure = network.read(x.contiguous(memory_format=torch.channels_last))
    of_places = -(target * places).sum((2, 3))[inside].mean()
    of_sight = F.binary_cross_entropy_with_logits(visible[inside].float(), (points[..., 2][inside] == 2).float())
    loss = of_places + of_sight + F.binary_cross_entropy_with_logits(figure.float(), (masks != 0).float())
    known = (depths[:, 0] > BACKGROUND) & (masks != 0)
    return loss + 10 * (depth - depths[:, 0])[known].abs().mean() if known.any() else loss


def _moved(
    x: Tensor, masks: Tensor, depths: Tensor, points: Tensor, random: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and all their labels shifted (4 64ths), scaled (15 %) and turned (8 degrees); depths stay in heads."""
    n, side = len(x), x.shape[3]

    def uniform(*shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=random) - 0.5

    angle, scale, shift = uniform() * 0.28, torch.exp(uniform(1) * 0.3), uniform(2) * 0.25
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2) * scale[..., None]
    grid = F.affine_grid(torch.cat([turn, shift[..., None]], 2), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    labels = torch.cat([masks[:, None].float(), depths], 1)
    labels = F.grid_sample(labels, grid, mode="nearest", padding_mode="border", align_corners=False)
    # The grid says where each pixel comes from; a point goes the other way.
    unit = points[..., :2] * (2 / side) - 1
    unit = torch.linalg.solve(turn, (unit - shift[:, None]).mT).mT
    moved = torch.cat([(unit + 1) * (side / 2), points[..., 2:]], 2)
    return x, labels[:, 0].long(), labels[:, 1:], moved


def save_standin(network: StandIn, path: Path, report: dict[str, object]) -> None:
    """Write the weights, with the report in their metadata."""
    stored = {"num_points": network.num_points, "resolution": network.resolution, **report}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(save({k: v.contiguous() for k, v in network.state_dict().items()}, {"report": json.dumps(stored)}))


def load_standin(path: Path) -> StandIn:
    """The network that `save_standin` stored, in evaluation mode."""
    with safe_open(str(path), framework="pt") as file:
        report = json.loads(file.metadata()["report"])
    network = StandIn(report["num_points"], report["resolution"])
    network.report = report
    network.load_state_dict(load_file(path))
    return network.eval().requires_grad_(False)
