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
from dsgan_datasets.interpreters.reduce import Moments, Probabilities, Votes

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

pytestmark = pytest.mark.usefixtures("one_thread")

PUBLISHED = [(40, 4, 4), (24, 8, 8), (12, 16, 16)]
#: name -> maps, frame, kept rows, members, hidden widths, outputs, vote, or how many outputs' variance counts
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
    "averaged": (MIXED, (13, 27), (2, 11), 3, (32, 16), 5, None),
    "averaged, some counted": (PUBLISHED, (16, 16), None, 10, (128, 32), 38, 19),
    "probabilities": (MIXED, (13, 27), (2, 11), 3, (32, 16), 5, "probabilities"),
}
DTYPES = {"float32": torch.float32, "float16": torch.float16}  # the interpreter cannot multiply bfloat16


def parts(name: str, dtype: torch.dtype, batch: int = 2) -> tuple[Any, ...]:
    """Weights, maps, frame and reduction of a case."""
    shapes, size, rows, members, hidden, classes, kept = CASES[name]
    reduction: Any = Votes(kept) if isinstance(kept, str) else Moments(kept)
    if kept == "probabilities":
        reduction = Probabilities()
    ensemble = random_ensemble(sum(c for c, _, _ in shapes), members, hidden, classes)
    return ensemble.weights, [f.to(dtype) for f in random_maps(shapes, batch)], Frame(size, rows), reduction


def difference(labels: torch.Tensor, expected: torch.Tensor) -> float:
    """Share of the class ids that differ, or the largest difference of averages."""
    assert labels.shape == expected.shape and labels.dtype == expected.dtype
    if labels.is_floating_point():
        return float((labels - expected).abs().max())
    return float((labels != expected).double().mean())


# --- in plain PyTorch ---


@pytest.mark.parametrize("name", CASES)
def test_the_plain_form_is_the_slow_path(name: str) -> None:
    case = parts(name, torch.float32)
    expected, found = rowwise.reduce(*case), projection.reduce(*case)
    assert len(found) == len(expected)
    assert difference(found[-1], expected[-1]) <= (1e-3 if name == "probabilities" else 1e-5)
    assert difference(found[0], expected[0]) <= 0.001  # near ties


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_changes_little(dtype: torch.dtype) -> None:
    weights, maps, frame, vote = parts("20 classes", torch.float32)
    _, expected = projection.reduce(weights, maps, frame, vote)
    _, uncertainty = projection.reduce(weights, [f.to(dtype) for f in maps], frame, vote)
    assert 0 < (uncertainty - expected).abs().max() <= 20 * torch.finfo(dtype).eps


def test_parts_of_a_batch_are_alike() -> None:
    """Projections beyond the memory limit are made in equal parts, and every image gets the same label."""
    weights, maps, frame, vote = parts("crop", torch.float32, batch=6)
    expected = projection.reduce(weights, maps, frame, vote)
    few_bytes = 1_200_000
    assert Projection(weights, [f.shape[1:] for f in maps], frame, torch.float32, few_bytes).images_at_once(6) == 2
    got = projection.reduce(weights, maps, frame, vote, max_bytes=few_bytes, max_hidden=1 << 14)
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
    mask, uncertainty = rowwise.reduce(ensemble.weights, maps, frame, Votes("majority"))
    assert torch.equal(found.labels["mask"], mask) and torch.equal(found.uncertainty, uncertainty)
    assert not torch.equal(
        uncertainty, batched.prepare(ensemble.weights, maps, frame, Votes("majority")).reduce(maps)[1]
    )


# --- what is prepared ---


def test_what_is_prepared_is_used_again() -> None:
    weights, maps, frame, vote = parts("only coarse maps", torch.float32)
    held: dict[Any, Any] = {}
    prepared = batched.prepare(weights, maps, frame, vote, held)
    assert batched.prepare(weights, [f + 1 for f in maps], frame, vote, held) is prepared
    mask, uncertainty = prepared.reduce(maps)
    expected = projection.reduce(weights, maps, frame, vote)
    assert mask.dtype == torch.int64 and torch.equal(mask, expected[0]) and torch.equal(uncertainty, expected[1])


