"""The stream on a GPU: what labels cost beside the generator, and how far the labeling kernels are from the roofline.

One run, under nine minutes. Of every case the results are compared with the published order, and the bits with those of
a second run, of a graph, and of other company; only then are times taken. JSON is written after each case, and one that
fails is noted and left. `--first` runs the steps of a first hour on a GPU in eight minutes, see `gpu_first`. `--device
cpu` is the twin on a processor, with small shapes, and `--dry-run` its smallest form: they show that the benchmark
works, not how fast a GPU is. Random weights; images of them are noise, which costs as much as faces do.

A part that does not fit into `--minutes` any more is left out, and named in the report.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gpu_first
import torch
import torch.nn.functional as F
from arithmetic import MEMBERS, Shape, Work, ceilings, synchronize
from measuring import BenchmarkError, cpu_name, progress, write_report
from torch import Tensor, nn

from dsgan_datasets import (
    DSGANIterableDataset,
    InterpretedLabeler,
    LabeledGenerator,
    LabelSchema,
    PixelEnsemble,
    Recipe,
)
from dsgan_datasets.device import resolve_device
from dsgan_datasets.generators.stylegan2 import StyleGAN2, StyleGAN2Config
from dsgan_datasets.generators.synthesis import render, style_vectors
from dsgan_datasets.interpreters import Frame, Prediction, batched
from dsgan_datasets.interpreters.reduce import Votes
from dsgan_datasets.latents import draw_latents
from dsgan_datasets.parallel import parallel_map
from dsgan_datasets.uncertainty import image_score, js_divergence

#: ms a sample at 512², half precision, batch 8 on an H200; a training step with the stream against step + generation.
TARGETS = {"bare": 0.5, "labeled": 1.0, "overlap": 1.05}
#: What docs/performance.md expected before anything ran: ms a sample, float16, batch 8 on an H200, by side.
PREDICTED: dict[int, dict[str, float]] = {
    256: {"bare_graph": 0.17, "projection": 0.04, "tail": 0.13, "labels": 0.18, "stream_graph": 0.36},
    512: {"bare_graph": 0.45, "projection": 0.14, "tail": 0.48, "labels": 0.63, "stream_graph": 1.09},
    1024: {"bare_graph": 1.00, "projection": 0.28, "tail": 1.60, "labels": 1.90, "stream_graph": 2.91},
}
#: Share of the pixels whose label may differ from that of the published order in float32, and largest difference of
#: uncertainties, in nats.
CHANGED, JS = (
    {"float32": 0.001, "float16": 0.005, "bfloat16": 0.04},
    {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.2},
)
CLASSES = 20
#: Divisions of the tail that `--tiles` compares: tile, warps, stages.
DIVISIONS = (((8, 16), 8, 2), ((8, 16), 8, 1), ((8, 8), 4, 1), ((8, 8), 4, 2), ((8, 8), 8, 1), ((4, 8), 8, 1))

EXAMPLE = "example: python benchmarks/gpu.py --out benchmarks/results/gpu.json"

Result = dict[str, Any]


# The parts


def random_labeled(shape: Shape, dtype: str, batch: int, device: torch.device) -> LabeledGenerator:
    """A StyleGAN2 and classifiers with random weights of reasonable size."""
    random = torch.Generator().manual_seed(0)
    config = StyleGAN2Config(z_dim=512, w_dim=512, img_resolution=shape.side, channels=shape.channels, conv_clamp=256.0)
    generator = StyleGAN2(config)
    with torch.no_grad():
        for tensor in (*generator.parameters(), *generator.buffers()):
            tensor.copy_(torch.randn(tensor.shape, generator=random))
    generator.to(device)
    sizes = {
        "w1": (shape.features, MEMBERS, shape.hidden[0]),
        "b1": (MEMBERS, shape.hidden[0]),
        "w2": (MEMBERS, *shape.hidden),
        "b2": (MEMBERS, shape.hidden[1]),
        "w3": (MEMBERS, shape.hidden[1], shape.classes),
        "b3": (MEMBERS, shape.classes),
    }
    inputs = {"w1": shape.features, "w2": shape.hidden[0], "w3": shape.hidden[1]}
    weights = {
        name: torch.randn(size, generator=random) * math.sqrt(2 / inputs.get(name, 20)) for name, size in sizes.items()
    }
    ensemble = PixelEnsemble(weights, layout=generator.features, channels=generator.feature_channels)
    schema = LabelSchema(tuple(f"class{i}" for i in range(shape.classes)))
    recipe = Recipe(dtype=dtype, compute_batch=batch)  # type: ignore[arg-type]
    return LabeledGenerator(InterpretedLabeler(generator.freeze(), ensemble.to(device), [schema]), recipe)


class PublishedOrder:
    """Resize, concatenate, classify: one image after the other, blocks of pixels, in the precision of the features."""

    def __init__(self, ensemble: PixelEnsemble, side: int, dtype: torch.dtype) -> None:
        self.weights = {name: tensor.to(dtype) for name, tensor in ensemble.named_buffers()}
        self.size, self.dtype = (side, side), dtype

    @torch.no_grad()
    def label(self, features: Sequence[Tensor]) -> Prediction:
        """Labels of N images, from maps [N, C_l, h_l, w_l]."""
        images = [self._label([f[n : n + 1].to(self.dtype) for f in features]) for n in range(len(features[0]))]
        js = torch.stack([j for _, j in images])
        return Prediction({"mask": torch.stack([m for m, _ in images])}, js, image_score(js))

    def _label(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        w = self.weights
        maps = [F.interpolate(f, size=self.size, mode="bilinear", align_corners=False) for f in features]
        pixels = torch.cat(maps, dim=1)[0].flatten(1).t().contiguous()  # [HW, C]
        masks, divergences = [], []
        for block in pixels.split(65536):
            logits = []
            for m in range(MEMBERS):
                hidden = torch.addmm(w["b1"][m], block, w["w1"][:, m]).relu_()
                hidden = torch.addmm(w["b2"][m], hidden, w["w2"][m]).relu_()
                logits.append(torch.addmm(w["b3"][m], hidden, w["w3"][m]).float().t())
            probabilities = torch.stack(logits).softmax(1)  # [M, K, P]
            divergences.append(js_divergence(probabilities[:, None, :, None])[0, 0])
            votes = F.one_hot(probabilities.argmax(1), probabilities.shape[1]).sum(0)
            masks.append(votes.argmax(1))
        return torch.cat(masks).view(self.size), torch.cat(divergences).view(self.size)


# Equal results


def check(labeled: LabeledGenerator, features: list[Tensor]) -> Result:
    """Labels of some maps against those of the published order in float32."""
    side, dtype = labeled.generator.img_resolution, labeled.recipe.dtype
    expected = PublishedOrder(labeled.interpreter, side, torch.float32).label(features)
    labels = labeled.interpreter.predict(features, Frame((side, side)))
    found: Result = {
        "labels_changed": float((labels.labels["mask"] != expected.labels["mask"]).double().mean()),
        "uncertainty": float((labels.uncertainty - expected.uncertainty).abs().max()),
        "score": float((labels.uncertainty_score - expected.uncertainty_score).abs().max()),
        "classes": len(expected.labels["mask"].unique()),
        "kernel": labels_by(labeled, features),
    }
    # Written so that NaN fails.
    if not (found["labels_changed"] <= CHANGED[dtype] and found["uncertainty"] <= JS[dtype] and found["classes"] > 1):
        raise BenchmarkError(f"labels in {dtype} are not those of the published order: {found}")
    return found


def labels_by(labeled: LabeledGenerator, features: list[Tensor]) -> str:
    """What labels are computed by."""
    if labeled.device.type == "cpu":
        return "rowwise (CPU)"
    frame = Frame(labeled.generator.img_size)
    prepared = batched.prepare(labeled.interpreter.weights, features, frame, Votes(labeled.recipe.vote))
    return "fused kernel" if prepared.fused else "plain PyTorch"


# Equal bits


def same_bits(labeled: LabeledGenerator, ws: Tensor) -> Result:
    """Whether a batch has the same bits when computed again: twice, rolled, as a graph, with cudnn.benchmark on."""

    def made(compute: Any, rows: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return {name: value.clone() for name, value in compute(rows).items()}

    def plain(rows: Tensor) -> dict[str, Tensor]:
        return labeled.labeler.label(rows, labeled.recipe)

    first = made(plain, ws)
    found: Result = {"twice": _equal(made(plain, ws), first)}
    if ws.is_cuda:
        rolled = made(plain, ws.roll(1, 0))
        found["rolled"] = _equal({name: value.roll(-1, 0) for name, value in rolled.items()}, first)
        found["graph"] = _equal(made(graph_of(plain, ws), ws), first)
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        try:
            found["cudnn.benchmark"] = _equal(made(plain, ws), first)
        finally:
            torch.backends.cudnn.benchmark = before
    if differing := [name for name, equal in found.items() if not equal]:
        raise BenchmarkError(f"bits differ ({', '.join(differing)}): no times are taken")
    return found


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in b)


def graph_of(function: Callable[[Tensor], Any], example: Tensor) -> Any:
    """The function as one CUDA graph; BenchmarkError if that fails."""
    from dsgan_datasets.acceleration import capture_graph

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return capture_graph(function, example)
        except RuntimeWarning as error:
            raise BenchmarkError(str(error)) from None


# Times


class Times(list[float]):
    """Seconds of calls."""

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self)

    def report(self, samples: int) -> dict[str, float]:
        """ms a sample: median and quartiles."""
        low, middle, high = statistics.quantiles(self, n=4) if len(self) > 1 else [self[0]] * 3
        return {name: round(t / samples * 1e3, 5) for name, t in (("ms", middle), ("q1", low), ("q3", high))}


def times_of(call: Callable[[], object], device: torch.device, *, seconds: float = 0.6, most: int = 100) -> Times:
    """Times of calls; on a GPU between events, so that calls follow each other as in a stream."""
    call()
    times = Times()
    events: list[list[torch.cuda.Event]] = []
    end = time.perf_counter() + seconds
    while len(times) + len(events) < 3 or (time.perf_counter() < end and len(times) + len(events) < most):
        if device.type == "cuda":
            around = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            around[0].record()
            call()
            around[1].record()
            events.append(around)
            if len(events) % 10 == 0:
                around[1].synchronize()
        else:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    synchronize(device)
    times.extend(start.elapsed_time(stop) / 1e3 for start, stop in events)
    return times


def seconds_a_batch(
    batches: Iterator[Any], device: torch.device, work: Callable[[Any], object] | None = None, seconds: float = 2
) -> float:
    """Time of a batch of a stream that runs, with what is done with each."""
    for batch in itertools.islice(batches, 4):  # the queue was filled before; this is how it continues
        if work is not None:
            work(batch)
    synchronize(device)
    count, start = 0, time.perf_counter()
    while count < 4 or (time.perf_counter() - start < seconds and count < 100):
        batch = next(batches)
        if work is not None:
            work(batch)
        count += 1
    synchronize(device)
    return (time.perf_counter() - start) / count


def stream_times(labeled: LabeledGenerator, seconds: float) -> Times:
    """Seconds a sample of the labeled stream, of three runs."""
    times, batch = Times(), labeled.recipe.compute_batch
    for _ in range(3):
        batches = DSGANIterableDataset(labeled, batch_size=batch).batches()
        try:
            times.append(seconds_a_batch(batches, labeled.device, seconds=seconds / 3) / batch)
        finally:
            batches.close()  # type: ignore[attr-defined]
    return times


def time_shape(
    shape: Shape, dtype: str, batch: int, device: torch.device, *, peaks: Any, seconds: float, details: bool
) -> Result:
    """Checks, then times, of one shape in one precision; `details` for what one case is enough for."""
    labeled = random_labeled(shape, dtype, batch, device)
    generator, recipe, frame = labeled.generator, labeled.recipe, Frame((shape.side, shape.side))
    ws = torch.randn(batch, generator.num_ws, generator.w_dim, device=device) * 0.5
    with torch.no_grad():
        _, features = render(generator, recipe, ws)
    result: Result = {"side": shape.side, "dtype": dtype, "batch": batch, "check": check(labeled, features)}
    result["same_bits"] = same_bits(labeled, ws)

    def bare(rows: Tensor) -> dict[str, Tensor]:
        return {"image": render(generator, recipe, rows)[0]}

    def side_by_side() -> None:
        with torch.no_grad():  # a processor computes samples one by one, side by side
            parallel_map(bare, [ws] if device.type == "cuda" else ws.split(1), device)

    def labels() -> None:
        labeled.interpreter.predict(features, frame)

    def report(call: Callable[[], object]) -> dict[str, float]:
        return times_of(call, device, seconds=seconds).report(batch)

    times: Result = {"bare": report(side_by_side), "labels": report(labels)}
    memory: Result = {"labels": peak_memory(labels, device)}
    result |= kernels(labeled, features, shape, peaks, seconds)
    reference = PublishedOrder(labeled.interpreter, shape.side, recipe.torch_dtype)

    def published() -> None:
        reference.label([f[:1] for f in features])

    times["published_order"] = times_of(published, device, seconds=seconds).report(1)
    memory["published_order"] = peak_memory(published, device)
    times["stream"] = stream_times(labeled, seconds).report(1)
    memory["stream"] = peak_memory(lambda: stream_times(labeled, 0), device)
    if device.type == "cuda":
        bare_graph = graph_of(bare, ws)
        times["bare_graph"] = report(lambda: bare_graph(ws))
        reserved = torch.cuda.memory_reserved(device)
        labeled.capture_graph()
        memory["graph"] = round((torch.cuda.memory_reserved(device) - reserved) / 1e6, 1)
        times["stream_graph"] = stream_times(labeled, seconds).report(1)
    if details:
        times |= around(labeled, seconds)
        result["profile"] = profile(labeled, ws)
        result["clocks"] = clocks()
    result["ms"], result["peak_memory"] = times, memory
    best_bare = min(times[name]["ms"] for name in ("bare", "bare_graph") if name in times)
    result["labeled_over_bare"] = round(fastest_stream(result) / best_bare, 3)
    result["published_over_labels"] = round(times["published_order"]["ms"] / times["labels"]["ms"], 2)
    if (dtype, batch) == ("float16", 8) and shape.side in PREDICTED:
        measured = {name: t["ms"] for name, t in {**times, **result["kernels"]}.items()}
        result["predicted"] = {
            name: {"predicted": expected, "measured": measured.get(name)}
            for name, expected in PREDICTED[shape.side].items()
        }
    return result


def around(labeled: LabeledGenerator, seconds: float) -> Result:
    """What the host does beside: draws, the mapping network, and a stream that rejects half of the draws."""
    recipe, batch, device = labeled.recipe, labeled.recipe.compute_batch, labeled.device
    indices = torch.arange(batch)
    attempts = torch.zeros_like(indices)

    def draw() -> Any:
        return draw_latents(recipe, labeled.generator.z_dim, indices, seed=0, attempt=attempts)

    latents, cpu = draw(), torch.device("cpu")

    def mapping() -> None:
        with torch.no_grad():
            style_vectors(labeled.generator, recipe, latents)

    found = {
        "draws": times_of(draw, cpu, seconds=seconds / 3).report(batch),
        "mapping": times_of(mapping, device, seconds=seconds / 3).report(batch),
    }
    scores = labeled.generate(range(2 * batch)).uncertainty_score
    half = labeled.with_recipe(recipe.override(threshold=float(scores.median())))
    found["filtered_stream"] = stream_times(half, seconds).report(1)
    return found


def profile(labeled: LabeledGenerator, ws: Tensor) -> list[Result]:
    """The operations of a batch that take longest."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    on_gpu = ws.is_cuda
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.no_grad(), profiler(activities=activities) as taken:
        labeled.labeler.label(ws, labeled.recipe)
        synchronize(ws.device)
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = sorted(taken.key_averages(), key=lambda row: -getattr(row, own))[:25]
    return [{"name": row.key[:120], "calls": row.count, "ms": round(getattr(row, own) / 1e3, 4)} for row in rows]


