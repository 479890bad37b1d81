"""The fused kernel against plain PyTorch, run by Triton's interpreter, and compiled for GPUs that are not here.

The interpreter has to be chosen before Triton is imported: those tests run in a process of their own (this file, run
with TRITON_INTERPRET=1), and report back as JSON.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pixel_ensemble import MIXED, random_ensemble, random_maps

from dsgan_datasets.interpreters import batched, projection, rowwise
from dsgan_datasets.interpreters.base import Frame
from dsgan_datasets.interpreters.projection import Projection, Tiling

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

pytestmark = pytest.mark.usefixtures("one_thread")

PUBLISHED = [(40, 4, 4), (24, 8, 8), (12, 16, 16)]
#: name -> maps, frame, kept rows, members, hidden widths, classes, vote
CASES: dict[str, tuple[Any, ...]] = {
    "odd, not square": (MIXED, (13, 27), None, 3, (32, 16), 5, "majority"),
    "crop": (MIXED, (37, 53), (5, 23), 3, (32, 16), 5, "mean"),
    "maps exceed the frame": (
        [(4, 4, 4), (3, 16, 16), (3, 40, 60), (2, 64, 64)],
        (16, 20),
        None,
        2,
        (16, 16),
        3,
        "mean",
    ),
    "widths that are not a power of two": ([(6, 4, 4), (5, 16, 16)], (16, 16), None, 2, (24, 10), 4, "majority"),
    "only coarse maps": ([(6, 4, 4), (6, 8, 8)], (16, 24), None, 3, (32, 16), 5, "majority"),
    "only fine maps": ([(70, 16, 16)], (16, 16), (3, 11), 3, (32, 16), 5, "majority"),
    "64×32": ([(40, 4, 2), (24, 8, 4), (12, 16, 8), (8, 64, 32)], (64, 32), None, 3, (32, 16), 5, "majority"),
    "24×40": ([(40, 3, 5), (24, 6, 10), (12, 12, 20), (8, 24, 40)], (24, 40), (2, 20), 3, (32, 16), 5, "mean"),
    "one pixel": ([(6, 1, 1), (2, 5, 5)], (1, 1), None, 3, (32, 16), 5, "majority"),
    "2 classes": (PUBLISHED, (16, 16), (4, 12), 3, (128, 32), 2, "majority"),
    "20 classes": (PUBLISHED, (16, 16), (4, 12), 10, (128, 32), 20, "majority"),
    "34 classes, wide": (PUBLISHED, (16, 16), (4, 12), 3, (256, 128), 34, "majority"),
}
DTYPES = {"float32": torch.float32, "float16": torch.float16}  # the interpreter cannot multiply bfloat16


def parts(name: str, dtype: torch.dtype, batch: int = 2) -> tuple[Any, ...]:
    """Weights, maps, frame and vote of a case."""
    shapes, size, rows, members, hidden, classes, vote = CASES[name]
    ensemble = random_ensemble(sum(c for c, _, _ in shapes), members, hidden, classes)
    return ensemble.weights, [f.to(dtype) for f in random_maps(shapes, batch)], Frame(size, rows), vote


# --- in plain PyTorch ---


@pytest.mark.parametrize("name", CASES)
def test_the_plain_form_is_the_slow_path(name: str) -> None:
    case = parts(name, torch.float32)
    expected_mask, expected = rowwise.label(*case)
    mask, uncertainty = projection.label(*case)
    assert (uncertainty - expected).abs().max() <= 1e-5
    assert (mask != expected_mask).double().mean() <= 0.001  # near ties


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_changes_little(dtype: torch.dtype) -> None:
    weights, maps, frame, vote = parts("20 classes", torch.float32)
    _, expected = projection.label(weights, maps, frame, vote)
    _, uncertainty = projection.label(weights, [f.to(dtype) for f in maps], frame, vote)
    assert 0 < (uncertainty - expected).abs().max() <= 20 * torch.finfo(dtype).eps


def test_parts_of_a_batch_are_alike() -> None:
    """Projections beyond the memory limit are made in equal parts, and every image gets the same label."""
    weights, maps, frame, vote = parts("crop", torch.float32, batch=6)
    expected = projection.label(weights, maps, frame, vote)
    few_bytes = 1_200_000
    assert Projection(weights, [f.shape[1:] for f in maps], frame, torch.float32, few_bytes).images_at_once(6) == 2
    got = projection.label(weights, maps, frame, vote, max_bytes=few_bytes, max_hidden=1 << 14)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_parts_of_a_batch_are_equal() -> None:
    weights, maps, frame, _ = parts("crop", torch.float32)
    shapes = [f.shape[1:] for f in maps]
    one = Projection(weights, shapes, frame, torch.float32)
    image = one.area * one.members * one.hidden * 4
    for fitting, count, expected in ((6, 6, 6), (5, 6, 3), (3, 7, 1), (0, 4, 1)):
        limited = Projection(weights, shapes, frame, torch.float32, max_bytes=fitting * image)
        assert limited.images_at_once(count) == expected


@pytest.mark.parametrize("tile", [(4, 8), (8, 16), (16, 16)])
def test_weights_of_a_tile_interpolate(tile: tuple[int, int]) -> None:
    """Σ weight · source is bilinear resizing, for every pixel of every tile."""
    size, rows, level = (37, 53), (5, 31), (9, 7)
    tiling = Tiling.of([level], Frame(size, rows), tile)
    values = torch.randn(level, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(values[None, None], size=size, mode="bilinear")[0, 0, slice(*rows)]
    row_tile, column_tile = torch.arange(26) // tile[0], torch.arange(53) // tile[1]
    source_row, source_column = tiling.source_row[row_tile].clamp_min(0), tiling.source_column[column_tile].clamp_min(0)
    sources = values[source_row[:, None].long(), source_column[None].long()]
    got = (sources * tiling.row_weight[:, None] * tiling.column_weight[None]).sum(2)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_published_car_needs_few_sources() -> None:
    """The arithmetic of docs/performance.md: 512², coarse maps from 4² to 256², tiles of 8×16 pixels."""
    tiling = Tiling.of([(2**i, 2**i) for i in range(2, 9)], Frame((512, 512), (64, 448)), (8, 16))
    assert tiling.num_sources <= 128


def test_a_cpu_computes_image_by_image() -> None:
    """Half precision would be used by the other path."""
    shapes, size, *_ = CASES["only coarse maps"]
    ensemble = random_ensemble(sum(c for c, _, _ in shapes))
    maps, frame = [f.half() for f in random_maps(shapes, 2)], Frame(size)
    found = ensemble.predict(maps, frame)
    mask, uncertainty = rowwise.label(ensemble.weights, maps, frame, "majority")
    assert torch.equal(found.labels["mask"], mask) and torch.equal(found.uncertainty, uncertainty)
    assert not torch.equal(uncertainty, batched.prepare(ensemble.weights, maps, frame, "majority").label(maps)[1])


# --- what is prepared ---


def test_what_is_prepared_is_used_again() -> None:
    weights, maps, frame, vote = parts("only coarse maps", torch.float32)
    held = batched.prepare(weights, maps, frame, vote)
    assert batched.prepare(weights, [f + 1 for f in maps], frame, vote, held) is held
    mask, uncertainty = held.label(maps)
    expected = projection.label(weights, maps, frame, vote)
    assert mask.dtype == torch.int64 and torch.equal(mask, expected[0]) and torch.equal(uncertainty, expected[1])


def test_another_task_is_prepared_anew() -> None:
    weights, maps, frame, vote = parts("only coarse maps", torch.float32)
    held = batched.prepare(weights, maps, frame, vote)
    others = {
        "batch": (weights, [f[:1] for f in maps], frame, vote),
        "dtype": (weights, [f.half() for f in maps], frame, vote),
        "size": (weights, maps, Frame((16, 16)), vote),
        "rows": (weights, maps, Frame(frame.size, (1, 3)), vote),
        "vote": (weights, maps, frame, "mean"),
        "weights": (weights.map(torch.clone), maps, frame, vote),
    }
    for name, other in others.items():
        assert batched.prepare(*other, held) is not held, name


def test_changed_weights_are_noticed() -> None:
    weights, maps, frame, vote = parts("only coarse maps", torch.float32)
    held = batched.prepare(weights, maps, frame, vote)
    before = held.label(maps)[1]
    weights.b3.mul_(3)
    again = batched.prepare(weights, maps, frame, vote, held)
    assert again is not held
    assert not torch.equal(again.label(maps)[1], before)


# --- the kernel ---


def compare(name: str, dtype: str) -> dict[str, float]:
    """Differences of kernel and plain form; runs where the interpreter is on."""
    from dsgan_datasets.interpreters.fused_tail import FusedTail

    weights, maps, frame, vote = parts(name, DTYPES[dtype])
    shapes = [f.shape[1:] for f in maps]
    if dtype == "float32" and weights.hidden[0] > 128:
        with pytest.raises(ValueError, match="takes up to 128"):
            FusedTail(weights, shapes, frame, DTYPES[dtype], vote)
        with pytest.warns(RuntimeWarning, match="plain PyTorch"):
            assert not batched.prepare(weights, maps, frame, vote).fused
        return {"mask": 0, "uncertainty": 0, "alone": 0}
    kernel = FusedTail(weights, shapes, frame, DTYPES[dtype], vote)
    mask, uncertainty = kernel.label(maps)
    alone = kernel.label([f[1:] for f in maps])[1] if name == "only coarse maps" else uncertainty[1:]
    if name == "one pixel":
        prepared = batched.prepare(weights, maps, frame, vote)
        chosen = prepared.label(maps)
        assert prepared.fused and torch.equal(chosen[0], mask.long()) and torch.equal(chosen[1], uncertainty)
    plain_mask, plain = projection.label(weights, maps, frame, vote)
    return {
        "mask": float((mask != plain_mask).double().mean()),
        "uncertainty": float((uncertainty - plain).abs().max()),
        "alone": float((alone - uncertainty[1:]).abs().max()),
    }


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    pytest.importorskip("triton")
    here = Path(__file__).resolve()
    paths = [str(here.parents[1]), str(here.parent)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    finished = subprocess.run(
        [sys.executable, str(here)], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    result: dict[str, dict[str, float]] = json.loads(finished.stdout)
    return result


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_is_the_plain_form(interpreted: dict[str, dict[str, float]], name: str) -> None:
    exact, half = interpreted[f"{name} float32"], interpreted[f"{name} float16"]
    assert exact["mask"] <= 0.001 and exact["uncertainty"] <= 1e-5
    assert half["mask"] <= 0.005 and half["uncertainty"] <= 2e-3
    # What the interpreter multiplies with (NumPy) may sum in another order for another number of rows.
    assert exact["alone"] <= 1e-5 and half["alone"] <= 2e-3


SIGNATURE = {
    **dict.fromkeys(("source_row", "source_column"), "*i32"),
    **dict.fromkeys(("row_weight", "column_weight", "b1", "b2", "b3", "uncertainty"), "*fp32"),
    **dict.fromkeys(("level_start", "level_area", "level_width"), "*i64"),
    **dict.fromkeys(("height", "width", "tile_columns", "images"), "i32"),
    "mask": "*u8",
}


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("kind", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_the_kernel_compiles_for_a_gpu(kind: str, dtype: torch.dtype, capability: int, tmp_path: Path) -> None:
    """What the interpreter accepts the compiler may refuse; it needs no GPU to say so."""
    triton = pytest.importorskip("triton")
    if INTERPRETING:
        pytest.skip("the interpreter replaces the compiler")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from dsgan_datasets.interpreters.fused_tail import FusedTail, tail_kernel

    weights, _, frame, vote = parts("20 classes", dtype)
    shapes, *_ = CASES["20 classes"]
    constants = FusedTail(weights, shapes, frame, dtype, vote).constants
    options = {name: constants[name] for name in ("num_warps", "num_stages")}
    constants = {name: value for name, value in constants.items() if name not in options}
    names = tail_kernel.arg_names
    signature = {name: "constexpr" if name in constants else SIGNATURE.get(name, f"*{kind}") for name in names}
    source = ASTSource(tail_kernel, signature, {(names.index(name),): value for name, value in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    tensor_cores = re.search(r"wgmma|mma\.sync", compiled.asm["ptx"])
    assert bool(tensor_cores) == (dtype != torch.float32), "IEEE products do not run on tensor cores, others should"
    assert compiled.metadata.shared <= 99 * 1024, "fits into a block of any GPU since Ampere"


if __name__ == "__main__":
    assert INTERPRETING
    torch.set_num_threads(1)
    print(json.dumps({f"{name} {dtype}": compare(name, dtype) for name in CASES for dtype in DTYPES}))
