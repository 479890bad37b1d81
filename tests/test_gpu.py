"""What only a GPU can show; see benchmarks/GPU.md."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import GOLDEN
from golden_data import GENERATORS, generator_file
from properties import assert_same_samples, rows_by_index
from torch.utils.data import DataLoader

from dsgan_datasets import DSGANIterableDataset, LabeledGenerator, load_generator

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module", params=["float32", "float16"])
def on_gpu(request: pytest.FixtureRequest) -> LabeledGenerator:
    return LabeledGenerator.from_pretrained("demo-faces", device="cuda", dtype=request.param, threshold=0.08)


def test_bits_do_not_depend_on_company(on_gpu: LabeledGenerator) -> None:
    together = rows_by_index(on_gpu.generate(range(30)))
    for some in ([3], [29, 0, 7], list(range(11, 24))):
        assert_same_samples(on_gpu.generate(some).rows(), [together[i] for i in some])


def test_samples_stay_on_the_device_and_arrive_whole(on_gpu: LabeledGenerator) -> None:
    """The consumer works on its own stream right away: without the hand-over it would see unfinished images."""
    expected = rows_by_index(on_gpu.generate(range(64)))
    for sample in itertools.islice(DSGANIterableDataset(on_gpu), 64):
        assert sample.image.is_cuda and sample.mask.is_cuda and not sample.score.is_cuda
        doubled = sample.image.int() * 2
        assert torch.equal(doubled, expected[int(sample.index)].image.int() * 2)


def test_labels_agree_with_the_cpu() -> None:
    gpu = LabeledGenerator.from_pretrained("demo-faces", device="cuda").generate(range(32), attempts=0)
    cpu = LabeledGenerator.from_pretrained("demo-faces", device="cpu").generate(range(32), attempts=0)
    assert (gpu.image.cpu().int() - cpu.image.int()).abs().max() <= 1
    assert (gpu.mask.cpu() != cpu.mask).double().mean() < 0.001


def image_on(device: str, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Two images of a reference generator."""
    generator = load_generator(generator_file(GOLDEN, name), device=device)
    z = torch.randn(2, generator.z_dim, generator=torch.Generator().manual_seed(0))
    c = torch.eye(generator.c_dim)[:2].to(device) if generator.c_dim else None
    return generator.synthesis(generator.mapping(z.to(device), c), dtype=dtype)[0].cpu()


@pytest.fixture
def no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.usefixtures("no_tf32")
@pytest.mark.parametrize("name", GENERATORS)
def test_golden_images_without_tf32(name: str) -> None:
    expected, got = image_on("cpu", name), image_on("cuda", name)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", GENERATORS)
def test_half_precision_stays_close(name: str, dtype: torch.dtype) -> None:
    expected, got = image_on("cpu", name), image_on("cuda", name, dtype)
    deviation = float((got - expected).norm() / expected.norm())
    print(f"{name} {dtype}: {deviation:.2e}")  # shown by pytest -rP
    assert deviation < (0.02 if dtype == torch.float16 else 0.15)


def test_a_forked_worker_is_told_what_to_set(on_gpu: LabeledGenerator) -> None:
    with pytest.raises(RuntimeError, match="num_workers=0"):
        next(iter(DataLoader(DSGANIterableDataset(on_gpu), num_workers=1)))
