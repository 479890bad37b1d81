"""What only a GPU can show; see benchmarks/GPU.md."""

from __future__ import annotations

import copy
import itertools
import pickle
import time
import warnings
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from golden_data import ELSEWHERE, GENERATORS, generator_file
from properties import assert_same_samples, rows_by_index
from test_fused_tail import REAL, labeling_maps
from test_pixel_ensemble import random_ensemble, random_maps
from torch.utils.data import DataLoader

from dsgan_datasets import DSGANIterableDataset, LabeledGenerator, load_generator
from dsgan_datasets.interpreters import batched, projection
from dsgan_datasets.interpreters.base import Frame
from dsgan_datasets.interpreters.reduce import Votes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module", params=["float32", "float16", "bfloat16"])
def on_gpu(request: pytest.FixtureRequest) -> LabeledGenerator:
    return LabeledGenerator.from_pretrained("demo-faces", device="cuda", dtype=request.param, threshold=0.08)


def test_bits_do_not_depend_on_company(on_gpu: LabeledGenerator) -> None:
    together = rows_by_index(on_gpu.generate(range(30)))
    for some in ([3], [29, 0, 7], list(range(11, 24))):
        assert_same_samples(on_gpu.generate(some).rows(), [together[i] for i in some])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_bits_do_not_depend_on_the_place_in_a_batch(dtype: torch.dtype) -> None:
    ensemble, maps, frame = labeled_maps("car", dtype, 4)
    first = ensemble.predict(maps, frame).uncertainty
    rolled = ensemble.predict([f.roll(1, 0) for f in maps], frame).uncertainty
    assert torch.equal(rolled.roll(-1, 0), first)


def test_every_index_is_an_accepted_sample(on_gpu: LabeledGenerator) -> None:
    batch = on_gpu.generate(range(100))
    assert batch.index.tolist() == list(range(100)) and (batch.uncertainty_score <= 0.08).all()
    assert batch.attempt.max() > 0, "some draws were rejected, or this shows nothing"
    assert_same_samples(on_gpu.generate(range(100), attempts=batch.attempt).rows(), batch.rows())


def test_samples_stay_on_the_device_and_arrive_whole(on_gpu: LabeledGenerator) -> None:
    """The consumer works on its own stream right away: without the hand-over it would see unfinished images."""
    expected = rows_by_index(on_gpu.generate(range(64)))
    for sample in itertools.islice(DSGANIterableDataset(on_gpu), 64):
        assert sample.image.is_cuda and sample.mask.is_cuda and not sample.uncertainty_score.is_cuda
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
def switches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that trains as fast as it can."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", True)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_fp16_accumulation", True)


@pytest.mark.parametrize("name", ["demo-faces", *GENERATORS])
def test_switches_of_the_process_change_no_bit(name: str, request: pytest.FixtureRequest) -> None:
    def image() -> torch.Tensor:
        if name != "demo-faces":
            return image_on("cuda", name, torch.float16)
        faces = LabeledGenerator.from_pretrained("demo-faces", device="cuda", dtype="float16", reject_fraction=0)
        return faces.generate(range(16), extras=["uncertainty"]).uncertainty

    expected = image()
    request.getfixturevalue("switches")
    assert torch.equal(image(), expected)


@pytest.mark.parametrize("name", [name for name in GENERATORS if name not in ELSEWHERE])
def test_golden_images(name: str) -> None:
    expected, got = image_on("cpu", name), image_on("cuda", name)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in GENERATORS if name not in ELSEWHERE])
def test_half_precision_stays_close(name: str, dtype: torch.dtype) -> None:
    expected, got = image_on("cpu", name), image_on("cuda", name, dtype)
    deviation = float((got - expected).norm() / expected.norm())
    print(f"{name} {dtype}: {deviation:.2e}")  # shown by pytest -rP
    assert deviation < (0.02 if dtype == torch.float16 else 0.15)


def test_a_forked_worker_is_told_what_to_set(on_gpu: LabeledGenerator) -> None:
    with pytest.raises(RuntimeError, match="num_workers=0"):
        next(iter(DataLoader(DSGANIterableDataset(on_gpu), num_workers=1)))


# --- the fused kernel; with --durations=0 these also show how long it takes to compile ---


#: maps (C, h, w), frame, kept rows, members, hidden widths, classes
SHAPES: dict[str, tuple[Any, ...]] = {
    **{name: REAL[name] for name in ("car", "cat", "face")},
    "two classes, odd": (labeling_maps(64), (61, 83), (3, 50), 10, (128, 32), 2),
}


