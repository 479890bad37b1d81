"""The fused epilogue of StyleGAN2 against plain PyTorch, by Triton's interpreter, and compiled for GPUs.

As in test_fused_tail, the interpreter needs a process of its own: this file, run with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from test_fused_tail import CAPABILITIES, compile_kernel, resources

from dsgan_datasets import load_generator

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = {"float32": torch.float32, "float16": torch.float16}
#: Flags of a case: upsampling, channels last, noise, a scaled second output.
CASES = ["".join(case) for case in itertools.product("u-", "c-", "n-", "s-")]


def compare(case: str, dtype: torch.dtype) -> float:
    """Largest difference of kernel and plain form, relative to the largest number; runs where the interpreter is on."""
    up, last, with_noise, scale = (flag != "-" for flag in case)
    generator = load_generator(GOLDEN / "sg2ada_uncond32_resnet.pkl", device="cpu")
    layers = generator.synthesis_network.layers()
    layer = next(layer for layer in layers[1:] if layer.up == up)
    random = torch.Generator().manual_seed(0)
    w = torch.randn(2, generator.w_dim, generator=random)
    before, after = layer.modulation(w)
    side = layer.noise_const.shape[0] // (2 if up else 1)
    x = torch.randn(2, before.shape[1], side, side, generator=random).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    noise = torch.randn(layer.noise_const.shape, generator=random) if with_noise else None
    following = torch.rand(2, after.shape[1], generator=random) if scale else None
    with torch.no_grad():
        expected, got = (layer(x, after, noise, following, fused) for fused in (False, True))
    assert (got[1] is None) == (expected[1] is None) == (not scale)
    assert got[0].dtype == dtype and got[0].is_contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )
    pairs = [(a.float(), b.float()) for a, b in zip(got, expected, strict=True) if a is not None]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


@pytest.fixture(scope="module")
def interpreted() -> dict[str, float]:
    pytest.importorskip("triton")
    here = Path(__file__).resolve()
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([str(here.parents[1]), str(here.parent)]),
    }
    finished = subprocess.run(
        [sys.executable, str(here)], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    result: dict[str, float] = json.loads(finished.stdout)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_the_epilogue_is_the_plain_form(interpreted: dict[str, float], case: str, dtype: str) -> None:
    assert interpreted[f"{case} {dtype}"] <= (1e-5 if dtype == "float32" else 4e-3)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("filtered", [False, True])
def test_the_epilogue_fits_every_gpu(filtered: bool, capability: int, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    from dsgan_datasets.generators import fused_epilogue

    given: dict[str, Any] = fused_epilogue.constants(512, filtered=filtered, noise=True, clamp=True, scale=True)
    compiled = compile_kernel(fused_epilogue.epilogue_kernel, {**given, "num_stages": 3}, capability, torch.float16)
    used = resources(compiled, tmp_path / "kernel.cubin")
    assert used["STACK"] == 0 and used["LOCAL"] == 0 and used["REG"] <= 128


if __name__ == "__main__":
    assert INTERPRETING
    torch.set_num_threads(1)
    print(json.dumps({f"{case} {name}": compare(case, dtype) for case in CASES for name, dtype in DTYPES.items()}))
