"""Train the demo's annotator on renders with exact part masks, hardened for images of a half-trained GAN.

Examples:
    python demo/train_annotator.py --data DOMAIN --out annotator.safetensors

    # for a generator of 128×128, on a GPU
    python demo/train_annotator.py --data DOMAIN --resolution 128 --device cuda \\
        --out annotator-128.safetensors

Shapes: N images, C classes, H = W = 64 or 128 pixels. Images are float [N, 3, H, W] in [0, 1] while they are augmented;
lengths are 64ths of the width, so that both resolutions see the same changes (all but the noise of single pixels).
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from annotator import WIDTHS, Annotator, one_cycle, report_path, save_annotator
from commands import check_loss, check_options, new_parser, run_command
from renders import annotated_classes, read_renders
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from dsgan_datasets.files import check_writable
from dsgan_datasets.fitting.evaluation import ConfusionMatrix, count_pairs

# -------------------------------------------------------------------------------------------------- augmentation


def _uniform(x: Tensor, low: float, high: float, g: torch.Generator, channels: int = 1) -> Tensor:
    """One number per image (and channel), [N, channels, 1, 1]."""
    return low + (high - low) * torch.rand(len(x), channels, 1, 1, generator=g, device=g.device)


def _sometimes(p: float, changed: Tensor, x: Tensor, g: torch.Generator) -> Tensor:
    """Each image changed with probability p."""
    return torch.where(_uniform(x, 0, 1, g) < p, changed, x)


def _smooth_noise(x: Tensor, cells: int, channels: int, g: torch.Generator) -> Tensor:
    """Bicubic noise of unit amplitude with `cells` cells across, [N, channels, H, W]."""
    noise = torch.randn(len(x), channels, cells, cells, generator=g, device=g.device)
    return F.interpolate(noise, size=x.shape[2:], mode="bicubic", align_corners=False)


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian of `sigma` 64ths of the width."""
    sigma = sigma * x.shape[3] / 64
    radius = math.ceil(2 * sigma)
    t = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.softmax(-(t**2) / (2 * sigma**2), 0).expand(x.shape[1], 1, 1, -1)
    x = F.conv2d(F.pad(x, (radius, radius, 0, 0), "replicate"), kernel, groups=x.shape[1])
    return F.conv2d(F.pad(x, (0, 0, radius, radius), "replicate"), kernel.mT, groups=x.shape[1])


