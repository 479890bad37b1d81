"""Where the CPU time of one pair goes, operation by operation, on one thread; and what was chosen between.

What `docs/performance.md` says of the stages. Run it on an idle machine.

    python benchmarks/stages.py --out benchmarks/results/stages.json
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import cpu_name, write_report
from pair import SHAPES, build
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dsgan_datasets import sample_latents
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.interpreters import Frame, LabelingOptions

MEMBERS, HIDDEN = 10, (128, 32)
Result = dict[str, Any]


def best(function: Callable[[], object], runs: int = 8) -> float:
    """Milliseconds of the quickest run."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - began))
    return round(min(times), 3)


def operations(function: Callable[[], object]) -> dict[str, float]:
    """Milliseconds that each operation of PyTorch takes by itself, the longest first; those above 1 ms."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        function()
    times = {each.key: each.self_cpu_time_total / 1000 for each in profiled.key_averages()}
    return {name: round(ms, 1) for name, ms in sorted(times.items(), key=lambda item: -item[1]) if ms >= 1}


@torch.no_grad()
def of_pair(name: str) -> Result:
    """Synthesis and labels of one sample of a published shape, float32."""
    labeled = build(name).ours["float32"]
    z = sample_latents(range(1), labeled.generator.z_dim, seed=0)
    features, frame = synthesize(labeled.generator, labeled.recipe, z)[1], Frame(labeled.image_size)
    parts: dict[str, Callable[[], object]] = {
        "synthesis": lambda: synthesize(labeled.generator, labeled.recipe, z),
        "labels": lambda: labeled.interpreter.predict(features, frame, LabelingOptions()),
    }
    return {part: {"ms": best(run, 6), "operations_ms": operations(run)} for part, run in parts.items()}


def transposed(inputs: int, outputs: int, side: int) -> Result:
    """A transposed convolution of 4×4, stride 2, and four ordinary ones of 2×2 that compute the same."""
    x = torch.randn(1, inputs, side, side).to(memory_format=torch.channels_last)
    kernel = torch.randn(inputs, outputs, 4, 4).to(memory_format=torch.channels_last)
    # Output 2i + a reads input i - 1 + a with tap 3 - a, and input i + a with tap 1 - a.
    taps = ([3, 1], [2, 0])
    kernels = [[kernel[:, :, taps[a]][..., taps[b]].transpose(0, 1).contiguous() for b in (0, 1)] for a in (0, 1)]

    def four() -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1))
        result = torch.empty(1, outputs, 2 * side, 2 * side).to(memory_format=torch.channels_last)
        for a in (0, 1):
            for b in (0, 1):
                part = padded[:, :, a : a + side + 1, b : b + side + 1]
                result[:, :, a::2, b::2] = F.conv2d(part, kernels[a][b])
        return result

    def one() -> Tensor:
        return F.conv_transpose2d(x, kernel, stride=2, padding=1)

    torch.testing.assert_close(four(), one(), rtol=1e-3, atol=1e-2)
    return {"side": side, "transposed_ms": best(one), "four_ordinary_ms": best(four)}


def further_layers(pixels: int, classes: int, dtype: torch.dtype) -> Result:
    """Second and third layer of all members of a chunk: a product for each member, and one for all."""
    h1, h2 = HIDDEN
    hidden = torch.randn(pixels, MEMBERS * h1).to(dtype)
    w2, b2 = torch.randn(MEMBERS, h1, h2).to(dtype), torch.randn(MEMBERS, 1, h2).to(dtype)
    w3, b3 = torch.randn(MEMBERS, classes, h2), torch.randn(MEMBERS, classes, 1)

    def each() -> Tensor:
        found = []
        for m in range(MEMBERS):
            second = torch.addmm(b2[m, 0], hidden[:, m * h1 : (m + 1) * h1], w2[m]).relu_()
            found.append(torch.addmm(b3[m], w3[m], second.float().t()))
        return torch.stack(found)

    def together() -> Tensor:
        second = torch.baddbmm(b2, hidden.unflatten(1, (MEMBERS, h1)).transpose(0, 1), w2).relu_()
        return torch.baddbmm(b3, w3, second.float().transpose(1, 2))

    torch.testing.assert_close(each(), together(), rtol=0.05, atol=1.0)
    ms = {"a_product_for_each_member_ms": best(each, 100), "one_for_all_ms": best(together, 100)}
    return {"pixels": pixels, "dtype": str(dtype).removeprefix("torch."), **ms}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="cat", help="(default: cat)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    a = torch.randn(2048, 2048)
    mm = best(lambda: a @ a)
    report: Result = {"benchmark": "stages", "cpu": cpu_name(), "threads": 1, "torch": torch.__version__}
    report["mm_gflops"] = round(2 * 2048**3 / mm / 1e6, 1)
    report["shape"], report["stages"] = args.shape, of_pair(args.shape)
    convolutions = ((512, 512, 8), (512, 512, 16), (512, 256, 32), (256, 128, 64), (128, 64, 128))
    report["transposed_convolutions"] = [transposed(*each) for each in convolutions]
    dtypes = (torch.float32, torch.bfloat16)
    report["further_layers"] = [
        further_layers(pixels, k, dtype) for pixels, k in ((512, 12), (2048, 20)) for dtype in dtypes
    ]
    for key, value in report.items():
        print(f"{key}: {value}")
    if args.out:
        write_report(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