def clocks() -> str | None:
    """What nvidia-smi says of clocks, power and heat."""
    query = "--query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_throttle_reasons.active"
    try:
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def kernels(
    labeled: LabeledGenerator, features: list[Tensor], shape: Shape, peaks: tuple[float, float], seconds: float
) -> Result:
    """Times of projection and tail, and which share of the time the roofline allows them."""
    batch, itemsize = len(features[0]), features[0].element_size()
    work = shape.work(itemsize, batch)
    frame = Frame((shape.side, shape.side))
    if labels_by(labeled, features) != "fused kernel":
        return {"kernels": {}, "roofline_share": {}}
    from dsgan_datasets.interpreters.fused_tail import FusedTail

    shapes = [f.shape[1:] for f in features]
    kernel = FusedTail(labeled.interpreter.weights, shapes, frame, features[0].dtype, Votes(labeled.recipe.vote))
    coarse = kernel.project(features)
    times = {
        "projection": times_of(lambda: kernel.project(features), labeled.device, seconds=seconds),
        "tail": times_of(lambda: kernel.finish(coarse, features), labeled.device, seconds=seconds),
    }
    floors = {name: work[name].floor(*peaks) * batch for name in times}
    # What the kernel does, in place of the least that has to be done: resizing as a product.
    floors["tail_as_done"] = Work(shape.fused_tail(kernel.sources), work["tail"].bytes).floor(*peaks) * batch
    share = {name: floors[name] / times[name.removesuffix("_as_done")].median for name in floors}
    return {
        "kernels": {name: t.report(batch) for name, t in times.items()},
        "roofline_share": {name: round(value, 4) for name, value in share.items()},
    }