def warp(x: Tensor, mask: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirror, shift (4 64ths), scale (15 %), rotate (8 degrees) and bend (about 1 64th) image and mask alike."""
    n = len(x)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=g, device=g.device)

    mirror = 1 - 2 * (uniform() < 0.5).float()
    angle = (uniform() - 0.5) * math.radians(16)
    scale = torch.exp((uniform(2) - 0.5) * 0.3)
    shift = (uniform(2) - 0.5) * 0.25
    cos, sin = angle.cos(), angle.sin()
    rows = [mirror * scale[:, 0] * cos, -scale[:, 1] * sin, shift[:, 0]]
    rows += [mirror * scale[:, 0] * sin, scale[:, 1] * cos, shift[:, 1]]
    grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), list(x.shape), align_corners=False)
    grid = grid + (_smooth_noise(x, 8, 2, g) * _uniform(x, 0, 0.04, g)).permute(0, 2, 3, 1)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    mask = F.grid_sample(mask[:, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False)
    return x, mask[:, 0].long()


def muddle(x: Tensor, mask: Tensor, classes: Sequence[str], g: torch.Generator) -> Tensor:
    """Wobble, double, fade and mix the parts of the face, as a half-trained generator does: crisp outline, vague parts.

    The mask is left as it was, so the annotator learns where a part must be when it can hardly be seen.
    """
    n = len(x)
    around = torch.tensor([classes.index(name) for name in ("background", "hair", "clothes")], device=x.device)
    face = _blur(torch.isin(mask, around, invert=True)[:, None].float(), 1.0)
    grid = F.affine_grid(torch.eye(2, 3, device=x.device).expand(n, 2, 3), list(x.shape), align_corners=False)
    offset = _smooth_noise(x, 16, 2, g) * 0.015 + _uniform(x, -0.5, 0.5, g, channels=2) * 0.06
    moved = F.grid_sample(x, grid + offset.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)
    x = _sometimes(0.25, torch.lerp(x, moved, face * _uniform(x, 0.2, 0.7, g)), x, g)
    x = _sometimes(0.2, torch.lerp(x, _blur(x, 1.8), face * _uniform(x, 0.3, 0.8, g)), x, g)
    x = _sometimes(0.1, torch.lerp(x, x.roll(1, 0), face * _uniform(x, 0.1, 0.35, g)), x, g)
    neck = _blur((mask == classes.index("neck"))[:, None].float(), 1.0)
    return _sometimes(0.3, x * (1 + neck * _uniform(x, -0.5, 0.2, g)), x, g)  # deeper or fainter shadow of the chin


def recolor(x: Tensor, g: torch.Generator) -> Tensor:
    """Gamma, saturation, contrast, brightness and white balance."""
    x = x.clamp(1e-3, 1) ** torch.exp(_uniform(x, -0.4, 0.4, g))
    gray = x.mean(1, keepdim=True)
    x = gray + (x - gray) * _uniform(x, 0.4, 1.5, g)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (x - mean) * _uniform(x, 0.6, 1.4, g)
    return x * _uniform(x, 0.85, 1.15, g, channels=3) + _uniform(x, -0.1, 0.1, g)


def tint_background(x: Tensor, mask: Tensor, classes: Sequence[str], g: torch.Generator) -> Tensor:
    """Blend the background with a random cloudy color, and draw the halo such generators leave around a head."""
    figure = (mask != classes.index("background"))[:, None].float()
    cloud = _uniform(x, 0.1, 0.9, g, channels=3) + 0.15 * _smooth_noise(x, 5, 3, g)
    x = _sometimes(0.6, torch.lerp(x, cloud, _uniform(x, 0.2, 1, g) * (1 - figure)), x, g)
    reach = 2 * x.shape[3] // 64
    rim = _blur(F.max_pool2d(figure, 2 * reach + 1, 1, reach), 0.8) * (1 - figure)
    return _sometimes(0.4, x + rim * _uniform(x, -0.1, 0.4, g), x, g)


def degrade(x: Tensor, g: torch.Generator) -> Tensor:
    """Blur, resample, and add the blotches (noise at several scales) and pixel noise of a half-trained generator."""
    x = _sometimes(0.25, _blur(x, 0.7), x, g)
    x = _sometimes(0.15, _blur(x, 1.1), x, g)
    size = int(torch.randint(28, 56, (), generator=g, device=g.device)) * x.shape[3] // 64
    small = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    x = _sometimes(0.3, F.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=False), x, g)
    x = _sometimes(0.3, x + (x - _blur(x, 1.0)), x, g)  # ringing, as of an over-sharpened image
    for cells, amplitude in ((6, 0.08), (12, 0.06), (24, 0.05)):
        gray, color = _smooth_noise(x, cells, 1, g), _smooth_noise(x, cells, 3, g)
        x = _sometimes(0.6, x + (gray + 0.4 * color) * _uniform(x, 0, amplitude, g), x, g)
    return _sometimes(0.5, x + torch.randn(x.shape, generator=g, device=g.device) * _uniform(x, 0, 0.05, g), x, g)


def cut_out(x: Tensor, g: torch.Generator) -> Tensor:
    """Up to two patches of 3 to 9 64ths filled with one color; the mask keeps what was there."""
    at = (torch.arange(x.shape[3], dtype=x.dtype, device=x.device) + 0.5) * 64 / x.shape[3]
    for _ in range(2):
        y0, x0 = _uniform(x, 0, 64, g), _uniform(x, 0, 64, g)
        rows = (at.view(1, 1, -1, 1) - y0).abs() < _uniform(x, 1.5, 4.5, g)
        columns = (at.view(1, 1, 1, -1) - x0).abs() < _uniform(x, 1.5, 4.5, g)
        fill = torch.lerp(x.mean((2, 3), keepdim=True), _uniform(x, 0, 1, g, channels=3), 0.5)
        x = _sometimes(0.3, torch.where(rows & columns, fill, x), x, g)
    return x


def augment(images: Tensor, masks: Tensor, classes: Sequence[str], g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Network inputs float [N, 3, H, W] in [-1, 1] and targets int64 [N, H, W] from uint8 images and masks."""
    x, mask = warp(images.float() / 255, masks, g)
    x = muddle(x, mask, classes, g)
    x = tint_background(recolor(x, g), mask, classes, g)
    x = cut_out(degrade(x, g), g)
    return x.clamp(0, 1) * 2 - 1, mask


# ------------------------------------------------------------------------------------------------------ training


def segmentation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy plus half the soft Dice loss, the latter over the batch and the classes in it.

    No class weights: weights of rare classes draw brows, eyes and lips wider than they are.
    """
    one_hot = F.one_hot(target, logits.shape[1]).permute(0, 3, 1, 2).to(logits.dtype)
    log_p = logits.log_softmax(1)
    entropy = -(one_hot * log_p).sum(1).mean()
    p, area = log_p.exp(), one_hot.sum((0, 2, 3))
    dice = 2 * (p * one_hot).sum((0, 2, 3)) / (p.sum((0, 2, 3)) + area).clamp(min=1)
    return entropy + 0.5 * (1 - dice[area > 0]).mean()


def train(
    annotator: Annotator,
    images: Tensor,
    masks: Tensor,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    precision: str,
    g: torch.Generator,
) -> None:
    """AdamW on a one-cycle schedule, in place; all randomness comes from `g`, everything is on its device.

    The weights stay float32; `precision` is that of the convolutions.
    """
    half = torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16")
    steps = len(images) // batch_size
    optimizer = torch.optim.AdamW(annotator.parameters(), lr, weight_decay=1e-2)
    schedule = one_cycle(optimizer, lr, epochs * steps)
    smoothed = None
    with tqdm(total=epochs * steps, desc="train", unit="step", mininterval=2) as bar:
        for _ in range(epochs):
            for batch in torch.randperm(len(images), generator=g, device=g.device)[: steps * batch_size].split(
                batch_size
            ):
                x, target = augment(images[batch], masks[batch], annotator.classes, g)
                with half:
                    logits = annotator(x)
                loss = segmentation_loss(logits.float(), target)
                value = loss.item()
                check_loss(value, int(bar.n))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                smoothed = value if smoothed is None else 0.98 * smoothed + 0.02 * value
                bar.set_postfix(loss=f"{smoothed:.3f}", refresh=False)
                bar.update()


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="folder with train-*.tar; test-*.tar is not opened")
    add("--out", type=Path, required=True, metavar="FILE", help="weights; a .json goes beside them")
    add("--resolution", type=int, choices=sorted(WIDTHS), default=64, help="of the images to label (default: 64)")
    add("--epochs", type=int, default=8, help="passes over the training renders (default: 8)")
    add("--batch-size", type=int, default=32, help="images a step (default: 32)")
    add("--lr", type=float, default=4e-3, help="peak learning rate (default: 0.004)")
    add("--val-count", type=int, default=512, help="training renders held out for validation (default: 512)")
    text = "of the convolutions (default: float32); bfloat16 is faster on a GPU and on a CPU that has it"
    add("--precision", choices=("float32", "bfloat16"), default="float32", help=text)
    add("--seed", type=int, default=0, help="fixes split, initial weights, order and augmentation (default: 0)")
    add("--device", default="cpu", help="where to train (default: cpu)")
    add("--threads", type=int, default=1, help="CPU threads; results may differ in the last digits (default: 1)")
    args = parser.parse_args(argv)
    check_options(parser, args, "epochs", "batch_size", "val_count")
    return args


def run(args: argparse.Namespace) -> None:
    """Read, train, measure, write.

    Raises:
        ValueError: no renders, or fewer than the arguments need.
    """
    start = time.perf_counter()
    torch.set_num_threads(args.threads)
    check_writable(args.out.parent)  # now rather than after the training
    for path in (args.out, report_path(args.out)):
        if path.exists():
            raise ValueError(f"--out: {path} exists and is not replaced, move it away or choose another name")
    g = torch.Generator(args.device).manual_seed(args.seed)
    shards = sorted(args.data.glob("train-*.tar"))
    if not shards:
        raise ValueError(f"no train-*.tar in {args.data}: --data takes the folder that holds the shards")
    classes = annotated_classes(args.resolution)
    images, masks = (tensor.to(args.device) for tensor in read_renders(shards, classes, args.resolution))
    if args.val_count > len(images) - args.batch_size:
        raise ValueError(f"--val-count {args.val_count} of {len(images)} renders leaves too few for --batch-size")
    held_out, kept = torch.randperm(len(images), generator=g, device=g.device).tensor_split([args.val_count])

    with torch.random.fork_rng(devices=[]):  # torch initializes layers from its global generator only
        torch.manual_seed(args.seed)
        annotator = Annotator(args.resolution)
    annotator.to(args.device).to(memory_format=torch.channels_last)  # the faster layout on a CPU
    settings = {name: getattr(args, name) for name in ("epochs", "batch_size", "lr", "precision")}
    train(annotator, images[kept], masks[kept], **settings, g=g)

    predicted = annotator.eval().annotate(images[held_out])
    confusion = ConfusionMatrix(count_pairs(masks[held_out].long(), predicted, len(classes), ignore_index=255))
    iou, mean = dict(zip(classes, confusion.iou.tolist(), strict=True)), confusion.mean_iou
    for name, value in iou.items():
        print(f"{name:12} {value:.3f}")
    print(f"{'mean IoU':12} {mean:.3f}  on {args.val_count} held-out renders, {time.perf_counter() - start:.0f} s")
    found = {name: value if value == value else None for name, value in iou.items()}
    settings |= {"val_count": args.val_count, "seed": args.seed}
    save_annotator(annotator, args.out, {"val_mean_iou": mean, "val_iou": found, "training": settings})


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return run_command("train_annotator.py", run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
