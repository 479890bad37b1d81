"""Train the stand-in annotator on renders with exact part masks, hardened for images of a half-trained GAN.

Example:
    python examples/demo_faces/train_annotator.py --data demo_domain --out annotator.safetensors

Shapes: N images, C classes, H = W = 64 pixels. Images are float [N, 3, H, W] in [0, 1] while they are augmented.
"""

import argparse
import io
import math
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from annotator import CLASSES, RESOLUTION, Annotator, save_annotator
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

# The 14 rendered classes (index) as the 12 annotated ones (value): eye_white + iris -> eye, upper + lower lip -> lips.
MERGE = np.array([0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 9, 10, 11], dtype=np.uint8)
# Annotated classes from the most to the least frequent by pixels, and the rank of each in that order.
BY_FREQUENCY = (
    "background", "skin", "hair", "neck", "nose", "clothes", "beard", "lips", "brow", "ear", "eye", "mouth",
)  # fmt: skip
RARITY = np.array([BY_FREQUENCY.index(name) for name in CLASSES])


# ---------------------------------------------------------------------------------------------------------- data


def halve_image(image: np.ndarray) -> np.ndarray:
    """Box filter: uint8 [2H, 2W, 3] -> uint8 [H, W, 3]."""
    h, w, c = image.shape
    blocks = image.reshape(h // 2, 2, w // 2, 2, c).astype(np.uint16)
    return ((blocks.sum((1, 3)) + 2) // 4).astype(np.uint8)


def halve_mask(mask: np.ndarray) -> np.ndarray:
    """Majority of each 2x2 block: uint8 [2H, 2W] -> uint8 [H, W].

    A tie goes to the rarer class: eyes, lips and mouth are a few pixels and would otherwise be eaten by the skin
    around them.
    """
    corners = np.stack([mask[i::2, j::2] for i in (0, 1) for j in (0, 1)])
    votes = (corners[:, None] == corners[None]).sum(1)
    winner = (votes * len(CLASSES) + RARITY[corners]).argmax(0)
    return np.take_along_axis(corners, winner[None], 0)[0]


def read_shard(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Image uint8 [64, 64, 3] and mask uint8 [64, 64] (12 classes) of each sample of a shard, in its order.

    Raises:
        ValueError: a sample that lacks its image or mask, or is not 128x128.
    """
    sample: dict[str, np.ndarray] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, kind = member.name.partition(".")
            file = tar.extractfile(member)
            if file is None or kind not in ("jpg", "seg.png"):
                continue
            sample[f"{key}.{kind}"] = np.asarray(Image.open(io.BytesIO(file.read())))  # mode P: the class itself
            if len(sample) < 2:
                continue
            if set(sample) != {f"{key}.jpg", f"{key}.seg.png"}:
                raise ValueError(f"{path}: got {sorted(sample)} in a row, expected KEY.jpg and KEY.seg.png of one key")
            image, mask = sample[f"{key}.jpg"], sample[f"{key}.seg.png"]
            if image.shape[:2] != (2 * RESOLUTION,) * 2 or mask.shape != image.shape[:2]:
                raise ValueError(f"{path}: {key} is {image.shape} with mask {mask.shape}, expected 128x128 pixels")
            yield halve_image(image), halve_mask(MERGE[mask])
            sample = {}
    if sample:
        raise ValueError(f"{path}: ends after {sorted(sample)}, expected KEY.jpg and KEY.seg.png of each key")


def load_renders(folder: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, 64, 64] and masks uint8 [N, 64, 64] of folder/train-*.tar; test-*.tar is not opened."""
    shards = sorted(folder.glob("train-*.tar"))
    if not shards:
        raise FileNotFoundError(f"no train-*.tar in {folder}: --data takes the folder that holds the shards")
    pairs = [pair for shard in tqdm(shards, "read", unit="shard") for pair in read_shard(shard)]
    images, masks = zip(*pairs, strict=True)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(np.stack(masks))


# -------------------------------------------------------------------------------------------------- augmentation


def _uniform(x: Tensor, low: float, high: float, g: torch.Generator, channels: int = 1) -> Tensor:
    """One number per image (and channel), [N, channels, 1, 1]."""
    return low + (high - low) * torch.rand(len(x), channels, 1, 1, generator=g)


def _sometimes(p: float, changed: Tensor, x: Tensor, g: torch.Generator) -> Tensor:
    """Each image changed with probability p."""
    return torch.where(_uniform(x, 0, 1, g) < p, changed, x)


def _smooth_noise(x: Tensor, cells: int, channels: int, g: torch.Generator) -> Tensor:
    """Bicubic noise of unit amplitude with `cells` cells across, [N, channels, H, W]."""
    noise = torch.randn(len(x), channels, cells, cells, generator=g)
    return F.interpolate(noise, size=x.shape[2:], mode="bicubic", align_corners=False)


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian of `sigma` pixels."""
    radius = math.ceil(2 * sigma)
    t = torch.arange(-radius, radius + 1, dtype=x.dtype)
    kernel = torch.softmax(-(t**2) / (2 * sigma**2), 0).expand(x.shape[1], 1, 1, -1)
    x = F.conv2d(F.pad(x, (radius, radius, 0, 0), "replicate"), kernel, groups=x.shape[1])
    return F.conv2d(F.pad(x, (0, 0, radius, radius), "replicate"), kernel.mT, groups=x.shape[1])


def warp(x: Tensor, mask: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirror, shift (4 px), scale (15 %), rotate (8 degrees) and bend (about 1 px) image and mask alike."""
    n = len(x)
    mirror = 1 - 2 * (torch.rand(n, generator=g) < 0.5).float()
    angle = (torch.rand(n, generator=g) - 0.5) * math.radians(16)
    scale = torch.exp((torch.rand(n, 2, generator=g) - 0.5) * 0.3)
    shift = (torch.rand(n, 2, generator=g) - 0.5) * 0.25
    cos, sin = angle.cos(), angle.sin()
    rows = [mirror * scale[:, 0] * cos, -scale[:, 1] * sin, shift[:, 0]]
    rows += [mirror * scale[:, 0] * sin, scale[:, 1] * cos, shift[:, 1]]
    grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), list(x.shape), align_corners=False)
    grid = grid + (_smooth_noise(x, 8, 2, g) * _uniform(x, 0, 0.04, g)).permute(0, 2, 3, 1)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    mask = F.grid_sample(mask[:, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False)
    return x, mask[:, 0].long()


def muddle(x: Tensor, mask: Tensor, g: torch.Generator) -> Tensor:
    """Wobble, double, fade and mix the parts of the face, as a half-trained generator does: crisp outline, vague parts.

    The mask is left as it was, so the annotator learns where a part must be when it can hardly be seen.
    """
    n = len(x)
    around = torch.isin(mask, torch.tensor([CLASSES.index(name) for name in ("background", "hair", "clothes")]))
    face = _blur((~around)[:, None].float(), 1.0)
    grid = F.affine_grid(torch.eye(2, 3).expand(n, 2, 3), list(x.shape), align_corners=False)
    offset = _smooth_noise(x, 16, 2, g) * 0.015 + (torch.rand(n, 2, 1, 1, generator=g) - 0.5) * 0.06
    moved = F.grid_sample(x, grid + offset.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)
    x = _sometimes(0.25, torch.lerp(x, moved, face * _uniform(x, 0.2, 0.7, g)), x, g)
    x = _sometimes(0.2, torch.lerp(x, _blur(x, 1.8), face * _uniform(x, 0.3, 0.8, g)), x, g)
    x = _sometimes(0.1, torch.lerp(x, x.roll(1, 0), face * _uniform(x, 0.1, 0.35, g)), x, g)
    neck = _blur((mask == CLASSES.index("neck"))[:, None].float(), 1.0)
    return _sometimes(0.3, x * (1 + neck * _uniform(x, -0.5, 0.2, g)), x, g)  # deeper or fainter shadow of the chin


def recolour(x: Tensor, g: torch.Generator) -> Tensor:
    """Gamma, saturation, contrast, brightness and white balance."""
    x = x.clamp(1e-3, 1) ** torch.exp(_uniform(x, -0.4, 0.4, g))
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * _uniform(x, 0.4, 1.5, g)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (x - mean) * _uniform(x, 0.6, 1.4, g)
    return x * _uniform(x, 0.85, 1.15, g, channels=3) + _uniform(x, -0.1, 0.1, g)


def tint_background(x: Tensor, mask: Tensor, g: torch.Generator) -> Tensor:
    """Blend the background with a random cloudy colour, and draw the halo such generators leave around a head."""
    figure = (mask != CLASSES.index("background"))[:, None].float()
    cloud = _uniform(x, 0.1, 0.9, g, channels=3) + 0.15 * _smooth_noise(x, 5, 3, g)
    x = _sometimes(0.6, torch.lerp(x, cloud, _uniform(x, 0.2, 1, g) * (1 - figure)), x, g)
    rim = _blur(F.max_pool2d(figure, 5, 1, 2), 0.8) * (1 - figure)
    return _sometimes(0.4, x + rim * _uniform(x, -0.1, 0.4, g), x, g)


def degrade(x: Tensor, g: torch.Generator) -> Tensor:
    """Blur, resample, and add the blotches (noise at several scales) and pixel noise of a half-trained generator."""
    x = _sometimes(0.25, _blur(x, 0.7), x, g)
    x = _sometimes(0.15, _blur(x, 1.1), x, g)
    size = int(torch.randint(28, 56, (), generator=g))
    small = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    x = _sometimes(0.3, F.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=False), x, g)
    x = _sometimes(0.3, x + (x - _blur(x, 1.0)), x, g)  # ringing, as of an over-sharpened image
    for cells, amplitude in ((6, 0.08), (12, 0.06), (24, 0.05)):
        grey, colour = _smooth_noise(x, cells, 1, g), _smooth_noise(x, cells, 3, g)
        x = _sometimes(0.6, x + (grey + 0.4 * colour) * _uniform(x, 0, amplitude, g), x, g)
    return _sometimes(0.5, x + torch.randn(x.shape, generator=g) * _uniform(x, 0, 0.05, g), x, g)


def cut_out(x: Tensor, g: torch.Generator) -> Tensor:
    """Up to two patches of 3 to 9 pixels filled with one colour; the mask keeps what was there."""
    at = torch.arange(RESOLUTION, dtype=x.dtype) + 0.5
    for _ in range(2):
        y0, x0 = _uniform(x, 0, RESOLUTION, g), _uniform(x, 0, RESOLUTION, g)
        rows = (at.view(1, 1, -1, 1) - y0).abs() < _uniform(x, 1.5, 4.5, g)
        columns = (at.view(1, 1, 1, -1) - x0).abs() < _uniform(x, 1.5, 4.5, g)
        fill = torch.lerp(x.mean((2, 3), keepdim=True), _uniform(x, 0, 1, g, channels=3), 0.5)
        x = _sometimes(0.3, torch.where(rows & columns, fill, x), x, g)
    return x


def augment(images: Tensor, masks: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Network inputs float [N, 3, H, W] in [-1, 1] and targets int64 [N, H, W] from uint8 images and masks."""
    x, mask = warp(images.float() / 255, masks, g)
    x = muddle(x, mask, g)
    x = tint_background(recolour(x, g), mask, g)
    x = cut_out(degrade(x, g), g)
    return x.clamp(0, 1) * 2 - 1, mask


# ------------------------------------------------------------------------------------------------------ training


def segmentation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy plus half the soft Dice loss, the latter over the batch and the classes in it.

    No class weights: weights of rare classes draw brows, eyes and lips wider than they are.
    """
    one_hot = F.one_hot(target, len(CLASSES)).permute(0, 3, 1, 2).to(logits.dtype)
    log_p = logits.log_softmax(1)
    entropy = -(one_hot * log_p).sum(1).mean()
    p, area = log_p.exp(), one_hot.sum((0, 2, 3))
    dice = 2 * (p * one_hot).sum((0, 2, 3)) / (p.sum((0, 2, 3)) + area).clamp(min=1)
    return entropy + 0.5 * (1 - dice[area > 0]).mean()


def class_iou(predicted: Tensor, target: Tensor) -> dict[str, float]:
    """IoU of each class, pixels pooled over all images (so a class absent from one image needs no convention)."""
    c = len(CLASSES)
    confusion = torch.bincount((target.long() * c + predicted).flatten(), minlength=c * c).view(c, c).double()
    union = confusion.sum(0) + confusion.sum(1) - confusion.diag()
    return dict(zip(CLASSES, (confusion.diag() / union).tolist(), strict=True))


def train(
    annotator: Annotator, images: Tensor, masks: Tensor, *, epochs: int, batch_size: int, lr: float, g: torch.Generator
) -> None:
    """AdamW on a one-cycle schedule, in place; all randomness comes from `g`."""
    steps = len(images) // batch_size
    optimizer = torch.optim.AdamW(annotator.parameters(), lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * steps, pct_start=0.1)
    smoothed = None
    with tqdm(total=epochs * steps, desc="train", unit="step", mininterval=2) as bar:
        for _ in range(epochs):
            for batch in torch.randperm(len(images), generator=g)[: steps * batch_size].split(batch_size):
                x, target = augment(images[batch], masks[batch], g)
                loss = segmentation_loss(annotator(x), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                smoothed = loss.item() if smoothed is None else 0.98 * smoothed + 0.02 * loss.item()
                bar.set_postfix(loss=f"{smoothed:.3f}", refresh=False)
                bar.update()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train the stand-in annotator: 64x64 face images to masks of 12 parts.",
        epilog="example: python examples/demo_faces/train_annotator.py --data demo_domain --out annotator.safetensors",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with train-*.tar")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="weights; a .json goes beside them")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the training renders")
    parser.add_argument("--batch-size", type=int, default=32, help="images a step")
    parser.add_argument("--lr", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--val-count", type=int, default=512, help="training renders held out for validation")
    parser.add_argument("--seed", type=int, default=0, help="fixes split, initial weights, order and augmentation")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; results may differ in the last digits")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    start = time.perf_counter()
    torch.set_num_threads(args.threads)
    args.out.parent.mkdir(parents=True, exist_ok=True)  # now rather than after the training
    images, masks = load_renders(args.data)
    if not 0 < args.val_count <= len(images) - args.batch_size:
        raise SystemExit(f"--val-count {args.val_count} of {len(images)} renders leaves too few for --batch-size")
    g = torch.Generator().manual_seed(args.seed)
    held_out, kept = torch.randperm(len(images), generator=g).tensor_split([args.val_count])

    with torch.random.fork_rng(devices=[]):  # torch initialises layers from its global generator only
        torch.manual_seed(args.seed)
        annotator = Annotator().to(memory_format=torch.channels_last)  # the faster layout on a CPU
    train(annotator, images[kept], masks[kept], epochs=args.epochs, batch_size=args.batch_size, lr=args.lr, g=g)

    iou = class_iou(annotator.eval().annotate(images[held_out]), masks[held_out])
    mean = sum(iou.values()) / len(iou)
    for name, value in iou.items():
        print(f"{name:12} {value:.3f}")
    print(f"{'mean IoU':12} {mean:.3f}  on {args.val_count} held-out renders, {time.perf_counter() - start:.0f} s")
    settings = {name: getattr(args, name) for name in ("epochs", "batch_size", "lr", "val_count", "seed")}
    save_annotator(annotator, args.out, {"val_mean_iou": mean, "val_iou": iou, "training": settings})


if __name__ == "__main__":
    main()