def peak_memory(call: Callable[[], object], device: torch.device) -> float | None:
    """MB beyond what was held before; None on a processor (see labeling.py there)."""
    if device.type != "cuda":
        return None
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    synchronize(device)
    return round((torch.cuda.max_memory_allocated(device) - before) / 1e6, 1)


def divisions(shape: Shape, dtype: str, batch: int, device: torch.device, seconds: float) -> Result:
    """ms a sample of the tail, by division: what `fused_tail.layout` and `TWO_BLOCKS` are to be chosen by."""
    from dsgan_datasets.interpreters.fused_tail import FusedTail, Layout

    labeled = random_labeled(shape, dtype, batch, device)
    features = [
        torch.randn(batch, c, r, r, device=device).to(labeled.recipe.torch_dtype).to(memory_format=torch.channels_last)
        for c, r in shape.maps
    ]
    found: Result = {}
    for division in DIVISIONS:
        name = "{}x{}, {} warps, {} stages".format(*division[0], *division[1:])
        try:
            frame, shapes = Frame((shape.side, shape.side)), [f.shape[1:] for f in features]
            weights, vote = labeled.interpreter.weights, labeled.recipe.vote
            kernel = FusedTail(weights, shapes, frame, features[0].dtype, Votes(vote), Layout(*division))
            coarse = kernel.project(features)
            times = times_of(functools.partial(kernel.finish, coarse, features), device, seconds=seconds)
            found[name] = times.report(batch)
        except Exception as error:  # does not fit into a multiprocessor
            found[name] = f"{type(error).__name__}: {error!s:.100}"
    return found


