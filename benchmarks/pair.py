"""A whole pair, latent -> image and mask: the library against the published order, synthesis included, in one run.

The published order is that of DatasetGAN's release, in plain PyTorch and code of our own that is frozen here: StyleGAN1
with its pointwise passes one after the other, every map resized to the output, all concatenated, and each classifier
applied to every pixel of the image. Both sides have the same weights and latents. Before anything is timed their images
and labels are compared. Every ratio, bfloat16 too, is against the published order in float32 with default threads.

`--baseline CHECKOUT` compares the stream of that checkout's demo-faces instead: interleaved pairs of processes, of
which one imports the library of this checkout and the other that of the other one. Their samples are compared as well.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from labeling import MEMBERS, PublishedClassifier, Shape
from labeling import SHAPES as LABELING_SHAPES
from measuring import BenchmarkError, PeakMemory, cpu_name, progress, write_report
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets import LabeledGenerator, LabelSchema, PixelEnsemble, Recipe, sample_latents

HERE = Path(__file__).resolve().parent.parent
DTYPES = ("float32", "bfloat16")
#: Least ratio of the published order's seconds to ours: two images at once, one alone, two at once in bfloat16.
TARGETS = {
    "car": {"float32": 22.0, "float32 alone": 15.0, "bfloat16": 35.0},
    "cat": {"float32": 15.0, "float32 alone": 10.0, "bfloat16": 22.0},
}
SHAPES = {name: LABELING_SHAPES[name] for name in TARGETS}
STREAM_TARGET = 1.8
#: Share of the labels. The networks here are random and amplify rounding: bfloat16 is checked for blunders only.
#: What it changes in a trained network is measured by precision.py.
MAX_CHANGED = {"float32": 0.0005, "bfloat16": 0.05}
MAX_SCORE_MOVED = {"float32": 1e-3, "bfloat16": 1e-2}  # relative
MIN_FRACTION = 0.5  # of torch.mm, that the classifiers of the published order must reach
TOP_FRACTION = 0.1

EXAMPLE = """examples:
  python benchmarks/pair.py --out benchmarks/results/pair.json     both shapes: 16 GB of memory, ten minutes
  python benchmarks/pair.py --shapes cat --runs 3
  git worktree add ../before e3972a3
  python benchmarks/pair.py --baseline ../before --samples 200 --pairs 5 --out benchmarks/results/pair_stream.json"""

Result = dict[str, Any]


class Labeled(NamedTuple):
    """Images uint8 [N, 3, H, W] with their labels: mask int64 [N, H, W], and score float32 [N] in nats."""

    image: Tensor
    mask: Tensor
    score: Tensor


# The published order


class PublishedGenerator:
    """StyleGAN1 as published: each step an operation on whole maps. Returns image and features.

    Args:
        weights: by the names that the library gives them.
        side: of the image.
    """

    def __init__(self, weights: Mapping[str, Tensor], side: int) -> None:
        self.weights, self.side = weights, side
        self.blur = torch.outer(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])) / 16

    def __call__(self, z: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Image [1, 3, H, W], nominally -1..1, and maps [1, C, h, w] of a latent [1, 512]."""
        w, features = self._mapping(z), []
        x = z.new_empty(0)
        for i in range(int(math.log2(self.side)) - 1):
            name = f"synthesis_network.b{4 << i}"
            if i == 0:
                x = (self.weights[f"{name}.const"] + self.weights[f"{name}.bias"][:, None, None])[None]
            else:
                x = self._up(x, f"{name}.conv0", fused=4 << i >= 128)
            x = self._epilogue(x, w, f"{name}.epilogue0")
            raw = F.conv2d(
                x, self._kernel(f"{name}.conv1", math.sqrt(2)), self.weights[f"{name}.conv1.bias"], padding=1
            )
            x = self._epilogue(raw, w, f"{name}.epilogue1")
            features += [x, raw]
        kernel = self._kernel("synthesis_network.torgb", 1.0)
        return F.conv2d(x, kernel, self.weights["synthesis_network.torgb.bias"]), features

    def _mapping(self, z: Tensor) -> Tensor:
        x = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for i in itertools.count():
            weight = self.weights.get(f"mapping_network.fc{i}.weight")
            if weight is None:
                return x
            bias = self.weights[f"mapping_network.fc{i}.bias"]
            gain = 0.01 / math.sqrt(weight.shape[1])
            x = F.leaky_relu(F.linear(x, weight * gain, bias * 0.01), 0.2) * math.sqrt(2)
        raise AssertionError

    def _kernel(self, name: str, gain: float) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return weight * (gain / math.sqrt(weight[0].numel()))

    def _up(self, x: Tensor, name: str, *, fused: bool) -> Tensor:
        kernel = self._kernel(name, math.sqrt(2))
        if fused:
            k = F.pad(kernel.transpose(0, 1), (1, 1, 1, 1))
            k = k[..., 1:, 1:] + k[..., :-1, 1:] + k[..., 1:, :-1] + k[..., :-1, :-1]
            x = F.conv_transpose2d(x, k, stride=2, padding=1)
        else:
            x = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), kernel, padding=1)
        x = F.conv2d(x, self.blur.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1])
        return x + self.weights[f"{name}.bias"][:, None, None]

    def _epilogue(self, x: Tensor, w: Tensor, name: str) -> Tensor:
        x = x + self.weights[f"{name}.noise_const"] * self.weights[f"{name}.noise_strength"][:, None, None]
        x = F.instance_norm(F.leaky_relu(x, 0.2), eps=1e-5)
        weight, bias = self.weights[f"{name}.affine.weight"], self.weights[f"{name}.affine.bias"]
        scale, shift = F.linear(w, weight / math.sqrt(weight.shape[1]), bias)[:, :, None, None].chunk(2, dim=1)
        return x * (scale + 1) + shift


