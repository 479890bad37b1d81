"""What only a GPU can show; see benchmarks/GPU.md."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import GOLDEN
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


def test_golden_images_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    for name in ("sg2ada_uncond64_skip", "sg2ada_uncond32_resnet", "sg3repo_sg2_32_skip"):
        z = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
        images = []
        for device in ("cpu", "cuda"):
            generator = load_generator(GOLDEN / f"{name}.pkl", device=device)
            image, _ = generator.synthesis(generator.mapping(z.to(device)))
            images.append(image.cpu())
        assert (images[1] - images[0]).abs().max() <= 1e-4 * images[0].abs().max()


def test_a_forked_worker_is_told_what_to_set(on_gpu: LabeledGenerator) -> None:
    with pytest.raises(RuntimeError, match="num_workers=0"):
        next(iter(DataLoader(DSGANIterableDataset(on_gpu), num_workers=1)))