# A training step


def training(shape: Shape, dtype: str, batch: int, device: torch.device, seconds: float) -> Result:
    """A step of a segmentation model on one batch, on the stream, and the stream without it, ms a batch."""
    labeled = random_labeled(shape, dtype, batch, device)
    if device.type == "cuda":
        labeled.capture_graph()
    model = segmentation_model(device)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(sample: Any) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(sample.image.float() / 127.5 - 1)
            logits = logits["out"] if isinstance(logits, dict) else logits
            loss = F.cross_entropy(logits.float(), sample.mask)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    one = labeled.generate(range(batch))
    ms = {"step": times_of(lambda: step(one), device, seconds=2 * seconds).median * 1e3}
    for name, work in (("generation", None), ("both", step)):
        batches = DSGANIterableDataset(labeled, batch_size=batch).batches()
        ms[name] = seconds_a_batch(batches, device, work, 2 * seconds) * 1e3
        batches.close()  # type: ignore[attr-defined]
    return {
        "side": shape.side,
        "dtype": dtype,
        "batch": batch,
        "model": type(model).__name__,
        "ms": {name: round(t, 4) for name, t in ms.items()},
        # Both fill the GPU, so that their times add up; what is above that is lost.
        "overlap": round(ms["both"] / (ms["generation"] + ms["step"]), 3),
    }


