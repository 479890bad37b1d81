"""Writing shards against the bare stream, reading them, and the memory that writing takes.

A StyleGAN2 of the published small width and an ensemble of ten, both with random weights, write shards and stream the
same samples in turns; before anything is timed, what was written is read back and compared. Pictures of random weights
are noise, which is the hardest case for PNG: real images are encoded faster.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from measuring import CONFIDENCE, BenchmarkError, PeakMemory, cpu_name, median_interval, progress, write_report
from pairs import Measurement, add_options, moments, run_pairs

from dsgan_datasets import (
    LabeledGenerator,
    LabelSchema,
    PixelEnsemble,
    Recipe,
    ShardDataset,
    ShardMapDataset,
    verify_shards,
    write_shards,
)
from dsgan_datasets.generators.stylegan2 import StyleGAN2, StyleGAN2Config

EXAMPLE = """examples:
  python benchmarks/shards.py --runs 15 --check --out benchmarks/results/shards.json
  python benchmarks/shards.py --sides --memory --out benchmarks/results/shards-memory.json"""
MIN_RUNS = 7
TARGET = 0.9  # writing / bare stream, at the lower end of the interval
MEMBERS, CLASSES = 10, 12
#: Samples of one timing, by side: some seconds each on two cores.
SAMPLES = {64: 64, 128: 24, 256: 8}
MEMORY_SAMPLES = (1_000, 20_000)

Result = dict[str, Any]


def random_labeled(side: int, device: str) -> LabeledGenerator:
    """StyleGAN2 of the width published for 256² ("paper256"), ten classifiers of the published size, random weights."""
    random = torch.Generator().manual_seed(0)
    channels = {r: min(16384 // r, 512) for r in (4, 8, 16, 32, 64, 128, 256) if r <= side}
    config = StyleGAN2Config(z_dim=512, w_dim=512, img_resolution=side, channels=channels)
    generator = StyleGAN2(config)
    with torch.no_grad():
        for tensor in (*generator.parameters(), *generator.buffers()):
            tensor.copy_(torch.randn(tensor.shape, generator=random))
    generator = generator.to(device).eval()
    for module in generator.modules():
        if callable(precompute := getattr(module, "precompute", None)):
            precompute()
    shapes = {
        "w1": (sum(generator.feature_channels), MEMBERS, 128),
        "b1": (MEMBERS, 128),
        "w2": (MEMBERS, 128, 32),
        "b2": (MEMBERS, 32),
        "w3": (MEMBERS, 32, CLASSES),
        "b3": (MEMBERS, CLASSES),
    }
    weights = {name: torch.randn(shape, generator=random) / shape[0] ** 0.5 for name, shape in shapes.items()}
    schema = LabelSchema(tuple(f"part {i}" for i in range(CLASSES)))
    if not hasattr(PixelEnsemble, "predict"):  # a baseline from before there were labelers
        baseline: Any = LabeledGenerator
        return cast(LabeledGenerator, baseline(generator, PixelEnsemble(weights).to(device), schema, Recipe()))
    from dsgan_datasets import InterpretedLabeler

    ensemble = PixelEnsemble(weights, layout=generator.features, channels=generator.feature_channels).to(device)
    return LabeledGenerator(InterpretedLabeler(generator, ensemble, [schema]), Recipe())


def check(labeled: LabeledGenerator, folder: Path, samples: int) -> None:
    """What is read is what is generated, and the set is whole."""
    live = list(labeled.stream(range(samples)))
    stored: dict[str, Any] = {"stream": ShardDataset(folder), "map": ShardMapDataset(folder)}
    for name, read in stored.items():
        for a, b in zip(read, live, strict=True):
            if not (torch.equal(a.image, b.image.cpu()) and torch.equal(a.mask, b.mask.cpu())):
                raise BenchmarkError(f"the {name} of shards gives another sample {int(b.index)} than the generator")
    if problems := verify_shards(folder):
        raise BenchmarkError(f"verify found {problems}")


def run_side(side: int, runs: int, device: str) -> Result:
    """Time one resolution."""
    labeled, samples = random_labeled(side, device), SAMPLES[side]
    seconds: dict[str, list[float]] = {"bare stream": [], "writing": [], "reading": []}
    with tempfile.TemporaryDirectory(prefix="dsgan-shards-") as scratch:
        folders = iter(Path(scratch) / str(i) for i in range(runs + 1))

        def stream() -> None:
            for sample in labeled.stream(range(samples)):
                sample.mask.sum().item()  # a consumer that looks at each sample

        def write(folder: Path) -> None:
            write_shards(labeled, folder, range(samples), samples_per_shard=-(-samples // 2))

        first = next(folders)
        write(first)
        check(labeled, first, samples)
        for i in range(runs):
            folder = next(folders)
            pair: list[tuple[str, Callable[[], object]]] = [
                ("bare stream", stream),
                ("writing", lambda folder=folder: write(folder)),  # type: ignore[misc]
            ]
            for name, action in pair if i % 2 else pair[::-1]:
                seconds[name].append(timed(action, device))
            seconds["reading"].append(timed(lambda: list(ShardDataset(first)), "cpu"))
            progress(f"{side}²: pair {i + 1} of {runs}")
        megabytes = sum(path.stat().st_size for path in first.iterdir()) / 1e6
    ratios = [bare / written for bare, written in zip(seconds["bare stream"], seconds["writing"], strict=True)]
    low, high = median_interval(ratios)
    per_second = {name: round(samples / statistics.median(values), 2) for name, values in seconds.items()}
    return {
        "samples": samples,
        "megabytes": round(megabytes, 2),
        "samples_per_second": per_second,
        "seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
        "ratio": round(statistics.median(ratios), 4),
        "ratio_interval": [round(low, 4), round(high, 4)],
    }


def timed(action: Callable[[], object], device: str) -> float:
    """Seconds."""
    started = time.perf_counter()
    action()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(sides: Sequence[int], runs: int, device: str) -> Measurement:
    """Median seconds of writing and of reading, for --baseline."""
    seconds: dict[str, float] = {}
    results: list[torch.Tensor] = []
    for side in sides:
        labeled, samples = random_labeled(side, device), SAMPLES[side]
        times: dict[str, list[float]] = {"writing": [], "reading": []}
        with tempfile.TemporaryDirectory(prefix="dsgan-shards-") as scratch:
            for i in range(runs + 1):  # the first warms up
                folder = Path(scratch) / str(i)

                def write(folder: Path = folder) -> None:
                    write_shards(labeled, folder, range(samples), samples_per_shard=-(-samples // 2))  # noqa: B023

                times["writing"].append(timed(write, device))
                times["reading"].append(timed(lambda folder=folder: list(ShardDataset(folder)), "cpu"))  # type: ignore[misc]
            results += [tensor for sample in ShardDataset(folder) for tensor in (sample.image, sample.mask)]
        seconds |= {f"{name} {side}²": statistics.median(values[1:]) for name, values in times.items()}
    return Measurement(seconds, moments(results))


def peak_of_writing(samples: int) -> int:
    """Peak resident memory of a fresh process that writes a number of samples of demo-faces, MB."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_write_and_measure, (samples,))


