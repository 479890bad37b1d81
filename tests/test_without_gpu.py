"""What a GPU would be asked to do, seen without one (see `fake_gpu`)."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import warnings
import weakref
from typing import Any

import pytest
import torch
from conftest import GOLDEN, SCHEMA, small_labeled
from fake_gpu import FakeCuda, Operations, fake_tensors, to_fake_gpu
from golden_data import ELSEWHERE, GENERATORS, generator_file
from properties import assert_same_samples
from sources import NumberSource
from test_pixel_ensemble import random_ensemble, random_maps
from torch import Tensor, nn

from dsgan_datasets import (
    DSGANIterableDataset,
    InterpretedLabeler,
    LabeledGenerator,
    Recipe,
    calibrate,
    load_generator,
    operations,
)
from dsgan_datasets.acceleration import OnDevice, capture_graph, keep_for_graph
from dsgan_datasets.device import check_precision, resolve_device
from dsgan_datasets.environment import environment
from dsgan_datasets.generators.synthesis import compiled_if_asked
from dsgan_datasets.interpreters import ClusterInterpreter, projection
from dsgan_datasets.interpreters.base import Frame
from dsgan_datasets.interpreters.reduce import Votes
from dsgan_datasets.sources.read_ahead import read_ahead

MAPS, FRAME = [(6, 4, 4), (5, 8, 8), (3, 16, 16), (2, 16, 16)], Frame((16, 16))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


@pytest.fixture
def old_cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch, capability=(7, 5))


def fake_labels(cuda: str = "cuda:0", batch: int = 2) -> tuple[Any, list[Tensor]]:
    """Ensemble and maps on a GPU that is not there."""
    ensemble = to_fake_gpu(random_ensemble(sum(c for c, _, _ in MAPS), 2, (16, 16), 3), cuda)
    return ensemble, [f.to(cuda) for f in random_maps(MAPS, batch)]


# --- graphs ---


def test_a_graph_keeps_alive_what_it_reads(cuda: FakeCuda) -> None:
    class Tables:
        pass

    owners = [Tables()]

    def function(x: Tensor) -> dict[str, Tensor]:
        keep_for_graph(owners[-1])
        return {"y": x * 2}

    with fake_tensors():
        captured = capture_graph(function, torch.zeros(2, device="cuda"))
        tables = weakref.ref(owners.pop())
        gc.collect()
        assert tables() is not None, "the graph reads these addresses"
        del captured
        gc.collect()
        assert tables() is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:labels are computed by plain PyTorch:RuntimeWarning")
def test_a_graph_keeps_the_tables_of_labels(old_cuda: FakeCuda) -> None:
    """Other tasks of the same ensemble must not replace them, nor may moving the ensemble."""
    with fake_tensors():
        ensemble, maps = fake_labels()

        def function(x: Tensor) -> dict[str, Tensor]:
            return dict(ensemble.predict(maps, FRAME).labels)

        captured = capture_graph(function, torch.zeros(2, device="cuda"))
        assert old_cuda.captures
        (form,) = (weakref.ref(o) for o in gc.get_objects() if isinstance(o, projection.PlainForm))
        for rows in range(1, 16):
            ensemble.predict(maps, Frame((16, 16), (0, rows)))
        to_fake_gpu(ensemble, "cpu")
        gc.collect()
        assert form() is not None
        del captured
        gc.collect()
        assert form() is None


def test_a_graph_is_not_replayed_once_weights_changed(cuda: FakeCuda) -> None:
    network = nn.Linear(2, 2).requires_grad_(False)
    calls: list[int] = []

    def function(x: Tensor) -> dict[str, Tensor]:
        calls.append(len(x))
        return {"y": x * 2}

    for change in (
        lambda: network.weight.add_(1),
        lambda: setattr(network.weight, "data", network.weight.data.clone()),
        network.double,
    ):
        with fake_tensors():
            captured = capture_graph(function, torch.zeros(2, device="cuda"), [network])
        calls.clear()
        with fake_tensors():
            captured(torch.ones(2, device="cuda"))
        assert cuda.replays and not calls
        cuda.replays = 0
        change()
        with fake_tensors():
            captured(torch.ones(2, device="cuda"))
        assert calls and not cuda.replays


def test_each_graph_has_a_stream_of_its_own_on_its_device(cuda: FakeCuda) -> None:
    """A library's workspace belongs to a stream: two graphs that run at once would share it."""
    with fake_tensors():
        for device in ("cuda:1", "cuda:0"):
            capture_graph(lambda x: {"y": x * 2}, torch.zeros(2, device=device))
    (first_device, first), (second_device, second) = cuda.captures
    assert first is not None and second is not None and first is not second
    assert (first_device, second_device) == (1, 0)