def segmentation_model(device: torch.device) -> nn.Module:
    """A DeepLab v3 on a GPU, a few layers on a processor."""
    if device.type == "cuda":
        from torchvision.models.segmentation import deeplabv3_resnet50

        model: nn.Module = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES)
        return model.to(device).train()
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(16, CLASSES, 1)).train()


# The run


class Report:
    """What was found, written after each case; a case that fails is noted.

    Args:
        out: JSON file, or None.
        minutes: that the run may take.
        facts: what the times belong to.
    """

    def __init__(self, out: Path | None, minutes: float, facts: Result) -> None:
        self._out = out
        self._end = time.monotonic() + 60 * minutes
        self.content: Result = {**facts, "cases": [], "failed": [], "left_out": []}
        self.save()

    def add(self, name: str, minutes: float, part: Callable[[], Result], key: str = "cases") -> None:
        """Run a part, if that many minutes are left, and keep what it found, or its error."""
        if self._end - time.monotonic() < 60 * minutes:
            self.content["left_out"].append(name)
            return
        progress(name)
        try:
            found = part()
        except Exception as error:  # the other cases are worth their time all the same
            progress(f"FAILED: {name}: {error}")
            found = None
            self.content["failed"].append({"case": name, "error": f"{type(error).__name__}: {error!s:.600}"})
        if found is not None and key == "cases":
            self.content["cases"].append(found)
        elif found is not None:
            self.content[key] = found
        self.save()

    def save(self) -> None:
        """Write what there is."""
        if self._out:
            write_report(self._out, self.content)


