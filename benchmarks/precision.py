"""What half precision does to labels and to the filter, against float32, on the same draws of demo-faces.

Generator and classifiers are computed in float16 or bfloat16 as a GPU computes them. On a processor the fused kernel's
arithmetic is followed in plain PyTorch: operands are rounded where the kernel rounds them, and sums are float32. What
the processor itself makes of bfloat16, where it has instructions for it, is "bfloat16 (CPU)".
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import cpu_name, progress, write_report
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets import LabeledGenerator
from dsgan_datasets.device import has_fast_bfloat16, resolve_device
from dsgan_datasets.generators.synthesis import render, style_vectors
from dsgan_datasets.interpreters import Frame, LabelingOptions, batched
from dsgan_datasets.interpreters.reduce import Votes
from dsgan_datasets.latents import Purpose, draw_latents
from dsgan_datasets.parallel import parallel_map
from dsgan_datasets.uncertainty import image_score

MAX_CHANGED = 0.005  # share of the label pixels
MAX_MOVED = 0.01  # of the accepted share
DTYPES = ("float32", "float16", "bfloat16")
ON_CPU = "bfloat16 (CPU)"

EXAMPLE = "example: python benchmarks/precision.py --samples 2000 --out benchmarks/results/precision.json"

Result = dict[str, Any]


def labels(labeled: LabeledGenerator, ws: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """Mask uint8 [N, H, W] and score [N] of style vectors."""
    recipe = labeled.recipe.override(dtype=dtype.split(maxsplit=1)[0])
    frame = Frame(recipe.frame_size(labeled.generator.img_size), recipe.crop)
    _, features = render(labeled.generator, recipe, ws)
    if dtype in ("float32", ON_CPU):
        found = labeled.interpreter.predict(features, frame, LabelingOptions(recipe.vote, recipe.top_fraction))
        return found.labels["mask"].to(torch.uint8), found.uncertainty_score
    mask, uncertainty = batched.prepare(labeled.interpreter.weights, features, frame, Votes(recipe.vote)).reduce(
        features
    )
    return mask.to(torch.uint8), image_score(uncertainty, recipe.top_fraction)


@torch.no_grad()
def run(checkpoint: str, most: int, minutes: float, device: torch.device, dtypes: Sequence[str] = DTYPES) -> Result:
    """Differences over a number of unfiltered draws, or as many as are made in a time."""
    end = time.monotonic() + 60 * minutes
    labeled = LabeledGenerator.from_pretrained(checkpoint, device=device)
    recipe, batch = labeled.recipe, labeled.recipe.compute_batch
    assert recipe.threshold is not None, "a checkpoint with a calibrated filter"
    changed = dict.fromkeys(dtypes, 0.0)
    scores: dict[str, list[Tensor]] = {dtype: [] for dtype in dtypes}
    samples = 0
    for start in tqdm(range(0, most, batch), delay=2, leave=False):
        if time.monotonic() > end:
            break
        indices = torch.arange(start, min(start + batch, most))
        samples += len(indices)
        latents = draw_latents(
            recipe,
            labeled.generator.z_dim,
            indices,
            seed=1,
            attempt=torch.zeros_like(indices),
            purpose=Purpose.CALIBRATION,
        )
        ws = style_vectors(labeled.generator, recipe, latents)
        masks = {}
        for dtype in dtypes:
            parts = ws.split(1) if dtype in ("float32", ON_CPU) and device.type == "cpu" else [ws]
            rows = parallel_map(partial(labels, labeled, dtype=dtype), parts, device)
            masks[dtype] = torch.cat([mask for mask, _ in rows])
            scores[dtype].append(torch.cat([score for _, score in rows]).cpu())
            changed[dtype] += float((masks[dtype] != masks["float32"]).flatten(1).double().mean(1).sum())
    whole = {dtype: torch.cat(parts) for dtype, parts in scores.items()}
    accepted = {dtype: score <= recipe.threshold for dtype, score in whole.items()}
    return {
        dtype: {
            "labels_changed": changed[dtype] / samples,
            "accepted": float(accepted[dtype].double().mean()),
            "accepted_moved": float(accepted[dtype].double().mean() - accepted["float32"].double().mean()),
            "decisions_changed": int((accepted[dtype] != accepted["float32"]).sum()),
            "score_difference_mean": float((whole[dtype] - whole["float32"]).mean()),
            "score_difference_largest": float((whole[dtype] - whole["float32"]).abs().max()),
        }
        for dtype in dtypes
    } | {"samples": samples, "threshold": recipe.threshold}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 1 if half precision changes too much."""
    parser = argparse.ArgumentParser(description="Compare half precision with float32.", epilog=EXAMPLE)
    parser.add_argument("--checkpoint", default="demo-faces")
    parser.add_argument("--samples", type=int, default=2000, help="draws (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=60, help="stop drawing after this time (default: %(default)s)")
    parser.add_argument("--dtypes", nargs="+", choices=(*DTYPES, ON_CPU), help="default: all that the device has")
    parser.add_argument("--device", help="default: the GPU if there is one")
    parser.add_argument("--out", type=Path, help="JSON file to write (default: none)")
    args = parser.parse_args(arguments)
    device = resolve_device(args.device)
    known = (*DTYPES, ON_CPU) if device.type == "cpu" and has_fast_bfloat16(device) else DTYPES
    dtypes = [dtype for dtype in known if dtype == "float32" or args.dtypes is None or dtype in args.dtypes]
    found = run(args.checkpoint, args.samples, args.minutes, device, dtypes)
    for dtype in dtypes[1:]:
        f = found[dtype]
        print(
            f"{dtype}: {f['labels_changed']:.3%} of the label pixels changed, accepted share {f['accepted']:.2%} "
            f"({f['accepted_moved']:+.2%}), {f['decisions_changed']} of {found['samples']} decisions changed"
        )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    if args.out:
        report = {"benchmark": "precision", "device": name, "torch": torch.__version__}
        write_report(args.out, {**report, "checkpoint": args.checkpoint, **found})
    missed = [
        d
        for d in dtypes[1:]
        if not (found[d]["labels_changed"] <= MAX_CHANGED and abs(found[d]["accepted_moved"]) <= MAX_MOVED)
    ]
    for dtype in missed:
        progress(f"{dtype} changes more than {MAX_CHANGED:.1%} of the labels or {MAX_MOVED:.0%} of the accepted share")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
