"""Samples per second of the bare stream and of each way into a training framework, in one run.

Every path gives the same samples. Before anything is timed, images and masks of each are compared with
`LabeledGenerator.generate`. Then all paths take turns, each beginning anew, so that they share the machine's noise; a
round gives one ratio for each path, and the ratios of all rounds its median and an exact interval for it.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import BenchmarkError, cpu_name, median_interval, progress, write_report
from pairs import Measurement, add_options, moments, run_pairs
from torch import Tensor

from dsgan_datasets import DSGANIterableDataset, LabeledGenerator

MIN_RUNS = 7
TARGET = 0.9  # fast path / bare stream, at the lower end of the interval
BARE = "bare stream"

EXAMPLE = "example: python benchmarks/adapters.py --samples 400 --runs 11 --out benchmarks/results/adapters.json"

Result = dict[str, Any]
#: Image, RGB uint8 [3, H, W], and mask [H, W].
Pair = tuple[Tensor, Tensor]
#: Starts a path over and gives its samples one by one.
Start = Callable[[], Iterator[Pair]]


# The paths


def bare_stream(checkpoint: str, device: str, batch: int) -> Start:
    labeled = LabeledGenerator.from_pretrained(checkpoint, device=device)

    def start() -> Iterator[Pair]:
        for sample in DSGANIterableDataset(labeled, batch_size=labeled.recipe.compute_batch):
            yield sample.image, sample.mask

    return start


def detectron2_path(fast: bool) -> Callable[[str, str, int], Start]:
    """Detectron2's training loader, with our mapper or with the stock one (no augmentation in either)."""

    def make(checkpoint: str, device: str, batch: int) -> Start:
        from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_train_loader

        from dsgan_datasets.adapters.detectron2 import DSGANDatasetMapper, register

        register("benchmark", checkpoint, device=device)
        stock = DatasetMapper(is_train=True, augmentations=[], image_format="RGB")
        mapper = DSGANDatasetMapper(image_format="RGB") if fast else stock

        def start() -> Iterator[Pair]:
            stream = DatasetCatalog.get("benchmark")
            for records in build_detection_train_loader(stream, mapper=mapper, total_batch_size=batch):
                for mapped in records:
                    yield mapped["image"], mapped["sem_seg"]

        return start

    return make


def mmseg_path(fast: bool) -> Callable[[str, str, int], Start]:
    """MMEngine's training loader: our stream of packed samples, or our map-style dataset under a stock pipeline."""

    def make(checkpoint: str, device: str, batch: int) -> Start:
        from mmengine.runner import Runner
        from mmseg.utils import register_all_modules

        import dsgan_datasets.adapters.mmseg  # noqa: F401

        register_all_modules()
        dataset = {"checkpoint": checkpoint, "device": device, "length": 10**5}
        if fast:
            dataset, sampler = {**dataset, "type": "DSGANSegIterableDataset"}, None
        else:
            steps = [{"type": step} for step in ("LoadImageFromFile", "LoadAnnotations", "PackSegInputs")]
            dataset = {**dataset, "type": "DSGANSegDataset", "pipeline": steps}
            sampler = {"type": "InfiniteSampler", "shuffle": False}
        config = {"batch_size": batch, "num_workers": 0, "sampler": sampler, "dataset": dataset}
        kept = Runner.build_dataloader(config)  # its dataset lives on, so that the weights are loaded once

        def start() -> Iterator[Pair]:
            assert kept.dataset
            for packed in Runner.build_dataloader(config):
                for image, sample in zip(packed["inputs"], packed["data_samples"], strict=True):
                    yield image.flip(0), sample.gt_sem_seg.data[0]  # theirs is BGR

        return start

    return make


#: name -> (how to make it, least acceptable ratio to the bare stream; None where there is none)
PATHS: dict[str, tuple[Callable[[str, str, int], Start], float | None]] = {
    BARE: (bare_stream, None),
    "detectron2 fast": (detectron2_path(fast=True), TARGET),
    "detectron2 stock": (detectron2_path(fast=False), None),
    "mmseg fast": (mmseg_path(fast=True), TARGET),
    "mmseg stock": (mmseg_path(fast=False), None),
}


# Equal results


def check_equal(starts: dict[str, Start], labeled: LabeledGenerator, samples: int) -> int:
    """Compare each path's first samples with `generate`; the number compared.

    Raises:
        BenchmarkError: an image or a mask differs.
    """
    expected = labeled.generate(range(samples))
    for name, start in starts.items():
        for i, (image, mask) in enumerate(itertools.islice(start(), samples)):
            for what, got, wanted in (("image", image, expected.image[i]), ("mask", mask, expected.mask[i])):
                if not torch.equal(got.to(wanted.device), wanted):
                    raise BenchmarkError(f"{name}: the {what} of sample {i} is not that of LabeledGenerator.generate")
    return samples


# Times


def time_paths(starts: dict[str, Start], samples: int, runs: int, device: str) -> dict[str, list[float]]:
    """Seconds that each path takes for a number of samples, in interleaved runs."""
    seconds: dict[str, list[float]] = {name: [] for name in starts}
    names = list(starts)
    for run in range(runs):
        # Back and forth, so that no path always follows the same other one.
        for name in names if run % 2 == 0 else reversed(names):
            seconds[name].append(_seconds(starts[name], samples, device))
        progress(f"run {run + 1}/{runs}: " + ", ".join(f"{n} {samples / s[-1]:.1f}/s" for n, s in seconds.items()))
    return seconds