class PublishedOrder:
    """Generator and classifiers as published; images one after the other, on all threads."""

    def __init__(self, weights: Mapping[str, Tensor], members: Sequence[PublishedClassifier], shape: Shape) -> None:
        self.generator, self.members, self.side = PublishedGenerator(weights, shape.size), members, shape.size

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Labeled:
        """Labeled images of latents [N, 512]."""
        return Labeled(*(torch.cat(parts) for parts in zip(*map(self._one, z.split(1)), strict=True)))

    def _one(self, z: Tensor) -> Labeled:
        image, features = self.generator(z)
        pixels = self.concatenated(features)
        seen, votes, entropies = [], [], []
        for member in self.members:
            p = member(pixels).softmax(1)
            seen.append(p)
            votes.append(p.argmax(1))
            entropies.append(_entropy(p))
        js = _entropy(torch.stack(seen).mean(0)) - torch.stack(entropies).mean(0)
        mask = torch.stack(votes, -1).mode(-1).values.view(1, self.side, self.side)
        score = js.sort().values[-int(len(js) * TOP_FRACTION) :].mean()[None]
        return Labeled((image * 127.5 + 128).clamp(0, 255).to(torch.uint8), mask, score)

    def concatenated(self, features: Sequence[Tensor]) -> Tensor:
        """Maps [1, C_l, h_l, w_l] -> the features of every pixel [HW, C]."""
        stacked = torch.empty(sum(f.shape[1] for f in features), self.side, self.side)
        start = 0
        for f in features:
            size = (self.side, self.side)
            stacked[start : start + f.shape[1]] = F.interpolate(f, size, mode="bilinear", align_corners=False)[0]
            start += f.shape[1]
        return stacked.flatten(1).t()


def _entropy(p: Tensor) -> Tensor:
    # Clamped, not xlogy: that is several times slower on the CPU.
    return -(p * p.clamp_min(1e-37).log()).sum(-1)


# The two sides


class Sides(NamedTuple):
    """What is compared: latents -> labeled images, by the published order, and by the library in each precision."""

    published: PublishedOrder
    ours: dict[str, LabeledGenerator]
    latents: Tensor

    def label(self, side: str, count: int) -> Labeled:
        """The first images, by "published" or by the library in a precision."""
        if side == "published":
            return self.published(self.latents[:count])
        batch = self.ours[side].generate(range(count), attempts=0)
        return Labeled(batch.image, batch.mask.long(), batch.uncertainty_score)


