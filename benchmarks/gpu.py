"""The stream on a GPU: what labels cost beside the generator, and how far the labeling kernels are from the roofline.

One run, under nine minutes: results are compared with the published order first, then times are taken, a table is
printed and JSON written. `--device cpu` is the twin on a processor, with small shapes: it shows that the benchmark
works, not how fast a GPU is. Random weights; images of them are noise, which costs as much as faces do.

A part that does not fit into `--minutes` any more is left out, and named in the report.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

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
from dsgan_datasets.generators.synthesis import render
from dsgan_datasets.interpreters import Frame, Prediction, batched, projection
from dsgan_datasets.parallel import parallel_map
from dsgan_datasets.uncertainty import image_score, js_divergence

TARGETS = {"labeled_over_bare": 1.3, "reference_over_labels": 50.0, "roofline_share": 0.7, "overlap": 1.05}
#: Share of the pixels whose label may differ from that of the published order in float32, and largest difference of
#: uncertainties, in nats.
CHANGED, JS = (
    {"float32": 0.001, "float16": 0.005, "bfloat16": 0.04},
    {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.2},
)
CLASSES = 20
#: Tiles of the fused kernel that `--tiles` compares.
TILES = ((4, 8), (8, 8), (8, 16), (16, 8), (4, 16), (16, 16))

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
    found = {
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
    prepared = batched.prepare(labeled.interpreter.weights, features, frame, labeled.recipe.vote)
    return "fused kernel" if prepared.fused else "plain PyTorch"


# Times


def seconds_of(call: Callable[[], object], device: torch.device, *, seconds: float = 1.0, most: int = 30) -> float:
    """Median time of a call."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < most):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def seconds_a_batch(batches: Iterator[Any], device: torch.device, work: Callable[[Any], object] | None = None) -> float:
    """Time of a batch of a stream that runs, with what is done with each."""
    for batch in itertools.islice(batches, 4):  # the queue was filled before; this is how it goes on
        if work is not None:
            work(batch)
    count, start = 0, time.perf_counter()
    while count < 4 or (time.perf_counter() - start < 2 and count < 100):
        batch = next(batches)
        if work is not None:
            work(batch)
        count += 1
    synchronize(device)
    return (time.perf_counter() - start) / count


def time_shape(shape: Shape, dtype: str, batch: int, device: torch.device, *, accelerate: bool, peaks: Any) -> Result:
    """Bare generator, labeled stream, labeling kernels, and the reference, of one shape in one precision."""
    labeled = random_labeled(shape, dtype, batch, device)
    generator, recipe, size = labeled.generator, labeled.recipe, (shape.side, shape.side)
    ws = torch.randn(batch, generator.num_ws, generator.w_dim, device=device) * 0.5
    with torch.no_grad():
        _, features = render(generator, recipe, ws)
    result: Result = {"side": shape.side, "dtype": dtype, "batch": batch, "check": check(labeled, features)}

    def bare() -> None:
        def image(rows: Tensor) -> Tensor:
            return render(generator, recipe, rows)[0]

        with torch.no_grad():  # a processor computes samples one by one, side by side
            parallel_map(image, [ws] if device.type == "cuda" else ws.split(1), device)

    def per_sample(call: Callable[[], object]) -> float:
        return seconds_of(call, device) / batch

    result["bare"] = per_sample(bare)
    result["labels"] = per_sample(lambda: labeled.interpreter.predict(features, Frame(size)))
    result["peak_memory"] = {"labels": peak_memory(lambda: labeled.interpreter.predict(features, Frame(size)), device)}
    result |= kernels(labeled, features, shape, peaks)
    reference = PublishedOrder(labeled.interpreter, shape.side, recipe.torch_dtype)
    result["reference"] = seconds_of(lambda: reference.label([f[:1] for f in features]), device)
    result["peak_memory"]["reference"] = peak_memory(lambda: reference.label([f[:1] for f in features]), device)
    result["stream"] = stream_seconds(labeled)
    result["peak_memory"]["stream"] = peak_memory(lambda: stream_seconds(labeled), device)
    if accelerate:
        result["accelerated"] = accelerated_times(labeled, ws)
    bare_seconds = min(result["bare"], result.get("accelerated", {}).get("bare_graph", math.inf))
    result["labeled_over_bare"] = fastest_stream(result) / bare_seconds
    result["reference_over_labels"] = result["reference"] / result["labels"]
    result["reference_over_labeled"] = (bare_seconds + result["reference"]) / fastest_stream(result)
    return result