def _seconds(start: Start, samples: int, device: str) -> float:
    stream = start()
    before = time.perf_counter()
    for _ in itertools.islice(stream, samples):
        pass
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - before
    stream.close()  # type: ignore[attr-defined]  # waits for what is generated ahead
    return elapsed


def summarize(seconds: dict[str, list[float]], samples: int) -> dict[str, Result]:
    """Speed of each path, and its ratio to the bare stream round by round."""
    summary = {}
    for name, times in seconds.items():
        ratios = [bare / own for bare, own in zip(seconds[BARE], times, strict=True)]
        low, high = median_interval(ratios)
        summary[name] = {
            "samples_per_second": round(samples / statistics.median(times), 2),
            "seconds": [round(s, 4) for s in times],
            "ratio": round(statistics.median(ratios), 4),
            "ratio_interval": [round(low, 4), round(high, 4)] if math.isfinite(low) else None,
            "target_ratio": PATHS[name][1],
        }
    return summary


# Beside another checkout


def measure(names: Sequence[str], checkpoint: str, device: str, batch: int, samples: int) -> Measurement:
    """Seconds that each path takes for a number of samples, and its first samples."""
    seconds, results = {}, []
    for name in names:
        start = PATHS[name][0](checkpoint, device, batch)
        results += [tensor for pair in itertools.islice(start(), 2 * batch) for tensor in pair]
        seconds[name] = _seconds(start, samples, device)
    return Measurement(seconds, moments(results))


# Report


def missed_targets(paths: dict[str, Result]) -> list[str]:
    """Targets that the lower end of an interval misses, in words."""
    return [
        f"{name}: the ratio to the bare stream may be {low}, which is less than {r['target_ratio']}"
        for name, r in paths.items()
        if r["target_ratio"] is not None
        for low in [r["ratio_interval"][0] if r["ratio_interval"] else "anything, with so few runs"]
        if not (isinstance(low, float) and low >= r["target_ratio"])
    ]


def table(report: Result) -> str:
    """The report, for people."""
    lines = [
        f"{report['checkpoint']}, {report['resolution'][0]}x{report['resolution'][1]}, {report['device']}, "
        f"{report['threads']} threads, {report['dtype']}, torch {report['torch']}, batch {report['batch']}, "
        f"{report['runs']} interleaved runs of {report['samples']} samples",
        f"{'path':<20}{'samples/s':>12}{'ratio':>9}{'95 % interval':>20}{'target':>9}",
    ]
    for name, r in report["paths"].items():
        interval = "{:.3f} … {:.3f}".format(*r["ratio_interval"]) if r["ratio_interval"] else "too few runs"
        target = "none" if r["target_ratio"] is None else f"{r['target_ratio']}"
        lines.append(f"{name:<20}{r['samples_per_second']:>12.1f}{r['ratio']:>9.3f}{interval:>20}{target:>9}")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    description = "Samples per second of the bare stream and of each framework's paths; check the samples first."
    parser = argparse.ArgumentParser(description=description, epilog=EXAMPLE)
    others = [name for name in PATHS if name != BARE]
    parser.add_argument("--paths", nargs="+", choices=others, default=others, help="default: all")
    parser.add_argument("--checkpoint", default="demo-faces", help="name or path (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--samples", type=int, default=200, help="samples a run (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=11, help=f"from {MIN_RUNS} on they prove something (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="images a training batch (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="JSON file to write (default: none)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    add_options(parser)
    args = parser.parse_args(arguments)
    if min(args.samples, args.runs, args.batch, args.threads) < 1:
        parser.error("--samples, --runs, --batch and --threads must be at least 1")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if a path gives other samples, or with --check if a target is missed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    names = (BARE, *args.paths)
    status = run_pairs(args, arguments, lambda: measure(names, args.checkpoint, args.device, args.batch, args.samples))
    if status is not None:
        return status
    labeled = LabeledGenerator.from_pretrained(args.checkpoint, device=args.device)
    starts = {n: PATHS[n][0](args.checkpoint, args.device, args.batch) for n in names}
    report: Result = {
        "benchmark": "adapters",
        "checkpoint": args.checkpoint,
        "fingerprint": labeled.fingerprint,
        "resolution": list(labeled.image_size),
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else cpu_name(),
        "threads": args.threads,
        "dtype": labeled.recipe.dtype,
        "torch": torch.__version__,
        "batch": args.batch,
        "runs": args.runs,
        "samples": args.samples,
    }
    try:
        report["samples_compared"] = check_equal(starts, labeled, min(args.samples, 2 * args.batch))
    except BenchmarkError as error:
        progress(f"FAILED: {error}")
        return 1
    report["paths"] = summarize(time_paths(starts, args.samples, args.runs, args.device), args.samples)
    print(table(report))
    missed = missed_targets(report["paths"])
    for message in missed:
        progress(f"target missed: {message}")
    if args.out:
        write_report(args.out, report)
    return 1 if missed and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