def build(name: str) -> Sides:
    """Both sides of a shape, with the same random weights."""
    from dsgan_datasets.generators.stylegan1 import StyleGAN1, StyleGAN1Config
    from dsgan_datasets.interpreters.loading import stack_members

    shape = SHAPES[name]
    channels = {4 << i: min(512, 16384 // (4 << i)) for i in range(int(math.log2(shape.size)) - 1)}
    config = StyleGAN1Config(z_dim=512, w_dim=512, img_resolution=shape.size, channels=channels)
    generator = StyleGAN1(config)
    random = torch.Generator().manual_seed(1)
    for key, values in generator.state_dict().items():
        values.normal_(generator=random)
        values *= 100.0 if key.startswith("mapping") and key.endswith("weight") else 1.0
        values *= 0.1 if key.endswith(("bias", "noise_strength")) else 1.0
    generator.freeze()
    members = [PublishedClassifier(shape, random) for _ in range(MEMBERS)]
    ensemble = PixelEnsemble(stack_members([m.state_dict() for m in members]), **_layout(generator))
    schema = LabelSchema(tuple(f"class {i}" for i in range(shape.classes)))
    ours = {dtype: _labeled(generator, ensemble, schema, Recipe(dtype=dtype)) for dtype in DTYPES}
    latents = sample_latents(range(2), generator.z_dim, seed=0)
    return Sides(PublishedOrder(generator.state_dict(), members, shape), ours, latents)


def _labeled(generator: Any, ensemble: Any, schema: Any, recipe: Any) -> LabeledGenerator:
    try:
        from dsgan_datasets import InterpretedLabeler
    except ImportError:  # a checkout from before labelers
        return LabeledGenerator(generator, ensemble, schema, recipe.replace(features=generator.features))  # type: ignore
    return LabeledGenerator(InterpretedLabeler(generator, ensemble, [schema]), recipe)


def _layout(generator: Any) -> dict[str, Any]:
    if not hasattr(PixelEnsemble, "with_layout"):  # likewise
        return {}
    return {"layout": generator.features, "channels": generator.feature_channels}


# Equal results


def check_equal(sides: Sides) -> Result:
    """Compare the library's images, labels and score with those of the published order.

    Raises:
        BenchmarkError: they differ by more than rounding; in bfloat16, by more labels than allowed.
    """
    with PeakMemory(0.005) as memory:
        expected = sides.label("published", 2)
    check: Result = {"classes_in_mask": len(expected.mask.unique()), "published_memory_mb": _megabytes(memory)}
    for dtype in DTYPES:
        got = sides.label(dtype, 2)
        found = {
            "image_levels": int((got.image.int() - expected.image.int()).abs().max()),
            "labels_changed": float((got.mask != expected.mask).double().mean()),
            "score": float(((got.score - expected.score) / expected.score).abs().max()),
        }
        check[dtype] = found
        alike = found["labels_changed"] <= MAX_CHANGED[dtype] and found["score"] <= MAX_SCORE_MOVED[dtype]
        if not alike or (dtype == "float32" and found["image_levels"] > 1):
            raise BenchmarkError(f"labels in {dtype} are not those of the published order: {found}")
    return check


# Times


def time_shape(sides: Sides, name: str, runs: int) -> Result:
    """Interleaved runs of both sides, so that they share the machine's noise; ratios run by run."""
    shape = SHAPES[name]
    cases: dict[str, Callable[[], object]] = {"published": lambda: sides.label("published", 2)}
    for dtype in DTYPES:
        cases[dtype] = lambda dtype=dtype: sides.label(dtype, 2)  # type: ignore[misc]
        cases[f"{dtype} alone"] = lambda dtype=dtype: sides.label(dtype, 1)  # type: ignore[misc]
    features = sides.published.generator(sides.latents[:1])[1]
    pixels = sides.published.concatenated(features)
    weight = torch.randn(pixels.shape[1], shape.hidden[0])
    cases["mm"] = lambda: torch.mm(pixels, weight)
    seconds: dict[str, list[float]] = {case: [] for case in cases}
    with tqdm(total=runs * len(cases), desc=name, unit="case") as bar:
        for _ in range(runs):
            for case, call in cases.items():
                start = time.perf_counter()
                call()
                seconds[case].append(time.perf_counter() - start)
                bar.set_postfix_str(f"{case} {seconds[case][-1]:.2f} s")
                bar.update()
    medians = {case: statistics.median(values) for case, values in seconds.items()}
    ratios = {}
    for case in cases:
        share = 0.5 if case.endswith("alone") else 1.0  # the published order takes its images one after the other
        pairs = zip(seconds["published"], seconds[case], strict=True)
        ratios[case] = round(statistics.median(share * theirs / own for theirs, own in pairs), 2)
    work, speed = 2 * shape.gflop / medians["published"], 2e-9 * pixels.numel() * shape.hidden[0] / medians["mm"]
    return {
        "seconds": {case: [round(s, 4) for s in values] for case, values in seconds.items()},
        "median_seconds": {case: round(value, 4) for case, value in medians.items()},
        "ratios": {case: value for case, value in ratios.items() if case not in ("published", "mm")},
        "targets": TARGETS[name],
        "mm_gflops": round(speed, 1),
        "published_fraction_of_mm": round(work / speed, 3),
    }


def measure_memory(name: str, dtype: str) -> float:
    """Peak memory in MB of labeling two images at once by the library, beyond weights, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_memory, name, dtype).result()


def _memory(name: str, dtype: str) -> float:
    sides = build(name)
    with PeakMemory(0.005) as memory:
        sides.label(dtype, 2)
    return _megabytes(memory)


def _megabytes(memory: PeakMemory) -> float:
    return round((memory.peak - memory.before) / 1e6, 1)


# The stream of demo-faces, beside another checkout


def stream(checkpoint: str, samples: int, dtype: str | None, out: Path) -> None:
    """Time the filtered stream in this process; write seconds and samples to a file."""
    labeled = LabeledGenerator.from_pretrained(checkpoint, device="cpu")
    if dtype is not None:
        labeled = labeled.with_recipe(labeled.recipe.replace(dtype=dtype))
    first = list(itertools.islice(labeled.stream(itertools.count(10**6)), 16))  # warm
    del first
    start, cpu = time.perf_counter(), time.process_time()
    found = list(itertools.islice(labeled.stream(iter(range(samples))), samples))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    import dsgan_datasets

    fields = {"image": [s.image for s in found], "mask": [s.mask for s in found], "attempt": [s.attempt for s in found]}
    arrays: dict[str, Any] = {field: torch.stack(values).numpy() for field, values in fields.items()}
    np.savez(out, seconds=seconds, cpu=cpu, library=dsgan_datasets.__file__, **arrays)


def compare_streams(baseline: Path, samples: int, pairs: int) -> Result:
    """Samples per second of this checkout's stream relative to the other's.

    Raises:
        BenchmarkError: a process fails or imports another library, or the samples differ by more than rounding.
    """
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "ours bfloat16": [], "baseline": []}
    cases = {"ours": (HERE, None), "baseline": (baseline, None), "ours bfloat16": (HERE, "bfloat16")}
    check: Result = {}
    for pair in tqdm(range(pairs), "pairs"):
        arrays = {}
        for case in list(cases) if pair % 2 else list(cases)[::-1]:
            arrays[case] = _stream_process(*cases[case], baseline, samples)
            found[case].append((float(arrays[case]["seconds"]), float(arrays[case]["cpu"])))
        ours, theirs = arrays["ours"], arrays["baseline"]
        check = {
            "image_levels": int(np.abs(ours["image"].astype(int) - theirs["image"].astype(int)).max()),
            "labels_changed": float((ours["mask"] != theirs["mask"]).mean()),
            "decisions_changed": int((ours["attempt"] != theirs["attempt"]).sum()),
        }
        if check["decisions_changed"] or check["image_levels"] > 1 or check["labels_changed"] > MAX_CHANGED["float32"]:
            raise BenchmarkError(f"{baseline} gives other samples: {check}")
    ratios = {
        case: [theirs[0] / own[0] for theirs, own in zip(found["baseline"], found[case], strict=True)]
        for case in ("ours", "ours bfloat16")
    }
    return {
        "benchmark": "pair",
        "case": "stream of demo-faces",
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "samples": samples,
        "check": check,
        "seconds": {case: [round(wall, 4) for wall, _ in runs] for case, runs in found.items()},
        "cpu_seconds": {case: [round(cpu, 4) for _, cpu in runs] for case, runs in found.items()},
        "ratios": {case: [round(r, 3) for r in values] for case, values in ratios.items()},
        "ratio": round(statistics.median(ratios["ours"]), 3),
        "ratio_bfloat16": round(statistics.median(ratios["ours bfloat16"]), 3),
        "target": STREAM_TARGET,
    }


def _stream_process(checkout: Path, dtype: str | None, baseline: Path, samples: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "stream.npz"
        checkpoint = baseline / "dsgan_datasets" / "pretrained" / "demo-faces"
        once = json.dumps([str(checkpoint), samples, dtype, str(out)])
        command = [sys.executable, "-W", "ignore", __file__, "--once", once]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchmarkError(f"the stream of {checkout} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        with np.load(out) as file:
            arrays = dict(file)
    if checkout not in Path(str(arrays["library"])).resolve().parents:
        raise BenchmarkError(f"{checkout} was to be measured, but {arrays['library']} was imported")
    return arrays


# Report


def run_shape(name: str, runs: int) -> Result:
    """Memory, equality, then times of one shape."""
    progress(f"{name}: memory")
    memory = {dtype: measure_memory(name, dtype) for dtype in DTYPES}
    progress(f"{name}: same results?")
    sides = build(name)
    check = check_equal(sides)
    memory["published"] = check.pop("published_memory_mb")
    shares = {dtype: f"{check[dtype]['labels_changed']:.4%}" for dtype in DTYPES}
    progress(f"{name}: yes; labels changed: {shares}")
    return {
        "resolution": [SHAPES[name].size] * 2,
        "channels": SHAPES[name].channels,
        "classes": SHAPES[name].classes,
        "check": check,
        **time_shape(sides, name, runs),
        "memory_mb": memory,
    }


def missed_targets(shapes: Mapping[str, Result]) -> list[str]:
    """Ratios below their targets, in words."""
    return [
        f"{name}, {case}: {r['ratios'][case]}x is less than {target}x"
        for name, r in shapes.items()
        for case, target in r["targets"].items()
        if not r["ratios"][case] >= target
    ]


def table(report: Result) -> Iterator[str]:
    """The report, for people."""
    yield (
        f"latent -> image and mask, {report['cpu']}, {report['threads']} threads, torch {report['torch']}, "
        f"median of {report['runs']} interleaved runs; published order, float32: 1x"
    )
    yield f"{'shape':<6}{'':<18}{'seconds an image':>18}{'ratio':>8}{'target':>8}{'memory':>12}"
    for name, r in report["shapes"].items():
        for case in ("published", *r["ratios"]):
            seconds = r["median_seconds"][case] / (1 if case.endswith("alone") else 2)
            ratio = f"{r['ratios'][case]:.1f}x" if case in r["ratios"] else ""
            target = f"{r['targets'][case]:.0f}x" if case in r["targets"] else ""
            memory = f"{r['memory_mb'][case]:.0f} MB" if case in r["memory_mb"] else ""
            yield f"{name:<6}{case:<18}{seconds:>18.3f}{ratio:>8}{target:>8}{memory:>12}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="default: all")
    parser.add_argument("--runs", type=int, default=3, help="interleaved runs of each (default: %(default)s)")
    parser.add_argument("--baseline", type=Path, metavar="CHECKOUT", help="compare the stream with another checkout")
    parser.add_argument("--pairs", type=int, default=5, help="of processes, with --baseline (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=200, help="of a stream, with --baseline (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file to write (default: none)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--once", help=argparse.SUPPRESS)  # a process of a pair
    args = parser.parse_args(arguments)
    if min(args.runs, args.pairs, args.samples) < 1:
        parser.error("--runs, --pairs and --samples must be at least 1")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if results differ or the published order is slow, or with --check if a target is missed."""
    args = parse(arguments)
    if args.once:
        checkpoint, samples, dtype, out = json.loads(args.once)
        stream(checkpoint, samples, dtype, Path(out))
        return 0
    failed: list[str] = []
    try:
        if args.baseline is not None:
            report = compare_streams(args.baseline.resolve(), args.samples, args.pairs)
            print(f"stream of demo-faces: {report['ratio']}x {args.baseline} (target {STREAM_TARGET}x)", end="")
            print(f", in bfloat16 {report['ratio_bfloat16']}x; runs: {report['ratios']}")
            missed = [] if report["ratio"] >= STREAM_TARGET else [f"stream: {report['ratio']}x"]
        else:
            report = {"benchmark": "pair", "device": "cpu", "cpu": cpu_name(), "threads": torch.get_num_threads()}
            report |= {"torch": torch.__version__, "runs": args.runs, "members": MEMBERS}
            report["shapes"] = {name: run_shape(name, args.runs) for name in args.shapes}
            print(*table(report), sep="\n")
            missed = missed_targets(report["shapes"])
            failed = [
                f"{name}: the published order reaches {r['published_fraction_of_mm']:.0%} of torch.mm, and must reach "
                f"{MIN_FRACTION:.0%}: the ratio proves nothing (is the machine busy?)"
                for name, r in report["shapes"].items()
                if not r["published_fraction_of_mm"] >= MIN_FRACTION
            ]
    except BenchmarkError as error:
        progress(f"FAILED: {error}")
        return 1
    for message in (*(f"FAILED: {text}" for text in failed), *(f"target missed: {text}" for text in missed)):
        progress(message)
    if args.out and not failed:
        write_report(args.out, report)
    return 1 if failed or (missed and args.check) else 0


if __name__ == "__main__":
    sys.exit(main())