def run(args: argparse.Namespace) -> Result:
    """All parts, the most valuable first."""
    device = resolve_device(args.device)
    on_gpu = device.type == "cuda"
    shapes = {side: Shape.published(side) if on_gpu else Shape(side, 2048 if side > 16 else 128) for side in args.sides}
    report = Report(args.out, args.minutes, {"benchmark": "gpu", "dry_run": args.dry_run, **environment(device)})
    peaks = {dtype: ceilings(device, getattr(torch, dtype), seconds=args.seconds) for dtype in args.dtypes}
    report.content["ceilings"] = {d: {"flops": round(p[0]), "bytes_per_second": round(p[1])} for d, p in peaks.items()}

    def case(side: int, dtype: str, batch: int, details: bool = False) -> None:
        def part() -> Result:
            return time_shape(
                shapes[side], dtype, batch, device, peaks=peaks[dtype], seconds=args.seconds, details=details
            )

        report.add(f"{side}², {dtype}, batch {batch}", 0.5 if on_gpu else 0, part)
        release(device)

    main_side, main_dtype = args.sides[0], args.dtypes[0]
    for batch in args.batches:
        case(main_side, main_dtype, batch, details=batch == args.batches[0])
    best = min(report.content["cases"], key=fastest_stream, default={"batch": args.batches[0]})["batch"]
    if args.tiles:
        part = functools.partial(divisions, shapes[main_side], main_dtype, best, device, args.seconds)
        report.add("divisions of the tail", 1, part, "divisions")
        report.content["left_out"] += ["all but divisions"]
        return report.content
    part = functools.partial(training, shapes[main_side], main_dtype, best, device, args.seconds)
    report.add("training step", 1 if on_gpu else 0, part, "training")
    release(device)
    for side in args.sides[1:]:
        case(side, main_dtype, best)
    for dtype in args.dtypes[1:]:
        case(main_side, dtype, best)
    report.content["targets_missed"] = missed_targets(report.content)
    report.save()
    return report.content


