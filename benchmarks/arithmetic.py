"""Operations and bytes of a labeled sample, and the time below which no machine can make it.

Counted, not measured: multiply-adds of the generator, of the projection and of the tail, and the bytes that have to
pass the memory if everything pointwise is fused and every map is written once and read once. The floor of a part is
the larger of operations / peak and bytes / bandwidth. Shapes: StyleGAN2 as published (up to 512 channels, 32768 / side,
and half of that below 512²), labels at the generator's resolution by ten classifiers.

`python benchmarks/arithmetic.py` prints the tables of docs/performance.md; the ceilings of the processor are measured
on the spot by torch.mm and by a copy.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from measuring import cpu_name

from dsgan_datasets.fitting.settings import ConvolutionalSettings

#: Published peaks of an H200 (SXM): dense half precision on tensor cores, memory.
H200 = (989e12, 4.8e12)

#: Sides and channels of the published StyleGAN2.
SIDES = (128, 256, 512, 1024)
MEMBERS, CLASSES, HIDDEN = 10, 20, (128, 32)


@dataclass(frozen=True)
class Work:
    """Of one sample.

    Attributes:
        macs: multiply-adds.
        bytes: read and written.
    """

    macs: float
    bytes: float

    def floor(self, peak: float, bandwidth: float) -> float:
        """Seconds at least, on a machine of this many operations (two a multiply-add) and bytes a second."""
        return max(2 * self.macs / peak, self.bytes / bandwidth)


@dataclass(frozen=True)
class Shape:
    """A StyleGAN2 and its ensemble.

    Attributes:
        side: of image and labels.
        base: channels are min(512, base / side of the layer).
        convs: 3×3 layers of the 4×4 block; StyleGAN2 has one, StyleGAN1 feeds two maps of each block to DatasetGAN.
    """

    side: int
    base: int
    members: int = MEMBERS
    classes: int = CLASSES
    hidden: tuple[int, int] = HIDDEN
    convs: int = 1
    channels: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        sides = [2**i for i in range(2, self.side.bit_length())]
        object.__setattr__(self, "channels", {side: min(512, self.base // side) for side in sides})

    @classmethod
    def published(cls, side: int) -> Shape:
        """The width of the published networks."""
        return cls(side, 32768 if side >= 512 else 16384)

    @property
    def maps(self) -> list[tuple[int, int]]:
        """(channels, side) of every feature map."""
        return [(c, r) for r, c in self.channels.items() for _ in range(self.convs if r == 4 else 2)]

    @property
    def features(self) -> int:
        """Features of a pixel."""
        return sum(c for c, _ in self.maps)

    def synthesis(self, itemsize: int, batch: int) -> Work:
        """Convolutions; weights are read once a batch."""
        macs = traffic = weights = 0.0
        previous = self.channels[4]
        for side, channels in self.channels.items():
            area = side * side
            if side > 4:
                macs += 9 * previous * channels * area / 4 + 16 * channels * area  # up, and its filter
                traffic += previous * area / 4 + 3 * channels * area  # in, out, and once more for the filter
                weights += 9 * previous * channels
            macs += 9 * channels * channels * area + 3 * channels * area
            traffic += 3 * channels * area  # in, out, in to the image
            weights += 9 * channels * channels
            previous = channels
        return Work(macs, itemsize * (traffic + weights / batch) + 3 * self.side**2)

    def projection(self, itemsize: int, batch: int) -> Work:
        """First layers of the maps smaller than the frame."""
        outputs = self.members * self.hidden[0]
        coarse = [(c, r) for c, r in self.maps if r < self.side]
        area = sum(r * r for r in self.channels if r < self.side)
        read = sum(c * r * r for c, r in coarse) + sum(c for c, _ in coarse) * outputs / batch
        return Work(sum(c * r * r for c, r in coarse) * outputs, itemsize * (read + area * outputs))

    def tail(self, itemsize: int, batch: int) -> Work:
        """Maps as large as the frame, bilinear resizing (rows first, then columns), the other layers."""
        h1, h2 = self.hidden
        area, outputs = self.side**2, self.members * h1
        fine = sum(c for c, r in self.maps if r == self.side)
        resizing = sum(2 + 2 * r / self.side for r in self.channels if r < self.side)
        pixel = outputs * (fine + resizing) + self.members * (h1 * h2 + h2 * self.classes)
        weights = self.members * (fine * h1 + h1 * h2 + h2 * self.classes)
        projected = sum(r * r for r in self.channels if r < self.side) * outputs
        return Work(area * pixel, itemsize * (projected + fine * area + weights / batch) + area * (1 + 4))

    def fused_tail(self, sources: int) -> float:
        """Multiply-adds of the fused kernel, which resizes by a product with this many sources a tile."""
        h1, h2, k = *self.hidden, max(16, 1 << (self.classes - 1).bit_length())
        fine = sum(c for c, r in self.maps if r == self.side)
        return float(self.side**2 * self.members * (h1 * (fine + sources) + h1 * h2 + h2 * k))

    def published_order(self) -> float:
        """Multiply-adds of the labels if every map is resized first."""
        h1, h2 = self.hidden
        return float(self.side**2 * self.members * (self.features * h1 + h1 * h2 + h2 * self.classes))

    def convolutional(self, itemsize: int, batch: int) -> Work:
        """Labels by a convolutional interpreter of the default settings, all of it, at the size of the maps."""
        settings = ConvolutionalSettings()
        macs = numbers = weights = 0.0
        below, side_below = 0, 0
        for side in self.channels:
            channels = sum(c for c, r in self.maps if r == side)
            width = settings.width_of(side)
            carried = below * width * side_below**2 + 4 * width * side**2 * bool(below)
            macs += (channels * width + 9 * settings.convolutions * width**2) * side**2 + carried
            weights += width * (channels + below + 9 * settings.convolutions * width)
            # Of each member: what is carried is written and read, and so is x, before and after each convolution.
            numbers += 2 * width * (side**2 * (1 + settings.convolutions) + side_below**2 * bool(below))
            below, side_below = width, side
        macs += below * self.classes * self.side**2
        read = sum(c * r * r for c, r in self.maps)
        traffic = itemsize * (read + settings.members * (numbers + weights / batch)) + self.side**2 * (1 + 4)
        return Work(settings.members * macs, traffic)

    def work(self, itemsize: int, batch: int) -> dict[str, Work]:
        """Work of each part."""
        return {name: getattr(self, name)(itemsize, batch) for name in ("synthesis", "projection", "tail")}


#: DatasetGAN's cars: StyleGAN1's maps, whose synthesis is not that of a StyleGAN2 and is left out.
CAR = Shape(512, 16384, convs=2)
#: The generators of the published interpreters, with as many classes.
PUBLISHED = {
    "cat, 256²": Shape(256, 16384, classes=16, convs=2),
    "car, 512²": CAR,
    "face, 1024²": Shape(1024, 16384, classes=34, hidden=(256, 128), convs=2),
}


def ceilings(device: torch.device, dtype: torch.dtype, *, seconds: float = 1.0) -> tuple[float, float]:
    """(operations a second of torch.mm, bytes a second of a copy) that this machine reaches."""
    side, numbers = (8192, 1 << 29) if device.type == "cuda" else (2048, 1 << 25)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.zeros(numbers, dtype=torch.int8 if device.type == "cuda" else torch.float32, device=device)
    target = torch.empty_like(source)
    return (
        2 * side**3 / best_time(lambda: torch.mm(a, b, out=product), device, seconds),
        2 * source.nbytes / best_time(lambda: target.copy_(source), device, seconds),
    )


def best_time(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Shortest time of a call, in seconds, of those that fit into this many seconds (three at least)."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(shapes: Sequence[Shape], itemsize: int, batch: int, peak: float, bandwidth: float) -> str:
    """Markdown: work and floor of each part."""
    lines = [
        "| side | features | synthesis | projection | tail | labels in the published order | floor: synthesis | labels "
        "| labels / synthesis |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for shape in shapes:
        work = shape.work(itemsize, batch)
        floors = {name: w.floor(peak, bandwidth) for name, w in work.items()}
        labels = floors["projection"] + floors["tail"]
        cells = [f"{w.macs / 1e9:.1f} GMAC, {w.bytes / 1e6:.0f} MB" for w in work.values()]
        lines.append(
            f"| {shape.side}² | {shape.features} | {' | '.join(cells)} | {shape.published_order() / 1e9:.0f} GMAC | "
            f"{_milliseconds(floors['synthesis'])} | {_milliseconds(labels)} | {labels / floors['synthesis']:.2f} |"
        )
    return "\n".join(lines)


def compared(shapes: dict[str, Shape], itemsize: int, batch: int, peak: float, bandwidth: float) -> str:
    """Markdown: work and floor of the labels by pixel classifiers and by a convolutional interpreter."""
    lines = [
        "| shape | pixel classifiers | convolutional | MAC | floor: pixel classifiers | convolutional |",
        "|---|---|---|---|---|---|",
    ]
    for name, shape in shapes.items():
        parts = shape.projection(itemsize, batch), shape.tail(itemsize, batch)
        whole = shape.convolutional(itemsize, batch)
        pixels = Work(sum(w.macs for w in parts), sum(w.bytes for w in parts))
        cells = [f"{w.macs / 1e9:.1f} GMAC, {w.bytes / 1e6:.0f} MB" for w in (pixels, whole)]
        floors = sum(w.floor(peak, bandwidth) for w in parts), whole.floor(peak, bandwidth)
        lines.append(
            f"| {name} | {' | '.join(cells)} | {whole.macs / pixels.macs:.0%} | "
            f"{' | '.join(map(_milliseconds, floors))} |"
        )
    return "\n".join(lines)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Print operations, bytes and floors of a labeled sample as Markdown.")
    parser.add_argument("--batch", type=int, default=8, help="samples that share a reading of the weights (default: 8)")
    args = parser.parse_args(arguments)
    shapes = [Shape.published(side) for side in SIDES]
    print(f"H200, half precision, batch {args.batch}, 989 TFLOP/s and 4.8 TB/s as published:\n")
    print(table(shapes, 2, args.batch, *H200))
    peak, bandwidth = ceilings(torch.device("cpu"), torch.float32)
    threads = torch.get_num_threads()
    print(f"\n{cpu_name()}, {threads} threads, float32, batch 1, {peak / 1e9:.0f} GFLOP/s (torch.mm) and ", end="")
    print(f"{bandwidth / 1e9:.1f} GB/s (copy) as measured now:\n")
    print(table(shapes, 4, 1, peak, bandwidth))
    print("\nLabels by pixel classifiers and by a convolutional interpreter of the default settings, on an H200, half ")
    print(f"precision, batch {args.batch}:\n")
    print(compared(PUBLISHED, 2, args.batch, *H200))
    labels = [CAR.projection(2, args.batch), CAR.tail(2, args.batch)]
    macs, floor = sum(w.macs for w in labels), sum(w.floor(*H200) for w in labels)
    print(f"\nDatasetGAN's cars, {CAR.features} features at 512²: labels {macs / 1e9:.0f} GMAC instead of ", end="")
    print(f"{CAR.published_order() / 1e9:.0f}, floor on an H200 {_milliseconds(floor)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