def labeled_maps(name: str, dtype: torch.dtype, batch: int) -> tuple[Any, ...]:
    shapes, size, rows, members, hidden, classes = SHAPES[name]
    ensemble = random_ensemble(sum(c for c, _, _ in shapes), members, hidden, classes).cuda()
    return ensemble, [f.cuda().to(dtype) for f in random_maps(shapes, batch)], Frame(size, rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", SHAPES)
def test_the_fused_kernel_is_the_plain_form(name: str, dtype: torch.dtype) -> None:
    from dsgan_datasets.interpreters.fused_tail import FusedTail

    ensemble, maps, frame = labeled_maps(name, dtype, 2)
    weights = ensemble.weights
    if dtype == torch.float32 and weights.hidden[0] > 128:
        pytest.skip("does not fit into the registers; the plain form is used")
    kernel = FusedTail(weights, [f.shape[1:] for f in maps], frame, dtype, Votes("majority"))
    mask, uncertainty = kernel.reduce(maps)
    again, uncertainty_again = kernel.reduce(maps)
    assert torch.equal(mask, again) and torch.equal(uncertainty, uncertainty_again), "sums are made in one order"
    expected, expected_uncertainty = projection.reduce(weights, maps, frame, Votes("majority"))
    deviation = float((uncertainty - expected_uncertainty).abs().max())
    changed = float((mask != expected).double().mean())
    print(f"{name} {dtype}: uncertainty {deviation:.1e}, labels {changed:.1e}")  # shown by pytest -rP
    assert deviation <= 20 * torch.finfo(dtype).eps
    assert changed <= (1e-3 if dtype == torch.float32 else 5e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_fused_kernel_is_chosen(dtype: torch.dtype, recwarn: pytest.WarningsRecorder) -> None:
    ensemble, maps, frame = labeled_maps("two classes, odd", dtype, 3)
    prepared = batched.prepare(ensemble.weights, maps, frame, Votes("majority"))
    assert prepared.fused, "a GPU with Triton labels by the fused kernel"
    assert not [w for w in recwarn if "fused kernel" in str(w.message)]
    found, (mask, uncertainty) = ensemble.predict(maps, frame), prepared.reduce(maps)
    assert torch.equal(found.labels["mask"], mask) and torch.equal(found.uncertainty, uncertainty)
    assert mask.dtype == torch.int64 and uncertainty.dtype == torch.float32


def test_changed_weights_and_copies_on_a_gpu() -> None:
    """What an ensemble prepared is dropped when its weights change, and is neither copied nor pickled."""
    ensemble, maps, frame = labeled_maps("two classes, odd", torch.float16, 2)
    before = ensemble.predict(maps, frame).uncertainty
    assert torch.equal(pickle.loads(pickle.dumps(ensemble)).predict(maps, frame).uncertainty, before)
    assert torch.equal(copy.deepcopy(ensemble).predict(maps, frame).uncertainty, before)
    assert torch.equal(ensemble.cpu().cuda().predict(maps, frame).uncertainty, before)
    ensemble.b3.mul_(3)
    after = ensemble.predict(maps, frame).uncertainty
    assert not torch.equal(after, before)
    assert torch.equal(type(ensemble)(ensemble.state_dict()).cuda().predict(maps, frame).uncertainty, after)


def test_labels_do_not_need_the_memory_of_their_activations() -> None:
    """512², 10 members: the first layer alone would take 2.7 GB an image, in half precision 1.3."""
    ensemble, maps, frame = labeled_maps("car", torch.float16, 2)
    ensemble.predict(maps, frame)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    ensemble.predict(maps, frame)
    projections = 2 * sum(h * w for _, h, w in SHAPES["car"][0][:-2:2]) * 1280 * 2
    assert torch.cuda.max_memory_allocated() - before <= 1.5 * projections


# --- one CUDA graph ---


@pytest.mark.parametrize("compile", [False, True])
def test_a_graph_gives_the_same_samples(on_gpu: LabeledGenerator, compile: bool) -> None:
    recorded = LabeledGenerator.from_pretrained("demo-faces", device="cuda", dtype=on_gpu.recipe.dtype, threshold=0.08)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        recorded.recipe = recorded.recipe.replace(compile=compile)
        recorded.capture_graph()
    expected, got = on_gpu.generate(range(20)), recorded.generate(range(20))
    if compile:  # its last bits differ
        assert (got.mask != expected.mask)[got.attempt == expected.attempt].double().mean() <= 0.005
    else:
        assert_same_samples(got.rows(), expected.rows())
    together = rows_by_index(got)
    assert_same_samples(recorded.generate([7, 3]).rows(), [together[7], together[3]])
    streamed = list(itertools.islice(DSGANIterableDataset(recorded), 20))
    assert_same_samples(streamed, got.rows())


def test_nothing_waits_inside_a_batch(on_gpu: LabeledGenerator) -> None:
    """From style vectors to scores the host only names operations; with sync_debug_mode waiting is an error."""
    generator = on_gpu.generator
    ws = torch.randn(on_gpu.recipe.compute_batch, generator.num_ws, generator.w_dim, device="cuda")
    with torch.no_grad():
        on_gpu.labeler.label(ws, on_gpu.recipe)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad():
            on_gpu.labeler.label(ws, on_gpu.recipe)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_share_of_the_gpu(on_gpu: LabeledGenerator) -> None:
    """Batches of a stream that may take a quarter of the time take about four times as long."""
    seconds = {}
    for share in (1.0, 0.25):
        batches = DSGANIterableDataset(on_gpu, duty_cycle=share).batches()
        for _ in range(8):
            next(batches)
        start = time.monotonic()
        for _ in range(30):
            next(batches)
        torch.cuda.synchronize()
        seconds[share] = time.monotonic() - start
        batches.close()
    assert 2.5 <= seconds[0.25] / seconds[1.0] <= 6