@pytest.mark.parametrize("bad", ["copies from the host", "waits"])
def test_what_cannot_be_captured_is_found_before(cuda: FakeCuda, bad: str) -> None:
    """A capture that fails leaves the allocator as if it were still going on."""

    def function(x: Tensor) -> dict[str, Tensor]:
        return {"y": x + (torch.arange(2.0).to(x.device) if bad == "copies from the host" else x.sum().item())}

    with fake_tensors(), pytest.warns(RuntimeWarning, match="computed plainly.*a CUDA graph"):
        assert capture_graph(function, torch.zeros(2, device="cuda")) is function
    assert not cuda.captures


@pytest.mark.filterwarnings("ignore:labels are computed by plain PyTorch:RuntimeWarning")
def test_the_plain_form_stays_on_the_device(old_cuda: FakeCuda) -> None:
    with fake_tensors():
        ensemble, maps = fake_labels()
        ensemble.predict(maps, FRAME)
        with OnDevice(torch.device("cuda")):
            found = ensemble.predict(maps, FRAME)
    assert found.labels["mask"].device.type == "cuda"


def test_the_slow_path_says_why(old_cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_tensors():
        ensemble, maps = fake_labels()
        with pytest.warns(RuntimeWarning, match=r"tens of times.*compute capability 7\.5 is too old"):
            ensemble.predict(maps, FRAME)


# --- any device ---


def test_kernels_are_launched_on_the_device_of_the_maps(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    fused_tail = pytest.importorskip("dsgan_datasets.interpreters.fused_tail")
    tiling = projection.Tiling.of([(4, 4), (8, 8)], FRAME, (4, 8))
    for name in ("tail_kernel", "project_kernel"):
        monkeypatch.setattr(fused_tail, name, cuda.kernel())
    monkeypatch.setattr(projection.Tiling, "of", lambda *_: tiling)
    with fake_tensors():
        ensemble, maps = fake_labels("cuda:1")
        kernel = fused_tail.FusedTail(
            ensemble.weights, [f.shape[1:] for f in maps], FRAME, torch.float32, Votes("majority")
        )
        assert kernel.reduce(maps)[0].device == torch.device("cuda:1")
    assert cuda.launches and set(cuda.launches) == {1} and cuda.current == 0


def test_a_device_that_there_is_not(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="device 'cuda:7' was.*cuda:0 … cuda:1"):
        resolve_device(torch.device("cuda:7"))


def test_ranks_that_share_a_gpu_by_mistake_are_warned(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.warns(RuntimeWarning, match=r"LOCAL_RANK is 1.*cuda:0.*set_device"):
        resolve_device()
    cuda.current = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_device() == torch.device("cuda:1")


def test_bfloat16_on_an_old_gpu(old_cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: old_cuda.current == 0)
    check_precision(torch.device("cuda:0"), torch.bfloat16)
    with pytest.raises(ValueError, match=r"bfloat16.*cuda:1 is older.*float16"):
        check_precision(torch.device("cuda:1"), torch.bfloat16)


def test_one_stream_a_generator(cuda: FakeCuda) -> None:
    """Libraries keep memory for every stream that they saw: an epoch must not bring a new one."""
    sources = [NumberSource(), NumberSource()]
    for source in (*sources, *sources):
        batches = list(read_ahead(source.stream(range(4)), 2, device=torch.device("cuda", 0), owner=source))
        assert len(batches) == 2
    assert len(cuda.streams) == 2


# --- switches of the process ---


def test_convolutions_name_their_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def noted(x: Tensor, kernel: Tensor, *settings: Any, **flags: Any) -> Tensor:
        asked.append((flags["benchmark"], flags["deterministic"], flags["allow_tf32"]))
        transposed = len(settings) == 5
        size = (x.shape[2] - 1) * 2 + 3 if transposed else x.shape[2]
        return x.new_zeros(len(x), kernel.shape[1 if transposed else 0], size, size)

    monkeypatch.setattr(torch, "cudnn_convolution", noted)
    monkeypatch.setattr(torch, "cudnn_convolution_transpose", noted)
    x, kernel = torch.zeros(1, 2, 4, 4), torch.zeros(2, 2, 3, 3)
    torch.ops.dsgan_datasets.convolution(x, kernel, 1, 1, 1)
    torch.ops.dsgan_datasets.transposed_convolution(x, kernel, 2, 0)
    assert asked == [(False, True, False)] * 2


#: Their algorithm or precision follows switches of the process, unless they compute in float64.
SWITCHED = ("convolution.", "mm.", "addmm.", "bmm.", "baddbmm.", "_convolution.", "cudnn_")


def switched(seen: list[tuple[str, tuple[torch.dtype, ...]]]) -> set[str]:
    names = {(name.removeprefix("aten."), types) for name, types in seen if name.startswith("aten.")}
    return {name for name, types in names if name.startswith(SWITCHED) and torch.float64 not in types}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", [name for name in GENERATORS if name not in ELSEWHERE])
def test_no_switch_decides_an_image(cuda: FakeCuda, name: str, dtype: torch.dtype) -> None:
    generator = load_generator(generator_file(GOLDEN, name), device="cpu")
    with fake_tensors():
        generator = to_fake_gpu(generator)
        z = torch.zeros(2, generator.z_dim, device="cuda")
        c = torch.zeros(2, generator.c_dim, device="cuda") if generator.c_dim else None
        with Operations() as operations_seen:
            image, _ = generator.synthesis(generator.mapping(z, c), dtype=dtype)
        assert image.is_cuda
    ours = [name for name, _ in operations_seen.seen if name.startswith("dsgan_datasets.")]
    assert ours and not switched(operations_seen.seen)


@pytest.mark.filterwarnings("ignore:labels are computed by plain PyTorch:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_switch_decides_a_label(old_cuda: FakeCuda, dtype: torch.dtype) -> None:
    clusters = ClusterInterpreter(
        torch.zeros(4, 5), torch.zeros(5), torch.ones(5), layout="convs", channels=[c for c, _, _ in MAPS], map=1
    )
    with fake_tensors():
        ensemble, maps = fake_labels()
        clusters = to_fake_gpu(clusters)
        with Operations() as operations_seen:
            ensemble.predict([f.to(dtype) for f in maps], FRAME)
            clusters.predict([f.to(dtype) for f in maps], FRAME)
    assert any("dsgan_datasets.convolution" in name for name, _ in operations_seen.seen)
    assert not switched(operations_seen.seen)


def test_products_are_those_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As 1×1 convolutions; cuDNN is replaced by PyTorch's own convolution, and the CPU taken for a GPU."""

    def convolution(
        x: Tensor, kernel: Tensor, padding: Any, stride: Any, dilation: Any, groups: int, **_: Any
    ) -> Tensor:
        return nn.functional.conv2d(x, kernel, None, stride, padding, dilation, groups)

    monkeypatch.setattr(torch, "cudnn_convolution", convolution)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    random = torch.Generator().manual_seed(0)
    rows, matrix = torch.randn(3, 4, 5, generator=random), torch.randn(5, 7, generator=random)
    torch.testing.assert_close(operations.product(rows, matrix), rows @ matrix)
    columns = torch.randn(2, 3, 7, 6, generator=random)
    torch.testing.assert_close(operations.product_of_columns(matrix, columns), matrix @ columns)


@pytest.mark.parametrize("threads", [1, 2])
def test_autocast_changes_no_sample(unfiltered: LabeledGenerator, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        expected = unfiltered.generate(range(2), extras=["uncertainty"])
        with torch.autocast("cpu", torch.bfloat16):
            got = unfiltered.generate(range(2), extras=["uncertainty"])
            streamed = list(itertools.islice(DSGANIterableDataset(unfiltered, extras=["uncertainty"]), 2))
            features = random_maps([(c, 4, 4) for c in unfiltered.generator.feature_channels], 1)
            assert unfiltered.interpreter.logits(features, (16, 16)).dtype == torch.float32
    finally:
        torch.set_num_threads(before)
    assert_same_samples(got.rows(), expected.rows())
    assert_same_samples(streamed, expected.rows())


def test_compiling_does_not_choose_by_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append(options) or function)
    compiled_if_asked(lambda: None, Recipe(compile=True))
    assert asked == [{"dynamic": False, "options": {"deterministic": True}}]


def test_switches_may_be_set_by_their_new_names(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """After that PyTorch refuses to tell allow_tf32, which the manifest of shards asked for."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert environment(torch.device("cuda:0"))["device"]["name"] == "fake"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


# --- where the caller has chosen a default ---


def test_another_default_device() -> None:
    reference = small_labeled(require=(1,)).generate(range(3))
    filtered = calibrate(small_labeled(), 20, reject_fraction=0.2)
    labeled, again = small_labeled(require=(1,)), small_labeled()
    with torch.device("meta"):
        got = labeled.generate(range(3)).rows()
        streamed = list(itertools.islice(DSGANIterableDataset(labeled), 3))
        recalibrated = calibrate(again, 20, reject_fraction=0.2)
        loaded = LabeledGenerator.from_pretrained("demo-faces", device="cpu").generate([0])
    assert_same_samples(got, reference.rows())
    assert_same_samples(streamed, reference.rows())
    assert recalibrated.recipe.threshold == filtered.recipe.threshold
    assert loaded.image.device.type == "cpu"


def test_loaded_in_inference_mode() -> None:
    expected = small_labeled().generate([0])
    with torch.inference_mode():
        labeled = small_labeled()
    assert_same_samples(labeled.generate([0]).rows(), expected.rows())
    with torch.inference_mode():  # where whole batches are labeled, as on a GPU
        ensemble = random_ensemble(sum(c for c, _, _ in MAPS)).to("meta")
    found = ensemble.predict([f.to("meta") for f in random_maps(MAPS, 2)], FRAME)
    assert found.labels["mask"].shape == (2, 16, 16)


def test_copies_after_capturing(cuda: FakeCuda) -> None:
    labeled = small_labeled()
    with fake_tensors():
        graph = capture_graph(lambda x: {"y": x}, torch.zeros(1, device="cuda"))
    object.__setattr__(labeled, "_graph", graph)
    expected = small_labeled().generate([1])
    for again in (copy.deepcopy(labeled), pickle.loads(pickle.dumps(labeled))):
        assert_same_samples(again.generate([1]).rows(), expected.rows())


def test_weights_are_made_ready_once(cuda: FakeCuda) -> None:
    """Casting them for each batch takes as long as a small layer; what is kept follows the weights."""
    generator = load_generator(GOLDEN / "sg2ada_fullsnapshot16.pkl", device="cpu")
    with fake_tensors():
        generator = to_fake_gpu(generator)
        z = torch.zeros(2, generator.z_dim, device="cuda")

        def casts_of_weights() -> int:
            with Operations() as operations_seen:
                generator.synthesis(generator.mapping(z), dtype=torch.float16)
            names = [name for name, _ in operations_seen.seen]
            return sum(name.startswith("aten._to_copy") for name in names)

        first, second = casts_of_weights(), casts_of_weights()
        layers = len(generator.synthesis_network.layers())
        assert second <= first - 2 * layers
        generator.synthesis_network.layers()[1].weight.add_(1)
        assert casts_of_weights() == second + 1
    copied = copy.deepcopy(load_generator("demo-faces", device="cpu"))
    assert pickle.loads(pickle.dumps(copied)).synthesis(torch.zeros(1, copied.num_ws, copied.w_dim))[0].isfinite().all()


# --- range and memory ---


@pytest.mark.parametrize("name", ["sg2ada_uncond64_skip", "sg3_4ch_t_32"])
def test_a_dead_channel_poisons_nothing(name: str) -> None:
    """The factor that normalizes it is 1e4 times its fan-in, beyond what float16 holds."""
    generator = load_generator(generator_file(GOLDEN, name), device="cpu")
    with torch.no_grad():
        for parameter in generator.synthesis_network.parameters():
            if parameter.dim() == 4 and parameter.shape[2] == 3:
                parameter[1] = 0
    generator.freeze()
    ws = generator.mapping(torch.randn(2, generator.z_dim, generator=torch.Generator().manual_seed(0)))
    image, features = generator.synthesis(ws, dtype=torch.float16)
    assert image.isfinite().all() and all(bool(f.isfinite().all()) for f in features)


class Crowded(InterpretedLabeler):
    """Of a GPU whose memory is enough for a few samples at a time."""

    fits = 3

    @property
    def device(self) -> torch.device:
        return torch.device("mps")  # batches are computed as on any GPU

    def label(self, ws: Tensor, recipe: Recipe) -> dict[str, Tensor]:
        if len(ws) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().label(ws, recipe)


@pytest.mark.parametrize(
    ("fits", "group", "message"),
    [
        (3, 1, r"not enough for compute_batch=8, but it is for 2: pass compute_batch=2"),
        (5, 3, r"not enough for compute_batch=8, but it is for 3"),
        (0, 1, r"nor for any smaller one.*float16"),
        (2, 3, r"nor for any smaller one"),
    ],
)
def test_out_of_memory_names_the_batch_that_fits(fits: int, group: int, message: str) -> None:
    plain = small_labeled()
    labeler = Crowded(plain.generator, plain.interpreter, [SCHEMA])
    labeler.fits = fits
    labeled = LabeledGenerator(labeler, Recipe(compute_batch=8, group_size=group, mixing_layer=2))
    with pytest.raises(torch.OutOfMemoryError, match=message):
        labeled.generate([0])
    if fits == 3 and group == 1:
        smaller = labeled.with_recipe(labeled.recipe.override(compute_batch=2))
        assert smaller.generate([0]).num_samples == 1