def stream_seconds(labeled: LabeledGenerator) -> float:
    """Seconds a sample of the labeled stream."""
    batches = DSGANIterableDataset(labeled, batch_size=labeled.recipe.compute_batch).batches()
    try:
        return seconds_a_batch(batches, labeled.device) / labeled.recipe.compute_batch
    finally:
        batches.close()  # type: ignore[attr-defined]


def accelerated_times(labeled: LabeledGenerator, ws: Tensor) -> Result:
    """Seconds a sample of the bare generator and of the stream as CUDA graphs; the stream's is kept."""
    from dsgan_datasets.acceleration import accelerated

    result: Result = {}
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always", RuntimeWarning)
        bare = accelerated(lambda x: render(labeled.generator, labeled.recipe, x)[:1], ws)
        result["bare_graph"] = seconds_of(lambda: bare(ws), ws.device) / len(ws)
        labeled.accelerate()
        result["stream_graph"] = stream_seconds(labeled)
    result["warnings"] = [str(w.message) for w in caught]
    return result


def kernels(labeled: LabeledGenerator, features: list[Tensor], shape: Shape, peaks: tuple[float, float]) -> Result:
    """Times of projection and tail, and which share of the time the roofline allows them."""
    batch, itemsize = len(features[0]), features[0].element_size()
    work = shape.work(itemsize, batch)
    frame, kernel = Frame((shape.side, shape.side)), None
    if labels_by(labeled, features) == "fused kernel":
        from dsgan_datasets.interpreters.fused_tail import FusedTail

        shapes = [f.shape[1:] for f in features]
        kernel = FusedTail(labeled.interpreter.weights, shapes, frame, features[0].dtype, labeled.recipe.vote)
    times: dict[str, float] = {}
    if kernel is None:
        both = Work(work["projection"].macs + work["tail"].macs, work["projection"].bytes + work["tail"].bytes)
        times["all"] = seconds_of(lambda: labeled.interpreter.predict(features, frame), labeled.device)
        floors = {"all": both.floor(*peaks) * batch}
    else:
        times["projection"] = seconds_of(lambda: kernel.projection(features), labeled.device)
        times["all"] = seconds_of(lambda: kernel.label(features), labeled.device)
        times["tail"] = times["all"] - times["projection"]
        floors = {name: work[name].floor(*peaks) * batch for name in ("projection", "tail")}
        floors["all"] = floors["projection"] + floors["tail"]
        # What the kernel does, in place of the least that has to be done: resizing as a product.
        done = Work(shape.fused_tail(kernel.sources), work["tail"].bytes).floor(*peaks) * batch
        floors["all_as_done"] = floors["projection"] + done
        times["all_as_done"] = times["all"]
    return {
        "kernel_seconds": {name: t / batch for name, t in times.items()},
        "roofline_share": {name: floors[name] / times[name] for name in floors},
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


def tiles(shape: Shape, dtype: str, batch: int, device: torch.device) -> Result:
    """Seconds a sample of the fused kernel, by tile: what `fused_tail.default_tile` is to be chosen by."""
    from dsgan_datasets.interpreters.fused_tail import FusedTail

    labeled = random_labeled(shape, dtype, batch, device)
    features = [
        torch.randn(batch, c, r, r, device=device).to(labeled.recipe.torch_dtype).to(memory_format=torch.channels_last)
        for c, r in shape.maps
    ]
    found: Result = {}
    for tile, warps, stages in itertools.product(TILES, (4, 8), (1, 2, 3)):
        name = f"{tile[0]}x{tile[1]}, {warps} warps, {stages} stages"
        try:
            frame, shapes = Frame((shape.side, shape.side)), [f.shape[1:] for f in features]
            kernel = FusedTail(labeled.interpreter.weights, shapes, frame, features[0].dtype, labeled.recipe.vote, tile)
            kernel.constants |= {"num_warps": warps, "num_stages": stages}
            found[name] = seconds_of(lambda kernel=kernel: kernel.label(features), device, seconds=0.3) / batch
        except Exception as error:  # does not fit into a multiprocessor
            found[name] = f"{type(error).__name__}: {error!s:.100}"
    return found


# A training step


def training(shape: Shape, dtype: str, batch: int, device: torch.device, *, accelerate: bool) -> Result:
    """A step of a segmentation model on one batch, on the stream, and the stream without it, seconds a batch."""
    labeled = random_labeled(shape, dtype, batch, device)
    if accelerate:
        labeled.accelerate()
    model = segmentation_model(device)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    half = device.type == "cuda"

    def step(sample: Any) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = model(sample.image.float() / 127.5 - 1)
            logits = logits["out"] if isinstance(logits, dict) else logits
            loss = F.cross_entropy(logits.float(), sample.mask)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    one = labeled.generate(range(batch))
    result = {"step": seconds_of(lambda: step(one), device, seconds=3), "model": type(model).__name__}
    for name, work in (("generation", None), ("both", step)):
        batches = DSGANIterableDataset(labeled, batch_size=batch).batches()
        result[name] = seconds_a_batch(batches, device, work)
        batches.close()  # type: ignore[attr-defined]
    result["overlap"] = result["both"] / max(result["generation"], result["step"])
    return {"side": shape.side, "dtype": dtype, "batch": batch, **result}


def segmentation_model(device: torch.device) -> nn.Module:
    """A DeepLab v3 on a GPU, a few layers on a processor."""
    if device.type == "cuda":
        from torchvision.models.segmentation import deeplabv3_resnet50

        model: nn.Module = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES)
        return model.to(device).train()
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(16, CLASSES, 1)).train()


