"""Labeling step (features -> mask, uncertainty, score): native resolution against the published order, in one run.

The published order resizes every map to the output size, concatenates thousands of channels and classifies each pixel.
`PixelEnsemble` projects first and resizes then. Both get the same features, weights and threads. Before anything
is timed the two results are compared. A slow reference would prove nothing, so it has to reach a share of the speed
that `torch.mm` reaches on the same machine in the same minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from measuring import BenchmarkError, PeakMemory, cpu_name, progress, write_report
from pairs import Measurement, add_options, moments, run_pairs
from torch import Tensor, nn

from dsgan_datasets import PixelEnsemble

MEMBERS = 10
TOP_FRACTION = 0.1
TOLERANCE = 1e-4  # largest difference, relative to the largest value
MIN_FRACTION = 0.6  # of torch.mm, that the reference must reach
MEMORY_LIMIT_MB = 1000.0

#: Pixels that the reference classifies at a time: its activations stay in the cache, its products are still large.
_BLOCK = 4096
#: Side of the square product, and rows of the tall one, whose speeds the reference is held against.
_SQUARE, _TALL = 4096, 65536

EXAMPLE = "example: python benchmarks/labeling.py --shapes cat --runs 3 --out benchmarks/results/labeling.json"

Result = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A published model: StyleGAN1 gives two maps per resolution, 4×4 up to `largest`.

    Attributes:
        size: height and width of the labels.
        largest: height and width of the largest maps.
        classes: K.
        hidden: widths of the two hidden layers.
        target: least acceptable ratio of the times, reference to native; None where there is none.
    """

    size: int
    largest: int
    classes: int
    hidden: tuple[int, int]
    target: float | None

    @property
    def maps(self) -> list[tuple[int, int]]:
        """(channels, height and width) of every map."""
        sides = [2**i for i in range(2, self.largest.bit_length())]
        return [(min(512, 16384 // side), side) for side in sides for _ in range(2)]

    @property
    def channels(self) -> int:
        """C, features of a pixel."""
        return sum(channels for channels, _ in self.maps)

    @property
    def gflop(self) -> float:
        """Work of the classifiers in the published order for one image: two operations per multiply-add."""
        widths = (self.channels, *self.hidden, self.classes)
        multiply_adds = sum(a * b for a, b in itertools.pairwise(widths))
        return 2e-9 * self.size**2 * MEMBERS * multiply_adds


SHAPES = {
    "cat": Shape(size=256, largest=256, classes=16, hidden=(128, 32), target=10.0),
    "car": Shape(size=512, largest=512, classes=20, hidden=(128, 32), target=15.0),
    "face": Shape(size=512, largest=1024, classes=34, hidden=(256, 128), target=None),
}


class Labeling(NamedTuple):
    """Labels of N images.

    Attributes:
        mask: class ids [N, H, W].
        uncertainty: float32 [N, H, W], nats.
        score: float32 [N], nats.
    """

    mask: Tensor
    uncertainty: Tensor
    score: Tensor


def native(ensemble: PixelEnsemble, features: Sequence[Tensor], size: tuple[int, int]) -> Labeling:
    """The step that is measured, with the library of this checkout or of one that has no `predict` yet."""
    if hasattr(ensemble, "predict"):
        from dsgan_datasets.interpreters.base import Frame, LabelingOptions

        found = ensemble.predict(features, Frame(size), LabelingOptions(top_fraction=TOP_FRACTION))
        assert found.uncertainty is not None and found.uncertainty_score is not None
        return Labeling(found.labels["mask"], found.uncertainty, found.uncertainty_score)
    labels = ensemble.label(features, size)
    return Labeling(*(getattr(labels, field.name) for field in dataclasses.fields(labels)))


# The reference: the published order


class PublishedClassifier(nn.Module):
    """One member as published, in evaluation mode, with random weights and batch statistics."""

    def __init__(self, shape: Shape, generator: torch.Generator) -> None:
        super().__init__()
        h1, h2 = shape.hidden
        self.layers = nn.Sequential(
            nn.Linear(shape.channels, h1),
            nn.ReLU(inplace=True),
            nn.BatchNorm1d(h1),
            nn.Linear(h1, h2),
            nn.ReLU(inplace=True),
            nn.BatchNorm1d(h2),
            nn.Linear(h2, shape.classes),
        )
        for name, values in self.state_dict().items():
            _randomize(name, values, generator)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """[P, C] -> logits [P, K]."""
        logits: Tensor = self.layers(pixels)
        return logits


def _randomize(name: str, values: Tensor, generator: torch.Generator) -> None:
    """Weights that keep the activations near unit scale, and batch statistics far from the identity."""
    if values.dim() == 2:
        values.normal_(0, math.sqrt(2 / values.shape[1]), generator=generator)
    elif name.endswith("running_var"):
        values.uniform_(0.5, 2.0, generator=generator)
    elif values.is_floating_point():
        values.normal_(0.0 if name.endswith("bias") else 0.5, 0.5, generator=generator)


class Reference:
    """Interpolate, concatenate, flatten, classify: the published order, as fast as it goes in PyTorch.

    The [HW, C] matrix is kept from call to call, so that its pages need not be claimed anew, and is written
    channels-last, map by map. It is classified in blocks of pixels by all members.
    """

    def __init__(self, members: Sequence[PublishedClassifier], shape: Shape) -> None:
        self.members = members
        self.size = shape.size
        self.pixels = torch.zeros(shape.size**2, shape.channels)

    @torch.no_grad()
    def label(self, features: Sequence[Tensor]) -> Labeling:
        """Labels of N images, from maps [N, C_l, h_l, w_l]."""
        return self.from_logits(self.logits([f[n] for f in features]) for n in range(len(features[0])))

    def from_logits(self, images: Iterable[Iterable[Tensor]]) -> Labeling:
        """Labels of N images, from the blocks of their logits."""
        masks, divergences = [], []
        for blocks in images:
            parts = [self._label_block(logits) for logits in blocks]
            masks.append(torch.cat([mask for mask, _ in parts]))
            divergences.append(torch.cat([js for _, js in parts]))
        js = torch.stack(divergences)
        score = js.topk(int(js.shape[1] * TOP_FRACTION), dim=1).values.mean(1)
        frame = (-1, self.size, self.size)
        return Labeling(torch.stack(masks).view(frame), js.view(frame), score)

    @torch.no_grad()
    def logits(self, image: Sequence[Tensor]) -> Iterator[Tensor]:
        """Logits [M, P, K] of one image, block of pixels by block of pixels."""
        self._concatenate(image)
        for block in self.pixels.split(_BLOCK):
            yield torch.stack([member(block) for member in self.members])

    def _concatenate(self, image: Sequence[Tensor]) -> None:
        """Maps [C_l, h_l, w_l] -> the matrix [HW, C]."""
        targets = self.pixels.split([len(f) for f in image], dim=1)
        for f, target in zip(image, targets, strict=True):
            resized = f[None].contiguous(memory_format=torch.channels_last)
            if f.shape[1] != self.size:
                resized = F.interpolate(resized, size=(self.size, self.size), mode="bilinear", align_corners=False)
            target.copy_(resized[0].permute(1, 2, 0).flatten(0, 1))

    @staticmethod
    def _label_block(logits: Tensor) -> tuple[Tensor, Tensor]:
        """[M, P, K] -> mask and JS [P]."""
        probabilities = logits.softmax(-1)
        js = _entropy(probabilities.mean(0)) - _entropy(probabilities).mean(0)
        votes = torch.zeros_like(logits[0])
        for choice in logits.argmax(-1, keepdim=True):
            votes.scatter_add_(1, choice, torch.ones_like(choice, dtype=votes.dtype))
        return votes.argmax(-1), js


def _entropy(probabilities: Tensor) -> Tensor:
    # Clamped, not xlogy: that is several times slower on the CPU.
    return -(probabilities * probabilities.clamp_min(1e-37).log()).sum(-1)


def random_features(shape: Shape, batch: int, seed: int = 0) -> list[Tensor]:
    """Maps [N, C_l, h_l, w_l] of unit variance."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, channels, side, side, generator=generator) for channels, side in shape.maps]


# Equal results


@torch.no_grad()
def check_equal(reference: Reference, ensemble: PixelEnsemble, features: Sequence[Tensor], shape: Shape) -> Result:
    """Compare logits, uncertainty, score and mask.

    A mask may differ only where rounding may turn a member's choice: where its two highest logits are closer than the
    tolerance.

    Raises:
        BenchmarkError: the results differ.
    """
    size = (shape.size, shape.size)
    blocks = [list(reference.logits([f[n] for f in features])) for n in range(len(features[0]))]
    expected, actual = reference.from_logits(blocks), native(ensemble, features, size)
    logits = torch.stack([torch.cat(image, dim=1) for image in blocks], 1).movedim(-1, 2).unflatten(-1, size)
    differs, ambiguous = expected.mask != actual.mask, _ambiguous(logits)
    check = {
        "tolerance": TOLERANCE,
        "logits": _difference(ensemble.logits(features, size), logits),
        "uncertainty": _difference(actual.uncertainty, expected.uncertainty),
        "score": _difference(actual.score, expected.score),
        "mask_differs": int(differs.sum()),
        "mask_differs_without_tie": int((differs & ~ambiguous).sum()),
        "pixels": differs.numel(),
        "pixels_with_tie": int(ambiguous.sum()),
        "classes_in_mask": len(expected.mask.unique()),
        "mean_uncertainty": round(float(expected.uncertainty.mean()), 4),
    }
    # Written so that NaN fails.
    if check["mask_differs_without_tie"] or not all(
        check[name] <= TOLERANCE for name in ("logits", "uncertainty", "score")
    ):
        raise BenchmarkError(f"native labels are not those of the published order: {check}")
    return check


def _ambiguous(logits: Tensor) -> Tensor:
    """Where rounding may turn a member's choice: [M, N, K, H, W] -> bool [N, H, W]."""
    first, second = logits.topk(2, dim=2).values.unbind(2)
    return (first - second < TOLERANCE * logits.abs().max()).any(0)


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest value; infinite for NaN."""
    difference = float((actual - expected).abs().max() / expected.abs().max())
    return difference if math.isfinite(difference) else math.inf


# Times


def time_shape(
    reference: Reference, ensemble: PixelEnsemble, features: Sequence[Tensor], shape: Shape, runs: int
) -> Result:
    """Interleaved runs of the reference, the native step and matrix products, so that all share the same noise."""
    size = (shape.size, shape.size)
    cases: dict[str, Callable[[], object]] = {
        "reference": lambda: reference.label(features),
        "native": lambda: native(ensemble, features, size),
    }
    products, work = _products(reference.pixels, shape)
    seconds: dict[str, list[float]] = {name: [] for name in (*cases, *products)}
    for product in products.values():  # reference and native are warm from the check
        product()
    for run in range(runs):
        for name, case in {**cases, **products}.items():
            seconds[name].append(_seconds(case))
        progress(f"  run {run + 1}/{runs}: " + ", ".join(f"{name} {s[-1]:.3f} s" for name, s in seconds.items()))
    return _summary(seconds, shape, work, images=len(features[0]))


def _products(pixels: Tensor, shape: Shape) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """torch.mm of large matrices, and the work of each in GFLOP."""
    tall, weight = pixels[:_TALL], torch.randn(shape.channels, shape.hidden[0])
    square = torch.randn(_SQUARE, _SQUARE)
    names = (f"mm [{len(tall)}, {shape.channels}] x [{shape.channels}, {shape.hidden[0]}]", f"mm {_SQUARE}^3")
    products = (lambda: torch.mm(tall, weight), lambda: torch.mm(square, square))
    work = (2e-9 * tall.numel() * shape.hidden[0], 2e-9 * _SQUARE**3)
    return dict(zip(names, products, strict=True)), dict(zip(names, work, strict=True))


def _summary(seconds: dict[str, list[float]], shape: Shape, work: dict[str, float], images: int) -> Result:
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    mm = {name: gflop / medians[name] for name, gflop in work.items()}
    gflops = shape.gflop * images / medians["reference"]
    return {
        "reference_seconds": [round(s, 4) for s in seconds["reference"]],
        "native_seconds": [round(s, 4) for s in seconds["native"]],
        "reference_median_seconds": round(medians["reference"], 4),
        "native_median_seconds": round(medians["native"], 4),
        "ratio": round(medians["reference"] / medians["native"], 2),
        "target_ratio": shape.target,
        "reference_gflop": round(shape.gflop * images, 1),
        "reference_gflops": round(gflops, 1),
        "mm_gflops": {name: round(speed, 1) for name, speed in mm.items()},
        "reference_fraction_of_mm": round(gflops / max(mm.values()), 3),
    }


def _seconds(case: Callable[[], object]) -> float:
    start = time.perf_counter()
    case()
    return time.perf_counter() - start


# Memory


def measure_memory(name: str, batch: int, threads: int) -> float:
    """Working memory of labeling in MB beyond weights and features, in a fresh process that has freed nothing yet."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_memory_of_label, name, batch, threads).result() / 1e6


def _memory_of_label(name: str, batch: int, threads: int) -> int:
    torch.set_num_threads(threads)
    # A tiny image loads the libraries and starts the threads; it leaves no memory behind that could be reused.
    tiny = Shape(size=16, largest=16, classes=4, hidden=(8, 8), target=None)
    for shape in (tiny, SHAPES[name]):
        ensemble = PixelEnsemble(_random_matrices(shape))
        features = random_features(shape, batch)
        with PeakMemory() as memory:
            native(ensemble, features, (shape.size, shape.size))
    return memory.peak - memory.before


def _random_matrices(shape: Shape) -> dict[str, Tensor]:
    """Weights of an ensemble made in place: stacking members would leave freed memory behind."""
    c, (h1, h2), k, m = shape.channels, shape.hidden, shape.classes, MEMBERS
    sizes = {"w1": (c, m, h1), "b1": (m, h1), "w2": (m, h1, h2), "b2": (m, h2), "w3": (m, h2, k), "b3": (m, k)}
    return {name: torch.randn(size).div_(math.sqrt(size[0])) for name, size in sizes.items()}


# Beside another checkout


def measure(shapes: Sequence[str], runs: int, batch: int) -> Measurement:
    """Median seconds of labeling each shape with random weights."""
    seconds: dict[str, float] = {}
    results: list[Tensor] = []
    for name in shapes:
        shape = SHAPES[name]
        torch.manual_seed(0)
        ensemble, features = PixelEnsemble(_random_matrices(shape)), random_features(shape, batch)
        size = (shape.size, shape.size)
        results += native(ensemble, features, size)
        seconds[name] = statistics.median(_seconds(lambda: native(ensemble, features, size)) for _ in range(runs))  # noqa: B023
    return Measurement(seconds, moments(results))


# Report


def run_shape(name: str, runs: int, batch: int, threads: int) -> Result:
    """Memory, equality, then times of one shape."""
    from dsgan_datasets.interpreters.loading import stack_members

    shape = SHAPES[name]
    progress(f"{name}: memory")
    memory = measure_memory(name, batch, threads)
    progress(f"{name}: same results?")
    generator = torch.Generator().manual_seed(1)
    members = [PublishedClassifier(shape, generator) for _ in range(MEMBERS)]
    ensemble = PixelEnsemble(stack_members([m.state_dict() for m in members]))
    features = random_features(shape, batch)
    reference = Reference(members, shape)
    check = check_equal(reference, ensemble, features, shape)
    progress(
        f"{name}: yes (logits {check['logits']:.1e}, uncertainty {check['uncertainty']:.1e}); {runs} interleaved runs"
    )
    return {
        "resolution": [shape.size, shape.size],
        "maps": [[channels, side, side] for channels, side in shape.maps],
        "channels": shape.channels,
        "classes": shape.classes,
        "hidden": list(shape.hidden),
        "check": check,
        **time_shape(reference, ensemble, features, shape, runs),
        "memory_mb": round(memory, 1),
        "memory_limit_mb": MEMORY_LIMIT_MB,
    }


def slow_references(results: dict[str, Result]) -> list[str]:
    """Shapes whose reference is too slow to prove anything, in words."""
    return [
        f"{name}: the reference runs at {r['reference_gflops']} GFLOP/s, {r['reference_fraction_of_mm']:.0%} of "
        f"torch.mm, and must reach {MIN_FRACTION:.0%}: the ratio proves nothing (is the machine busy?)"
        for name, r in results.items()
        if not r["reference_fraction_of_mm"] >= MIN_FRACTION
    ]


def missed_targets(results: dict[str, Result]) -> list[str]:
    """Targets of speed and memory that are missed, in words."""
    missed = []
    for name, r in results.items():
        if r["target_ratio"] is not None and r["ratio"] < r["target_ratio"]:
            missed.append(f"{name}: {r['ratio']}x is less than {r['target_ratio']}x")
        if r["memory_mb"] > r["memory_limit_mb"]:
            missed.append(f"{name}: {r['memory_mb']} MB is more than {r['memory_limit_mb']} MB")
    return missed


def table(report: Result) -> str:
    """The report, for people."""
    lines = [
        f"labeling step, {report['cpu']}, {report['threads']} threads, {report['dtype']}, torch {report['torch']}, "
        f"batch {report['batch']}, median of {report['runs']} interleaved runs",
        f"{'shape':<6}{'output':>9}{'published':>11}{'native':>9}{'ratio':>8}{'target':>8}{'':>6}"
        f"{'GFLOP/s':>9}{'mm':>7}{'share':>7}{'memory':>10}{'error':>10}",
    ]
    for name, r in report["shapes"].items():
        target = r["target_ratio"]
        verdict = "" if target is None else "pass" if r["ratio"] >= target else "MISS"
        lines.append(
            f"{name:<6}{'{}x{}'.format(*r['resolution']):>9}{r['reference_median_seconds']:>9.2f} s"
            f"{r['native_median_seconds']:>7.3f} s{r['ratio']:>7.1f}x"
            f"{'none' if target is None else f'{target:.0f}x':>8}{verdict:>6}"
            f"{r['reference_gflops']:>9.1f}{max(r['mm_gflops'].values()):>7.1f}{r['reference_fraction_of_mm']:>7.0%}"
            f"{r['memory_mb']:>7.0f} MB{r['check']['uncertainty']:>10.0e}"
        )
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    description = "Time the labeling step at native resolution against the published order; check the results first."
    parser = argparse.ArgumentParser(description=description, epilog=EXAMPLE)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="default: all")
    parser.add_argument("--runs", type=int, default=5, help="interleaved runs of each (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="images a call (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all cores (%(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file to write (default: none)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target of speed or memory is missed")
    add_options(parser)
    args = parser.parse_args(arguments)
    if min(args.runs, args.batch, args.threads) < 1:
        parser.error("--runs, --batch and --threads must be at least 1")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if its reference is wrong or slow, or with --check if a target is missed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    status = run_pairs(args, arguments, lambda: measure(args.shapes, args.runs, args.batch))
    if status is not None:
        return status
    report: Result = {"benchmark": "labeling", "device": "cpu", "cpu": cpu_name(), "threads": args.threads}
    report |= {"dtype": "float32", "torch": torch.__version__, "members": MEMBERS}
    report |= {"runs": args.runs, "batch": args.batch}
    try:
        report["shapes"] = {name: run_shape(name, args.runs, args.batch, args.threads) for name in args.shapes}
    except BenchmarkError as error:
        progress(f"FAILED: {error}")
        return 1
    print(table(report))
    slow, missed = slow_references(report["shapes"]), missed_targets(report["shapes"])
    for message in (*(f"FAILED: {s}" for s in slow), *(f"target missed: {m}" for m in missed)):
        progress(message)
    if slow:
        return 1
    if args.out:
        write_report(args.out, report)
    return 1 if missed and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
