"""Train the demo's annotator of keypoints on renders with exact points, or on samples of a labeled generator.

It is hardened for images of a half-trained GAN.

Examples:
    python demo/train_point_annotator.py --data DOMAIN --out points.safetensors

    # for a generator of 128×128; it begins with what the annotator of masks knows
    python demo/train_point_annotator.py --data DOMAIN --resolution 128 --start annotator-128.safetensors \\
        --out points-128.safetensors

    # from the samples of a labeled generator instead: no label of a render is used
    python demo/train_point_annotator.py --stream demo-faces-128 --steps 600 --out parts.safetensors

Shapes: N images, K keypoints, H = W = 64 or 128 pixels; keypoints and depth as in `render_points`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from annotator import WIDTHS, load_annotator, one_cycle
from commands import check_loss, check_options, new_parser, run_command
from point_annotator import PointAnnotator, save_point_annotator
from render_points import BACKGROUND, Renders, keypoints_of_domain, open_stream, read, sample
from renders import MERGED
from torch import Tensor
from tqdm import tqdm
from train_annotator import cut_out, degrade, muddle, recolor, tint_background

from dsgan_datasets.files import check_writable

SIGMA = 1.0  # 64ths of the width, of a point's target


def train(network: PointAnnotator, renders: Renders, *, steps: int, batch_size: int, lr: float, seed: int) -> None:
    """Train in place on images with masks, points and depths, changed to look like those of a half-trained GAN.

    Raises:
        ValueError: the training diverges.
    """
    random = torch.Generator().manual_seed(seed)
    network.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=1e-2)
    schedule = one_cycle(optimizer, lr, steps)
    for step in tqdm(range(steps), "train", unit="step", mininterval=2):
        rows = torch.randint(len(renders.images), (batch_size,), generator=random)
        loss = _loss(network, renders, rows, random)
        check_loss(loss.item(), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()


def new_annotator(names: tuple[str, ...], resolution: int, seed: int, start: Path | None = None) -> PointAnnotator:
    """An untrained network, or one with all layers but the last of an annotator of masks.

    Raises:
        FileNotFoundError: no such start.
        ValueError: a start that is not an annotator of masks of this resolution.
    """
    with torch.random.fork_rng(devices=[]):  # torch initializes layers from its global generator only
        torch.manual_seed(seed)
        if start is None:
            return PointAnnotator(names, resolution)
        trained = load_annotator(start)
        if trained.resolution != resolution:
            raise ValueError(f"--start: {start} labels {trained.resolution}×{trained.resolution}, not {resolution}")
        network = PointAnnotator(names, resolution, trained.widths)
    layers = {name: tensor for name, tensor in trained.state_dict().items() if not name.startswith("head.")}
    network.load_state_dict({**network.state_dict(), **layers})
    return network


def _loss(network: PointAnnotator, renders: Renders, rows: Tensor, random: torch.Generator) -> Tensor:
    """Cross-entropy of places, visibility and figure, and absolute error of depth where it is known."""
    x, masks = renders.images[rows].float() / 255, renders.masks[rows].long()
    depths, points = renders.depths[rows], renders.points[rows]
    x, masks, depths, points = _moved(x, masks, depths, points, random)
    x = muddle(x, masks, MERGED, random)
    x = tint_background(recolor(x, random), masks, MERGED, random)
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


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    text = "folder with train-*.tar, keypoints.json and keypoints-train.jsonl, and depth-train-*.tar for some renders"
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, metavar="DIR", help=f"{text}; test-*.tar is not opened")
    text = "labeled generator with points and the classes of the demo: learn from its samples"
    source.add_argument("--stream", metavar="CHECKPOINT", help=text)
    add("--num-samples", type=int, default=2400, help="of --stream (default: 2400)")
    add("--out", type=Path, required=True, metavar="FILE", help="weights, a new .safetensors")
    add("--resolution", type=int, choices=sorted(WIDTHS), default=64, help="of the images to annotate (default: 64)")
    text = "weights of train_annotator.py of the same resolution: begin with its layers, all but the last"
    add("--start", type=Path, metavar="FILE", help=text)
    add("--steps", type=int, default=700, help="of the training (default: 700)")
    add("--batch-size", type=int, default=24, help="images a step (default: 24)")
    add("--lr", type=float, default=4e-3, help="peak learning rate (default: 0.004)")
    add("--val-count", type=int, default=240, help="images held out for validation, the last ones (default: 240)")
    add("--seed", type=int, default=0, help="fixes initial weights, order and augmentation (default: 0)")
    add("--threads", type=int, default=1, help="CPU threads; results may differ in the last digits (default: 1)")
    args = parser.parse_args(argv)
    check_options(parser, args, "steps", "batch_size", "val_count", "num_samples")
    return args


def run(args: argparse.Namespace) -> None:
    """Read, train, measure, write.

    Raises:
        FileNotFoundError: a file that is missing.
        ValueError: renders or a start that do not fit, fewer renders than the arguments need, or a training that
            diverges.
    """
    torch.set_num_threads(args.threads)
    if args.out.suffix != ".safetensors":
        raise ValueError(f"--out: {args.out}: the name of an annotator ends in .safetensors")
    check_writable(args.out.parent)  # now rather than after the training
    if args.out.exists():
        raise ValueError(f"--out: {args.out} exists and is not replaced, move it away or choose another name")
    what = "renders" if args.stream is None else "samples"
    if args.stream is None:
        names = keypoints_of_domain(args.data).names
        network = new_annotator(names, args.resolution, args.seed, args.start)
        renders = read(args.data, "train", args.resolution)
        _check_held_out(args.val_count, len(renders.images), what)
    else:  # all that can be refused is refused before the minutes that samples take
        _check_held_out(args.val_count, args.num_samples, what)
        source, names = open_stream(args.stream, args.resolution)
        network = new_annotator(names, args.resolution, args.seed, args.start)
        renders = sample(source, args.num_samples, args.resolution, args.seed)
    kept, held_out = renders.part(slice(None, -args.val_count)), renders.part(slice(-args.val_count, None))
    settings = {name: getattr(args, name) for name in ("steps", "batch_size", "lr", "seed")}
    train(network, kept, **settings)
    points, _ = network.annotate(held_out.images)
    distances = (points[..., :2] - held_out.points[..., :2]).norm(dim=2)
    error = distances.mean().item()
    visibility = (points[..., 2] == held_out.points[..., 2]).double().mean().item()
    for name, distance in zip(names, distances.mean(0).tolist(), strict=True):
        print(f"{name:20} {distance:.2f} px")
    print(f"{'all':20} {error:.2f} px of {args.resolution}, visible or hidden right {visibility:.1%}, ", end="")
    print(f"on {args.val_count} held-out {what}")
    found = {
        "val_error_px": round(error, 3),
        "val_visibility": round(visibility, 3),
        "start": args.start is not None,
        "of": what,
    }
    save_point_annotator(network, args.out, {**settings, "val_count": args.val_count, **found})


def _check_held_out(val_count: int, count: int, what: str) -> None:
    if val_count >= count:
        more = " or raise --num-samples" if what == "samples" else ""
        raise ValueError(f"--val-count {val_count} of {count} {what} leaves none to train on: lower it{more}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return run_command("train_point_annotator.py", run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