# The run


class Budget:
    """Minutes that the run may take."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes
        self.left_out: list[str] = []

    def allows(self, part: str, minutes: float) -> bool:
        """Whether so many minutes are left; a part that is left out is noted."""
        if self._end - time.monotonic() >= 60 * minutes:
            progress(part)
            return True
        self.left_out.append(part)
        return False


def run(args: argparse.Namespace) -> Result:
    """All parts, the most valuable first."""
    device, budget = resolve_device(args.device), Budget(args.minutes)
    on_gpu = device.type == "cuda"
    shapes = {side: Shape.published(side) if on_gpu else Shape(side, 2048) for side in args.sides}
    peaks = {dtype: ceilings(device, getattr(torch, dtype)) for dtype in args.dtypes}
    report: Result = {"benchmark": "gpu", **environment(device)}
    report["ceilings"] = {d: {"flops": round(p[0]), "bytes_per_second": round(p[1])} for d, p in peaks.items()}
    report["cases"] = []
    main_side, main_dtype = args.sides[0], args.dtypes[0]

    def case(side: int, dtype: str, batch: int) -> None:
        if budget.allows(f"{side}², {dtype}, batch {batch}", 0.5):
            report["cases"].append(
                time_shape(shapes[side], dtype, batch, device, accelerate=on_gpu, peaks=peaks[dtype])
            )
            release(device)

    for batch in args.batches:
        case(main_side, main_dtype, batch)
    best = min(report["cases"], key=fastest_stream, default={"batch": args.batches[0]})["batch"]
    if budget.allows("training step", 1):
        report["training"] = training(shapes[main_side], main_dtype, best, device, accelerate=on_gpu)
        release(device)
    for dtype in args.dtypes[1:]:
        case(main_side, dtype, best)
    for side in args.sides[1:]:
        case(side, main_dtype, best)
    if args.tiles and on_gpu and budget.allows("tiles", 1):
        report["tiles"] = tiles(shapes[main_side], main_dtype, best, device)
    report["left_out"] = budget.left_out
    return report


def fastest_stream(case: Result) -> float:
    """Seconds a sample of the labeled stream, accelerated if that is faster."""
    return min(case["stream"], case.get("accelerated", {}).get("stream_graph", math.inf))


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
        "cpu_twin": not on_gpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "triton": triton,
        "tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
        "plain_form": projection.__name__,
    }


def missed_targets(report: Result) -> list[str]:
    """Targets that the best batch of the first shape misses, in words; a processor has none."""
    if report["cpu_twin"]:
        return []
    first = [c for c in report["cases"] if (c["side"], c["dtype"]) == _key(report["cases"][0])]
    best = min(first, key=fastest_stream)
    checks = (
        ("labeled_over_bare", best["labeled_over_bare"], -1),
        ("reference_over_labels", best["reference_over_labels"], 1),
        ("roofline_share", best["roofline_share"]["all"], 1),
        *((("overlap", report["training"]["overlap"], -1),) if "training" in report else ()),
    )
    return [
        f"{name}: {value:.3g}, wanted {'at least' if sign > 0 else 'at most'} {TARGETS[name]}"
        for name, value, sign in checks
        if not sign * value >= sign * TARGETS[name]
    ]


def _key(case: Result) -> tuple[int, str]:
    return case["side"], case["dtype"]


def table(report: Result) -> str:
    """The report, for people; times are milliseconds a sample."""
    kind = "CPU TWIN, says nothing about a GPU: " if report["cpu_twin"] else ""
    lines = [
        f"{kind}{report['device']}, torch {report['torch']}, triton {report['triton']}, ms a sample",
        f"{'side':>5} {'dtype':<9}{'batch':>6}{'bare':>9}{'labels':>9}{'stream':>9}{'graph':>9}{'tax':>7}"
        f"{'published':>11}{'ratio':>8}{'roofline':>10}{'changed':>9}{'memory':>10}  labels by",
    ]
    for c in report["cases"]:
        graph, memory = c.get("accelerated", {}).get("stream_graph"), c["peak_memory"]["stream"]
        lines.append(
            f"{c['side']:>5} {c['dtype']:<9}{c['batch']:>6}{_ms(c['bare'])}{_ms(c['labels'])}{_ms(c['stream'])}"
            f"{_ms(graph)}{c['labeled_over_bare']:>7.2f}{c['reference'] * 1e3:>11.2f}"
            f"{c['reference_over_labels']:>7.1f}x{c['roofline_share']['all']:>10.0%}{c['check']['labels_changed']:>9.2%}"
            f"{'' if memory is None else f'{memory:.0f} MB':>10}  {c['check']['kernel']}"
        )
    if "training" in report:
        t = report["training"]
        lines.append(
            f"training step ({t['model']}, batch {t['batch']}): step {t['step'] * 1e3:.1f} ms, generation "
            f"{t['generation'] * 1e3:.1f} ms, both {t['both'] * 1e3:.1f} ms = {t['overlap']:.2f} x the longer one"
        )
    lines += [
        f"{name}: {t if isinstance(t, str) else f'{t * 1e3:.4f} ms'}" for name, t in report.get("tiles", {}).items()
    ]
    if report["left_out"]:
        lines.append(f"left out for want of time: {', '.join(report['left_out'])}")
    return "\n".join(lines)


def _ms(seconds: float | None) -> str:
    return f"{'' if seconds is None else f'{seconds * 1e3:.3f}':>9}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Measure the stream on a GPU; check the results first.", epilog=EXAMPLE
    )
    parser.add_argument("--device", help="default: the GPU if there is one; cpu is the twin with small shapes")
    parser.add_argument("--sides", type=int, nargs="+", help="default: 512 256 1024 128; on a CPU: 64 32")
    parser.add_argument("--dtypes", nargs="+", choices=CHANGED, help="default: float16 bfloat16 float32; CPU: float32")
    parser.add_argument("--batches", type=int, nargs="+", help="default: 4 8 16 32; on a CPU: 1 2 4")
    parser.add_argument("--tiles", action="store_true", help="compare tiles, warps and stages of the fused kernel")
    parser.add_argument("--minutes", type=float, default=8.5, help="time to take at most (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file to write (default: none)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    args = parser.parse_args(arguments)
    on_gpu = resolve_device(args.device).type == "cuda"
    args.sides = args.sides or ([512, 256, 1024, 128] if on_gpu else [64, 32])
    args.dtypes = args.dtypes or (["float16", "bfloat16", "float32"] if on_gpu else ["float32"])
    args.batches = args.batches or ([4, 8, 16, 32] if on_gpu else [1, 2, 4])
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if results are wrong, or with --check if a target is missed."""
    args = parse(arguments)
    try:
        report = run(args)
    except BenchmarkError as error:
        progress(f"FAILED: {error}")
        return 1
    print(table(report))
    missed = missed_targets(report)
    for message in missed:
        progress(f"target missed: {message}")
    if args.out:
        write_report(args.out, {**report, "targets_missed": missed})
    return 1 if missed and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
