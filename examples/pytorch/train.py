"""Streams labeled faces into a torchvision segmentation model: python examples/pytorch/train.py --steps 100"""

import argparse

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from torchvision.transforms import v2

from dsgan_datasets import DSGANIterableDataset, LabeledGenerator
from dsgan_datasets.transforms import RandomHorizontalFlip


def train(steps: int = 100, batch_size: int = 8, checkpoint: str = "demo-faces", device: str = "cpu") -> list[float]:
    labeled = LabeledGenerator.from_pretrained(checkpoint, device=device)
    flip, crop = RandomHorizontalFlip(labeled.schema), v2.RandomCrop(56)
    augment = v2.Compose([flip, crop, v2.ToDtype(torch.float32, scale=True)])
    loader = DataLoader(DSGANIterableDataset(labeled, transforms=augment), batch_size=batch_size)
    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=labeled.schema.num_classes)
    model = model.to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses: list[float] = []
    for _, batch in zip(range(steps), loader, strict=False):
        loss = F.cross_entropy(model(batch["image"])["out"], batch["mask"], ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    losses = train(parser.parse_args().steps)
    print(f"loss: first {losses[0]:.2f}, last {losses[-1]:.2f} after {len(losses)} steps")
