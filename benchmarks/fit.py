"""Fitting an interpreter at the size of the published models: seconds and memory, on the CPU or on a GPU.

Sixteen images of 512² pixels from a StyleGAN1 with random weights, 5,056 feature channels, ten members, 20 classes. A
class is a range of values of a feature in the middle of the network, so that there is something to learn; an
interpreter that has not learned it fails the run. The work is done in a process of its own, and the memory is all that
this process holds: libraries, weights, features.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import PeakMemory, cpu_name, write_report

from dsgan_datasets import AnnotatedImages, LabelSchema, Recipe, fit_interpreter, sample_latents
from dsgan_datasets.fitting.evaluation import cross_validate, evaluate
from dsgan_datasets.fitting.settings import FitSettings
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.stylegan1 import StyleGAN1, StyleGAN1Config
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.interpreters import ConvolutionalInterpreter, PixelEnsemble

IMAGES, CLASSES, MEMBERS = 16, 20, 10
MINUTES_LIMIT, GB_LIMIT = 15.0, 4.0
#: Share of held-out pixels that must be right; guessing the most frequent class gives 0.05.
MIN_ACCURACY = 0.4

EXAMPLE = "example: python benchmarks/fit.py --check --out benchmarks/results/fit.json"

Result = dict[str, Any]


def random_generator(side: int, device: str) -> FeatureGenerator:
    """A StyleGAN1 of the published shape, with weights that nobody trained."""
    channels = {2**i: min(512, 16384 // 2**i) for i in range(2, side.bit_length())}
    generator = StyleGAN1(StyleGAN1Config(z_dim=512, w_dim=512, img_resolution=side, channels=channels))
    random = torch.Generator().manual_seed(0)
    for tensor in generator.state_dict().values():
        tensor.normal_(generator=random)
    return generator.freeze().to(device)


def annotate(generator: FeatureGenerator, recipe: Recipe, images: int, first: int = 0) -> AnnotatedImages:
    """Masks of equally frequent classes, by the value of one feature at a quarter of the resolution, smoothed."""
    latents = sample_latents(range(first, first + images), generator.z_dim, seed=0)
    side = generator.img_resolution
    level = generator.feature_resolutions.index(side // 4)
    masks = []
    for z in latents:
        _, maps = synthesize(generator, recipe, z[None])
        values = F.interpolate(F.avg_pool2d(maps[level][:, :1], 9, 1, 4).cpu(), size=(side, side), mode="bilinear")[
            0, 0
        ]
        # By rank of the standardized value: the limits are those of one image, the same for all.
        limits = torch.linspace(0, 1, CLASSES + 1)[1:-1]
        scaled = (values - values.mean()) / values.std()
        masks.append(torch.bucketize(scaled, torch.erfinv(2 * limits - 1) * 2**0.5))
    return AnnotatedImages(latents, torch.stack(masks))


def measure(side: int, steps: int, folds: int, threads: int, device: str, architecture: str) -> Result:
    """Fit and cross-validate once, as `dsgan fit` does."""
    torch.set_num_threads(threads)
    schema = LabelSchema(tuple(f"class {i}" for i in range(CLASSES)))
    recipe = Recipe(truncation_psi=0.7)
    settings = FitSettings(members=MEMBERS, steps=steps)
    # The number of steps is that of the held-out check at most, and a fit without one takes half of them.
    chosen: dict[str, Any] = {"settings": settings, "architecture": architecture}
    with PeakMemory(0.005) as memory:
        generator = random_generator(side, device)
        annotated = annotate(generator, recipe, IMAGES)
        seconds = {}
        start = time.perf_counter()
        interpreter = fit_interpreter(generator, annotated, schema, recipe=recipe, folds=0, **chosen)
        seconds["fit"] = time.perf_counter() - start
        print(f"  fitted in {seconds['fit']:.0f} s", file=sys.stderr, flush=True)
        accuracy = evaluate(generator, interpreter, annotate(generator, recipe, 4, 1000), recipe=recipe).pixel_accuracy
        if folds:
            start = time.perf_counter()
            cross_validate(generator, annotated, schema, recipe=recipe, folds=folds, **chosen)
            seconds["held_out_check"] = time.perf_counter() - start
    return {
        "resolution": [side, side],
        "channels": sum(generator.feature_channels),
        "images": IMAGES,
        "classes": CLASSES,
        "interpreter": interpreter.config,
        "steps": steps if architecture == PixelEnsemble.architecture else settings.convolutional.max_steps,
        "folds": folds,
        "pixel_accuracy_on_new_images": round(accuracy, 3),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "minutes": round(sum(seconds.values()) / 60, 2),
        "minutes_limit": MINUTES_LIMIT,
        "peak_rss_gb": round(memory.peak / 1e9, 2),
        "peak_rss_limit_gb": GB_LIMIT,
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time the fitting of an interpreter.", epilog=EXAMPLE)
    parser.add_argument("--side", type=int, default=512, help="pixels, a power of two (default: 512)")
    parser.add_argument(
        "--architecture",
        choices=[PixelEnsemble.architecture, ConvolutionalInterpreter.architecture],
        default=PixelEnsemble.architecture,
        help="(default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=FitSettings().steps, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--folds", type=int, default=4, help="of the held-out check, 0 for none (default: 4)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all cores (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--out", type=Path, help="JSON file to write (default: none)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a limit of time or memory is missed")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if nothing was learned, or with --check if a limit is missed."""
    args = parse(arguments)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        given = args.side, args.steps, args.folds, args.threads, args.device, args.architecture
        result = pool.submit(measure, *given).result()
    device = "cpu" if args.device == "cpu" else torch.cuda.get_device_name()
    report: Result = {"benchmark": "fit", "device": device, "cpu": cpu_name(), "threads": args.threads}
    report |= {"feature_dtype": "float32", "torch": torch.__version__, **result}
    print(json.dumps(report, indent=2))
    if result["pixel_accuracy_on_new_images"] < MIN_ACCURACY:
        print(f"FAILED: the interpreter learned nothing, at least {MIN_ACCURACY} must be right", file=sys.stderr)
        return 1
    missed = [
        f"{name} {result[name]} exceeds {result[limit]}"
        for name, limit in (("minutes", "minutes_limit"), ("peak_rss_gb", "peak_rss_limit_gb"))
        if result[name] > result[limit]
    ]
    for message in missed:
        print(f"target missed: {message}", file=sys.stderr)
    if args.out:
        write_report(args.out, report)
    return 1 if missed and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