def test_another_task_is_prepared_anew() -> None:
    weights, maps, frame, vote = parts("only coarse maps", torch.float32)
    held: dict[Any, Any] = {}
    prepared = batched.prepare(weights, maps, frame, vote, held)
    others = {
        "batch": (weights, [f[:1] for f in maps], frame, vote),
        "dtype": (weights, [f.half() for f in maps], frame, vote),
        "size": (weights, maps, Frame((16, 16)), vote),
        "rows": (weights, maps, Frame(frame.size, (1, 3)), vote),
        "vote": (weights, maps, frame, Votes("mean")),
        "outputs": (weights, maps, frame, Moments()),
        "weights": (weights.map(torch.clone), maps, frame, vote),
    }
    for name, other in others.items():
        assert batched.prepare(*other, held) is not prepared, name
        if name == "vote":
            assert batched.prepare(weights, maps, frame, vote, held) is prepared, "tasks that take turns are all kept"


def test_changed_weights_are_noticed() -> None:
    weights, maps, frame, vote = parts("only coarse maps", torch.float32)
    held: dict[Any, Any] = {}
    prepared = batched.prepare(weights, maps, frame, vote, held)
    before = prepared.reduce(maps)[1]
    weights.b3.mul_(3)
    again = batched.prepare(weights, maps, frame, vote, held)
    assert again is not prepared and list(held.values()) == [again]
    assert not torch.equal(again.reduce(maps)[1], before)


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
    found = kernel.reduce(maps)
    first, last = found[0], found[-1]
    alone = kernel.reduce([f[1:] for f in maps])[1] if name == "only coarse maps" else last[1:]
    if name == "one pixel":
        prepared = batched.prepare(weights, maps, frame, vote)
        chosen = prepared.reduce(maps)
        assert prepared.fused and torch.equal(chosen[0], first) and torch.equal(chosen[1], last)
    plain = projection.reduce(weights, maps, frame, vote)
    return {
        "mask": difference(first, plain[0]),
        "uncertainty": difference(last, plain[-1]),
        "alone": difference(alone, last[1:]),
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


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_is_the_plain_form(interpreted: dict[str, dict[str, float]], name: str) -> None:
    exact, half = interpreted[f"{name} float32"], interpreted[f"{name} float16"]
    averaged = name.startswith("averaged")
    rounded = 1e-3 if name == "probabilities" else 1e-5  # which are float16
    assert exact["mask"] <= (1e-5 if averaged else 0.001) and exact["uncertainty"] <= rounded
    assert half["mask"] <= 0.005 and half["uncertainty"] <= 2e-3
    # What the interpreter multiplies with (NumPy) may sum in another order for another number of rows.
    assert exact["alone"] <= 1e-5 and half["alone"] <= 2e-3


# --- compiled for GPUs that are not here ---


def labeling_maps(largest: int, widest: int = 16384) -> list[tuple[int, int, int]]:
    """Maps (C, h, w) of the published shapes: two a resolution, 4×4 up to `largest`."""
    sides = [2**i for i in range(2, largest.bit_length())]
    return [(min(512, widest // side), side, side) for side in sides for _ in range(2)]


def stylegan2(side: int) -> tuple[Any, ...]:
    return labeling_maps(side, 32768)[1:], (side, side), None, 10, (128, 32), 20


#: maps, frame, kept rows, members, hidden widths, classes: DatasetGAN's, and StyleGAN2 as published
REAL: dict[str, tuple[Any, ...]] = {
    "car": (labeling_maps(512), (512, 512), (64, 448), 10, (128, 32), 20),
    "cat": (labeling_maps(256), (256, 256), None, 10, (128, 32), 16),
    "face": (labeling_maps(1024), (512, 512), None, 10, (256, 128), 34),
    "stylegan2-256": stylegan2(256),
    "stylegan2-512": stylegan2(512),
    "stylegan2-1024": stylegan2(1024),
}
#: Compute capability -> KB of shared memory that a block may have.
CAPABILITIES = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
KINDS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
TYPES = {
    **dict.fromkeys(("source_row", "source_column"), "*i32"),
    **dict.fromkeys(("row_weight", "column_weight", "b1", "b2", "b3", "uncertainty"), "*fp32"),
    **dict.fromkeys(("factor", "noise", "strength", "bias", "taps", "next_factor"), "*fp32"),
    **dict.fromkeys(("gain", "clamp"), "fp32"),
    **dict.fromkeys(("level_start", "level_area", "level_width"), "*i64"),
    **dict.fromkeys(("height", "width", "tile_columns", "images", "pixels", "area"), "i32"),
    "mask": "*u8",
    "average": "*fp32",
}


def compile_kernel(kernel: Any, constants: dict[str, Any], capability: int, dtype: torch.dtype) -> Any:
    """The kernel as it is compiled for a GPU, for maps whose channels are last and divide by 16."""
    triton = pytest.importorskip("triton")
    if INTERPRETING:
        pytest.skip("the interpreter replaces the compiler")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {name: constants[name] for name in ("num_warps", "num_stages")}
    constants = {name: value for name, value in constants.items() if name not in options}
    constants |= {name: 1 for name in kernel.arg_names if name.endswith("channel_stride")}

    def kind(name: str) -> str:
        return "constexpr" if name in constants else "i32" if name.endswith("_stride") else f"*{KINDS[dtype]}"

    names = kernel.arg_names
    signature = {name: TYPES.get(name, kind(name)) for name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name].startswith("*") or (name.endswith("_stride") and name not in constants)
    }
    values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, values, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(compiled: Any, path: Path) -> dict[str, int]:
    """Registers a thread, and bytes of its stack, which hold what does not fit into them."""
    import triton

    path.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


def kernels_of(name: str, dtype: torch.dtype, capability: int, **options: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """The kernels that label a real shape, and their constants."""
    pytest.importorskip("triton")
    from dsgan_datasets.interpreters import fused_tail

    shapes, size, rows, members, hidden, classes = REAL[name]
    weights = random_ensemble(sum(c for c, _, _ in shapes), members, hidden, classes).weights
    division = fused_tail.layout(max(16, hidden[0]), dtype, divmod(capability, 10), **options)
    tail = fused_tail.FusedTail(weights, shapes, Frame(size, rows), dtype, Votes("majority"), division)
    return {
        "tail": (fused_tail.tail_kernel, tail.constants),
        "projection": (fused_tail.project_kernel, tail.projection_constants((16, 16))),
    }


def check_resources(
    name: str, dtype: torch.dtype, capability: int, tmp_path: Path, spilled: int = 0, **options: Any
) -> None:
    for part, (kernel, constants) in kernels_of(name, dtype, capability, **options).items():
        compiled = compile_kernel(kernel, constants, capability, dtype)
        used = resources(compiled, tmp_path / "kernel.cubin")
        assert compiled.metadata.shared <= CAPABILITIES[capability] * 1024, (part, compiled.metadata.shared)
        assert used["STACK"] <= spilled and used["LOCAL"] == 0, f"{part}: registers spill: {used}"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "capability"), [("face", 89), ("stylegan2-512", 90)])
def test_real_shapes_fit_a_gpu(name: str, capability: int, tmp_path: Path) -> None:
    check_resources(name, torch.float16, capability, tmp_path)


@pytest.mark.extended
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", REAL)
def test_every_real_shape_fits_every_gpu(name: str, capability: int, tmp_path: Path) -> None:
    check_resources(name, torch.float16, capability, tmp_path)


@pytest.mark.extended
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_two_blocks_fit_a_multiprocessor(capability: int, tmp_path: Path) -> None:
    """The other division, which a benchmark on a GPU may choose."""
    check_resources("stylegan2-512", torch.float16, capability, tmp_path, spilled=8, two_blocks=True)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("name", ["20 classes", "averaged, some counted"])
def test_the_kernels_compile_for_a_gpu(name: str, dtype: torch.dtype, capability: int, tmp_path: Path) -> None:
    """What the interpreter accepts the compiler may refuse; it needs no GPU to say so."""
    pytest.importorskip("triton")
    from dsgan_datasets.interpreters.fused_tail import FusedTail, project_kernel, tail_kernel

    weights, _, frame, vote = parts(name, dtype)
    shapes, *_ = CASES[name]
    tail = FusedTail(weights, shapes, frame, dtype, vote)
    compiled = compile_kernel(tail_kernel, tail.constants, capability, dtype)
    assert compiled.metadata.shared <= 99 * 1024, "fits into a block of any GPU since Ampere"
    ptx = compiled.asm["ptx"]
    assert "max.NaN.f32" in ptx, "a maximum must not turn NaN into 0, the most certain score"
    assert not re.search(r"max\.f32 [^;]*0f00000000;", ptx)
    projection = compile_kernel(project_kernel, tail.projection_constants((4, 4)), capability, dtype)
    for code in (ptx, projection.asm["ptx"]):
        tensor_cores = re.search(r"wgmma|mma\.sync", code)
        assert bool(tensor_cores) == (dtype != torch.float32), "IEEE products do not run on tensor cores, others should"


if __name__ == "__main__":
    assert INTERPRETING
    torch.set_num_threads(1)
    print(json.dumps({f"{name} {dtype}": compare(name, dtype) for name in CASES for dtype in DTYPES}))