def fastest_stream(case: Result) -> float:
    """ms a sample of the labeled stream, as a graph if that is faster."""
    return float(min(case["ms"][name]["ms"] for name in ("stream", "stream_graph") if name in case["ms"]))


def release(device: torch.device) -> None:
    """Give memory back between cases."""
    if device.type == "cuda":
        import gc

        gc.collect()
        torch.cuda.empty_cache()


def environment(device: torch.device) -> Result:
    """What the times belong to."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = None
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        "capability": list(torch.cuda.get_device_capability(device)) if on_gpu else None,
        "cpu_twin": not on_gpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "triton": triton,
    }


def slow_cases(report: Result) -> list[str]:
    """Cases in half precision on a GPU that the fused kernel did not serve: their times say nothing of it."""
    return [
        f"{c['side']}², {c['dtype']}: labels by {c['check']['kernel']}, not by the fused kernel"
        for c in report["cases"]
        if not report["cpu_twin"] and c["dtype"] != "float32" and c["check"]["kernel"] != "fused kernel"
    ]


def missed_targets(report: Result) -> list[str]:
    """Targets at 512², float16, batch 8 that are missed, in words; a processor has none."""
    found: list[tuple[str, float]] = []
    for case in report["cases"]:
        if (case["side"], case["dtype"], case["batch"]) == (512, "float16", 8):
            found += [
                ("bare", case["ms"].get("bare_graph", case["ms"]["bare"])["ms"]),
                ("labeled", fastest_stream(case)),
            ]
    if "training" in report:
        found.append(("overlap", report["training"]["overlap"]))
    if report["cpu_twin"]:
        return []
    # Written so that NaN misses.
    return [f"{name}: {value:.3g}, at most {TARGETS[name]}" for name, value in found if not value <= TARGETS[name]]


def table(report: Result) -> str:
    """The report, for people; times are milliseconds a sample."""
    kind = "CPU TWIN, says nothing about a GPU: " if report["cpu_twin"] else ""
    lines = [
        f"{kind}{report['device']}, torch {report['torch']}, triton {report['triton']}, ms a sample",
        f"{'side':>5} {'dtype':<9}{'batch':>6}{'bare':>9}{'graph':>9}{'labels':>9}{'stream':>9}{'graph':>9}{'tax':>7}"
        f"{'published':>11}{'ratio':>8}{'changed':>9}{'memory':>10}  labels by",
    ]
    for c in report["cases"]:
        ms, memory = c["ms"], c["peak_memory"]["stream"]
        times = [ms.get(name, {}).get("ms") for name in ("bare", "bare_graph", "labels", "stream", "stream_graph")]
        lines.append(
            f"{c['side']:>5} {c['dtype']:<9}{c['batch']:>6}{''.join(map(_ms, times))}{c['labeled_over_bare']:>7.2f}"
            f"{ms['published_order']['ms']:>11.2f}{c['published_over_labels']:>7.1f}x{c['check']['labels_changed']:>9.2%}"
            f"{'' if memory is None else f'{memory:.0f} MB':>10}  {c['check']['kernel']}"
        )
        for name, pair in c.get("predicted", {}).items():
            lines.append(f"      {name}: predicted {pair['predicted']}, measured {pair['measured']}")
    if "training" in report:
        t = report["training"]
        lines.append(
            f"training step ({t['model']}, batch {t['batch']}), ms a batch: step {t['ms']['step']:.1f}, generation "
            f"{t['ms']['generation']:.1f}, both {t['ms']['both']:.1f} = {t['overlap']:.2f} x their sum"
        )
    lines += [f"{name}: {t if isinstance(t, str) else t['ms']}" for name, t in report.get("divisions", {}).items()]
    lines += [f"FAILED: {f['case']}: {f['error']}" for f in report["failed"]]
    if report["left_out"]:
        lines.append(f"left out: {', '.join(report['left_out'])}")
    return "\n".join(lines)


def _ms(milliseconds: float | None) -> str:
    return f"{'' if milliseconds is None else f'{milliseconds:.3f}':>9}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Measure the stream on a GPU; check the results first.", epilog=EXAMPLE
    )
    parser.add_argument("--device", help="default: the GPU if there is one; cpu is the twin with small shapes")
    parser.add_argument("--sides", type=int, nargs="+", help="default: 512 256 1024 128; on a CPU: 64 32")
    parser.add_argument("--dtypes", nargs="+", choices=CHANGED, help="default: float16 bfloat16 float32; CPU: float32")
    parser.add_argument("--batches", type=int, nargs="+", help="default: 8 4 16 32; on a CPU: 2 1 4")
    parser.add_argument("--tiles", action="store_true", help="only compare divisions of the fused kernel")
    parser.add_argument("--minutes", type=float, default=8.5, help="time to take at most (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="time to take for each number (default: 0.6, a dry run: 0)")
    parser.add_argument("--out", type=Path, help="JSON file to write, with --first a folder (default: none)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--first", action="store_true", help="the steps of a first hour on a GPU, in eight minutes")
    parser.add_argument("--part", choices=("smoke",), help="one step of --first that is not a benchmark")
    parser.add_argument("--dry-run", action="store_true", help="the smallest shapes on the CPU, in seconds")
    args = parser.parse_args(arguments)
    if args.dry_run:
        args.device, args.seconds = "cpu", 0.0
        args.sides, args.batches, args.dtypes = args.sides or [16], args.batches or [2], args.dtypes or ["float32"]
    on_gpu = resolve_device(args.device).type == "cuda"
    args.seconds = 0.6 if args.seconds is None else args.seconds
    args.sides = args.sides or ([512, 256, 1024, 128] if on_gpu else [64, 32])
    args.dtypes = args.dtypes or (["float16", "bfloat16", "float32"] if on_gpu else ["float32"])
    args.batches = args.batches or ([8, 4, 16, 32] if on_gpu else [2, 1, 4])
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if a case failed or the fused kernel did not serve, with --check if a target is missed."""
    args = parse(arguments)
    if args.first:
        return gpu_first.run(args.out, dry_run=args.dry_run)
    if args.part == "smoke":
        return gpu_first.smoke(args.out, dry_run=args.dry_run)
    report = run(args)
    print(table(report))
    slow, missed = slow_cases(report), report.get("targets_missed", [])
    for message in slow:
        progress(f"FAILED: {message}")
    for message in missed:
        progress(f"target missed: {message}")
    return 1 if report["failed"] or slow or (missed and args.check) else 0


if __name__ == "__main__":
    sys.exit(main())