def _write_and_measure(samples: int) -> int:
    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    with tempfile.TemporaryDirectory(prefix="dsgan-memory-") as scratch, PeakMemory() as memory:
        write_shards(labeled, scratch, range(samples), samples_per_shard=500)
    return memory.peak // 2**20


def main() -> int:
    """Check, time, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sides",
        type=int,
        nargs="*",
        choices=SAMPLES,
        default=[128, 256],
        help="(default: 128 256); none, for the memory alone",
    )
    parser.add_argument("--runs", type=int, default=MIN_RUNS, help=f"interleaved pairs (default: {MIN_RUNS})")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument("--memory", action="store_true", help=f"also peak memory of {MEMORY_SAMPLES} samples")
    parser.add_argument("--check", action="store_true", help=f"exit with 1 where the lower end lies below {TARGET}")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    add_options(parser)
    args = parser.parse_args()
    status = run_pairs(args, sys.argv[1:], lambda: measure(args.sides, args.runs, args.device))
    if status is not None:
        return status
    report: Result = {
        "benchmark": "shards",
        "device": cpu_name() if args.device == "cpu" else torch.cuda.get_device_name(args.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": "float32",
        "runs": args.runs,
        "sides": {},
    }
    try:
        for side in args.sides:
            report["sides"][str(side)] = run_side(side, args.runs, args.device)
    except BenchmarkError as error:
        print(f"benchmark failed: {error}", file=sys.stderr)
        return 1
    if args.memory:
        report["peak_megabytes"] = {str(n): peak_of_writing(n) for n in MEMORY_SAMPLES}
    print(
        f"{'side':>5} {'bare':>8} {'writing':>8} {'reading':>8}  samples/s   writing / bare ({CONFIDENCE:.0%} interval)"
    )
    for side, result in report["sides"].items():
        rates, (low, high) = result["samples_per_second"], result["ratio_interval"]
        print(
            f"{side:>5} {rates['bare stream']:8.2f} {rates['writing']:8.2f} {rates['reading']:8.1f}"
            f"              {result['ratio']:.3f} ({low:.3f} … {high:.3f})"
        )
    for samples, megabytes in report.get("peak_megabytes", {}).items():
        print(f"{samples:>7} samples: peak memory {megabytes} MB")
    if args.out is not None:
        write_report(args.out, report)
    missed = [side for side, result in report["sides"].items() if result["ratio_interval"][0] < TARGET]
    if missed:
        print(f"below {TARGET} at {', '.join(missed)}", file=sys.stderr)
    return 1 if missed and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
