"""Who gets which index, and how a stream is continued."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import assert_partition, assert_same_samples, rows_by_index
from sources import NumberSource, Worker, as_worker
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from dsgan_datasets import DSGANDataset, DSGANIterableDataset, LabeledGenerator, Sample, SampleBatch
from dsgan_datasets.sources.read_ahead import read_ahead
from dsgan_datasets.transforms import RandomHorizontalFlip


def indices(dataset: Any) -> list[int]:
    return [int(sample.index) for sample in dataset]


@pytest.fixture(scope="module")
def reference(filtered: LabeledGenerator) -> dict[int, Any]:
    return rows_by_index(filtered.generate(range(40), seed=5))


@pytest.mark.parametrize("batch_size", [1, 3, 8, 20])
def test_samples_do_not_depend_on_the_batch_size(
    filtered: LabeledGenerator, reference: dict[int, Any], batch_size: int
) -> None:
    dataset = DSGANIterableDataset(filtered, seed=5, length=17, batch_size=batch_size)
    assert_same_samples(dataset, [reference[i] for i in range(17)])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_partition_the_epoch(filtered: LabeledGenerator, reference: dict[int, Any], workers: int) -> None:
    dataset = DSGANIterableDataset(filtered, seed=5, start=3, length=11, batch_size=4)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    samples = sorted(loader, key=lambda s: int(s.index))
    assert_same_samples(samples, [reference[i] for i in range(3, 14)])


@pytest.mark.slow
def test_spawned_workers(filtered: LabeledGenerator, reference: dict[int, Any]) -> None:
    dataset = DSGANIterableDataset(filtered, seed=5, length=6, batch_size=4)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    samples = sorted(loader, key=lambda s: int(s.index))
    assert_same_samples(samples, [reference[i] for i in range(6)])


@settings(max_examples=60, deadline=None)
@given(
    start=st.integers(0, 2**40),
    length=st.integers(1, 50),
    world=st.integers(1, 5),
    workers=st.integers(1, 4),
    epoch=st.integers(0, 3),
    uneven=st.sampled_from(["keep", "drop", "pad"]),
)
def test_ranks_and_workers_partition_every_epoch(
    start: int, length: int, world: int, workers: int, epoch: int, uneven: Any
) -> None:
    """Without a global batch: sample i goes to consumer i mod (world · workers), rank fastest."""
    parts = []
    for rank in range(world):
        dataset = DSGANIterableDataset(
            NumberSource(), start=start, length=length, rank=rank, world_size=world, uneven=uneven, batch_size=50
        )
        dataset.set_epoch(epoch)
        for worker in range(workers):
            with as_worker(Worker(worker, workers)):
                parts.append(indices(dataset))
    first = start + epoch * length
    whole = range(first, first + length)
    if uneven == "keep":
        assert parts == [list(whole[w * world + r :: world * workers]) for r in range(world) for w in range(workers)]
    else:
        by_rank = [sum(len(part) for part in parts[rank * workers : (rank + 1) * workers]) for rank in range(world)]
        assert len(set(by_rank)) == 1
        seen = [i for part in parts for i in part]
        if uneven == "drop":
            assert_partition(parts, whole[: length - length % world])
        else:
            assert set(seen) == set(whole) and len(seen) - length < world


def test_a_ranks_share_does_not_depend_on_its_workers(filtered: LabeledGenerator) -> None:
    dataset = DSGANIterableDataset(filtered, length=20, rank=1, world_size=2, batch_size=4)
    for epoch, workers in enumerate((0, 2)):
        seen = sorted(indices(DataLoader(dataset, batch_size=None, num_workers=workers)))
        assert seen == list(range(20 * epoch + 1, 20 * epoch + 20, 2)) and len(dataset) == len(seen)


def test_stock_loader_and_collate(filtered: LabeledGenerator) -> None:
    batches = list(DataLoader(DSGANIterableDataset(filtered, length=10), batch_size=4))
    assert [type(b) for b in batches] == [SampleBatch] * 3
    assert [b.index.tolist() for b in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert batches[0].image.shape == (4, 3, 16, 16)


def test_batches_are_those_samples(filtered: LabeledGenerator, reference: dict[int, Any]) -> None:
    batches = list(DSGANIterableDataset(filtered, seed=5, length=10, batch_size=4).batches())
    assert [b.num_samples for b in batches] == [4, 4, 2]
    assert_same_samples([s for b in batches for s in b.rows()], [reference[i] for i in range(10)])


def test_endless_stream(filtered: LabeledGenerator, reference: dict[int, Any]) -> None:
    dataset = DSGANIterableDataset(filtered, seed=5)
    assert_same_samples(itertools.islice(dataset, 20), [reference[i] for i in range(20)])
    with pytest.raises(TypeError, match="no end"):
        len(dataset)


def test_epochs(filtered: LabeledGenerator) -> None:
    dataset = DSGANIterableDataset(filtered, start=2, length=5)
    dataset.set_epoch(2)
    assert indices(dataset) == [12, 13, 14, 15, 16]
    repeated = DSGANIterableDataset(filtered, start=2, length=5, same_epoch=True)
    repeated.set_epoch(2)
    assert indices(repeated) == [2, 3, 4, 5, 6]


def test_set_epoch_reaches_persistent_workers(filtered: LabeledGenerator) -> None:
    dataset = DSGANIterableDataset(filtered, length=4)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)
    assert indices(loader) == [0, 1, 2, 3]
    dataset.set_epoch(1)
    assert indices(loader) == [4, 5, 6, 7]


def test_two_iterations_of_one_dataset_do_not_disturb_each_other(filtered: LabeledGenerator) -> None:
    dataset = DSGANIterableDataset(filtered, length=6)
    assert [(int(a.index), int(b.index)) for a, b in zip(dataset, dataset, strict=True)] == [(i, i) for i in range(6)]


def test_leaving_early_stops_the_thread(filtered: LabeledGenerator) -> None:
    import threading

    iterator = iter(DSGANIterableDataset(filtered))
    next(iterator)
    assert any("dsgan-generate" in t.name for t in threading.enumerate())
    iterator.close()  # type: ignore[attr-defined]
    assert not any("dsgan-generate" in t.name for t in threading.enumerate())


@pytest.mark.parametrize("ahead", [1, 3])
def test_the_queue_is_bounded(filtered: LabeledGenerator, monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    """While a batch is with the consumer, `ahead` more are made, and no further one."""
    made = []
    stack = SampleBatch.stack
    monkeypatch.setattr(SampleBatch, "stack", lambda rows: made.append(len(rows)) or stack(rows))
    batches = DSGANIterableDataset(filtered, batch_size=4, prefetch=ahead).batches()
    for taken in (1, 2):
        next(batches)
        deadline = time.monotonic() + 10
        while len(made) < taken + ahead and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)  # a further one would be under way
        assert len(made) == taken + ahead
    batches.close()


@pytest.mark.slow
def test_duty_cycle() -> None:
    """A piece of work is followed by a rest in proportion."""

    def slow() -> Iterator[Sample]:
        for sample in NumberSource().stream(range(4)):
            time.sleep(0.1)
            yield sample

    times = {}
    for duty_cycle in (1.0, 0.25):
        start = time.monotonic()
        batches = read_ahead(slow(), 1, device=torch.device("cpu"), duty_cycle=duty_cycle)
        assert [int(batch.index) for batch in batches] == [0, 1, 2, 3]
        times[duty_cycle] = time.monotonic() - start
    assert times[0.25] >= 1.6  # four times 0.1 s of work and 0.3 s of rest after each
    assert times[1.0] < times[0.25] / 2


def test_a_resting_stream_ends_at_once(filtered: LabeledGenerator, reference: dict[int, Any]) -> None:
    dataset = DSGANIterableDataset(filtered, seed=5, batch_size=4, duty_cycle=1e-6)
    batches = dataset.batches()
    first = next(batches)
    assert_same_samples(first.rows(), [reference[i] for i in range(4)])
    start = time.monotonic()
    batches.close()
    assert time.monotonic() - start < 5


def test_a_forked_child_with_an_open_stream_is_told(filtered: LabeledGenerator) -> None:
    import os

    iterator = iter(DSGANIterableDataset(filtered, batch_size=1))
    next(iterator)
    child = os.fork()
    if not child:
        try:
            next(iterator)
        except RuntimeError as error:
            os._exit(7 if "forked" in str(error) else 1)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert int(next(iterator).index) == 1


def test_errors_of_the_thread_reach_the_consumer() -> None:
    class Broken(NumberSource):
        def stream(self, indices: Any, **options: Any) -> Any:
            raise RuntimeError("out of memory")
            yield

    with pytest.raises(RuntimeError, match="out of memory"):
        next(iter(DSGANIterableDataset(Broken())))


# --- resume ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("consumed", [0, 1, 3, 5])
def test_stateful_loader_resumes_mid_epoch(
    filtered: LabeledGenerator, reference: dict[int, Any], workers: int, consumed: int
) -> None:
    def loader() -> StatefulDataLoader:
        dataset = DSGANIterableDataset(filtered, seed=5, length=20, batch_size=4)
        return StatefulDataLoader(dataset, batch_size=3, num_workers=workers)

    one = loader()
    whole, following = ([batch.index.tolist() for batch in one] for _ in range(2))
    first = loader()
    iterator = iter(first)
    seen = [next(iterator).index.tolist() for _ in range(consumed)]
    state = pickle.loads(pickle.dumps(first.state_dict()))
    del iterator
    second = loader()
    second.load_state_dict(state)
    rest = [batch.index.tolist() for batch in second]
    assert seen + rest == whole
    assert [batch.index.tolist() for batch in second] == following  # the next epoch starts at its beginning


@pytest.mark.parametrize("consumed", [0, 1, 4, 6, 19])
def test_dataset_resumes(filtered: LabeledGenerator, reference: dict[int, Any], consumed: int) -> None:
    def fresh() -> DSGANIterableDataset:
        return DSGANIterableDataset(filtered, seed=5, length=20, batch_size=4)

    first = fresh()
    list(itertools.islice(first, consumed))
    second = fresh()
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert_same_samples(second, [reference[i] for i in range(consumed, 20)])
    assert len(indices(second)) == 20


def test_state_carries_the_epoch(filtered: LabeledGenerator) -> None:
    first = DSGANIterableDataset(filtered, length=6)
    first.set_epoch(3)
    list(itertools.islice(first, 2))
    second = DSGANIterableDataset(filtered, length=6)
    second.load_state_dict(first.state_dict())
    assert indices(second) == [20, 21, 22, 23]


def test_state_between_epochs_and_with_an_early_set_epoch(filtered: LabeledGenerator) -> None:
    def resumed(state: dict[str, Any]) -> list[int]:
        other = DSGANIterableDataset(filtered, length=4)
        other.load_state_dict(state)
        return indices(other)

    dataset = DSGANIterableDataset(filtered, length=4)
    for _ in dataset:  # an epoch that is left early can still be continued, until the next one is named
        break
    assert resumed(dataset.state_dict()) == [1, 2, 3]
    dataset.set_epoch(1)
    assert resumed(dataset.state_dict()) == [4, 5, 6, 7]
    dataset.set_epoch(0)
    assert indices(dataset) == [0, 1, 2, 3]
    dataset.set_epoch(1)
    assert resumed(dataset.state_dict()) == [4, 5, 6, 7]
    iterator = iter(dataset)
    next(iterator)
    dataset.set_epoch(2)  # takes effect at the next start: the running epoch is still 1
    assert resumed(dataset.state_dict()) == [5, 6, 7]
    assert [int(s.index) for s in iterator] == [5, 6, 7]


@pytest.mark.parametrize(
    "change",
    [
        {"batches": -2},
        {"batches": "x"},
        {"batches": None},
        {"within": -1},
        {"epoch": -1},
        {"epoch": 10**30},
        {"epoch": 1.5},
    ],
)
def test_damaged_state_is_refused(filtered: LabeledGenerator, change: dict[str, Any]) -> None:
    dataset = DSGANIterableDataset(filtered, length=4)
    with pytest.raises(ValueError, match="in the saved state must be an integer"):
        dataset.load_state_dict({**dataset.state_dict(), **change})
    with pytest.raises(ValueError, match="expected the dict of state_dict"):
        dataset.load_state_dict([])  # type: ignore[arg-type]
    assert indices(dataset) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("same_epoch", {"same_epoch": True}),
        ("seed", {"seed": 6}),
        ("start", {"start": 1}),
        ("length", {"length": 21}),
        ("world_size", {"rank": 0, "world_size": 2}),
        ("global_batch", {"global_batch": 4}),
        ("uneven", {"uneven": "drop"}),
    ],
)
def test_foreign_state_is_refused_by_field(filtered: LabeledGenerator, field: str, change: dict[str, Any]) -> None:
    state = DSGANIterableDataset(filtered, seed=5, length=20).state_dict()
    with pytest.raises(ValueError, match=f"cannot resume: {field} is"):
        DSGANIterableDataset(filtered, **{"seed": 5, "length": 20, **change}).load_state_dict(state)


def test_state_of_another_checkpoint_is_refused(filtered: LabeledGenerator, unfiltered: LabeledGenerator) -> None:
    state = DSGANIterableDataset(filtered, length=20).state_dict()
    with pytest.raises(ValueError, match="fingerprint"):
        DSGANIterableDataset(unfiltered, length=20).load_state_dict(state)


def test_a_loaded_state_is_used_once_by_all_workers() -> None:
    """And the epoch after it begins at its beginning, whether workers stay or are made anew."""
    for options in ({"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}, {"num_workers": 0}):
        dataset = DSGANIterableDataset(NumberSource(), length=12, global_batch=2)
        dataset.load_state_dict(dataset.state_dict(step=3))
        loader = DataLoader(dataset, batch_size=2, **options)
        read = [[i for batch in loader for i in batch.index.tolist()] for _ in range(2)]
        assert read == [list(range(6, 12)), list(range(12, 24))]


def test_a_state_of_one_consumer_is_shared_by_the_workers_after_it() -> None:
    dataset = DSGANIterableDataset(NumberSource(), length=24)
    seen = [int(sample.index) for sample in itertools.islice(dataset, 8)]
    again = DSGANIterableDataset(NumberSource(), length=24)
    again.load_state_dict(dataset.state_dict())
    rest = [i for batch in DataLoader(again, batch_size=2, num_workers=2) for i in batch.index.tolist()]
    assert sorted(seen + rest) == list(range(24))


def test_a_look_at_one_sample_does_not_spoil_the_state() -> None:
    dataset = DSGANIterableDataset(NumberSource(), length=40)
    rows = iter(dataset)
    for _ in range(10):
        next(rows)
    next(iter(dataset))
    next(rows)
    assert dataset.state_dict()["batches"] == 11


def test_a_copied_dataset_reaches_its_workers() -> None:
    dataset = copy.deepcopy(DSGANIterableDataset(NumberSource(), length=4))
    loader = DataLoader(dataset, batch_size=4, num_workers=1, persistent_workers=True)
    assert [b.index.tolist() for b in loader] == [[0, 1, 2, 3]]
    dataset.set_epoch(1)
    assert [b.index.tolist() for b in loader] == [[4, 5, 6, 7]]


def test_the_state_of_a_worker_is_for_that_worker() -> None:
    dataset = DSGANIterableDataset(NumberSource(), length=24, global_batch=4)
    with as_worker(Worker(1, 2)):
        next(iter(dataset))
        state = dataset.state_dict()
        assert (state["consumer"], state["consumers"], state["consumed"]) == (1, 2, 1)
    with pytest.raises(ValueError, match="state of a DataLoader worker; load it through the StatefulDataLoader"):
        dataset.load_state_dict(state)
    with as_worker(Worker(0, 3)), pytest.raises(ValueError, match="consumers is 3 here, but 2 in the saved state"):
        dataset.load_state_dict(state)


# --- map style ------------------------------------------------------------------------------------------------------


def test_map_style(filtered: LabeledGenerator, reference: dict[int, Any]) -> None:
    dataset = DSGANDataset(filtered, 12, seed=5)
    assert len(dataset) == 12
    assert_same_samples([dataset[3], dataset[-1]], [reference[3], reference[11]])
    assert_same_samples(dataset.__getitems__([7, -12]), [reference[7], reference[0]])
    for beyond in (12, -13):
        with pytest.raises(IndexError, match="12 samples"):
            dataset[beyond]
    assert [int(s.index) for s in dataset] == list(range(12))


@pytest.mark.parametrize("workers", [0, 2])
def test_map_style_in_a_shuffling_loader(filtered: LabeledGenerator, reference: dict[int, Any], workers: int) -> None:
    loader = DataLoader(DSGANDataset(filtered, 10, seed=5), batch_size=4, shuffle=True, num_workers=workers)
    seen = rows_by_index(SampleBatch.stack([s for batch in loader for s in batch.rows()]))
    assert_same_samples([seen[i] for i in range(10)], [reference[i] for i in range(10)])


def test_a_batch_is_generated_at_once(filtered: LabeledGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    stream = LabeledGenerator.stream
    monkeypatch.setattr(
        LabeledGenerator, "stream", lambda self, i, **k: (calls.append(len(i)), stream(self, i, **k))[1]
    )
    list(DataLoader(DSGANDataset(filtered, 12), batch_size=6))
    assert calls == [6, 6]


# --- transforms, devices, arguments ---------------------------------------------------------------------------------


def test_crop_keeps_image_and_mask_aligned(unfiltered: LabeledGenerator) -> None:
    """Each pixel of the image is painted with its class, so that image and mask can be compared after the transform."""

    class Painted(torch.nn.Module):
        def forward(self, sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            mask = sample["mask"].as_subclass(torch.Tensor)
            return {**sample, "image": v2.functional.to_image(mask.expand(3, -1, -1).byte())}

    augment = v2.Compose([Painted(), v2.RandomHorizontalFlip(0.5), v2.RandomCrop(9), v2.RandomRotation(90)])
    positions = set()
    for dataset in (
        DSGANIterableDataset(unfiltered, length=12, transforms=augment),
        DSGANDataset(unfiltered, 12, transforms=augment),
    ):
        for sample, plain in zip(dataset, unfiltered.generate(range(12)).rows(), strict=True):
            assert sample.image.shape == (3, 9, 9)
            assert torch.equal(sample.image[0].long(), sample.mask.long())
            positions.add(torch.equal(sample.mask, plain.mask[:9, :9]))
    assert False in positions  # the transforms did move something


def test_transforms_do_not_apply_to_batches(unfiltered: LabeledGenerator) -> None:
    with pytest.raises(ValueError, match="transforms"):
        next(DSGANIterableDataset(unfiltered, transforms=v2.Identity()).batches())


@pytest.mark.parametrize("wrong", [lambda *_: None, lambda sample: sample["image"], lambda _: {"image": "a"}])
def test_transforms_that_return_something_else(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"must take a dict and return one with the same keys \(image, mask\)"):
        next(iter(DSGANIterableDataset(NumberSource(), transforms=wrong)))
    with pytest.raises(ValueError, match="transforms must be callable"):
        DSGANIterableDataset(NumberSource(), transforms=7)  # type: ignore[arg-type]


def test_transforms_of_image_and_mask_still_work(unfiltered: LabeledGenerator) -> None:
    """As versions up to 0.2 had them; also inside of others."""

    class Old(torch.nn.Module):
        def forward(self, image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return image.flip(-1), mask.flip(-1)

    plain = unfiltered.generate([0])
    for old in (lambda image, mask: (image.flip(-1), mask.flip(-1)), Old(), v2.Compose([Old(), v2.Identity()])):
        for kind in (DSGANIterableDataset, DSGANDataset):
            with pytest.warns(DeprecationWarning, match=r"transforms\(image, mask\) is deprecated"):
                dataset = kind(unfiltered, length=1, transforms=old)
            sample = next(iter(dataset))
            assert torch.equal(sample.mask, plain.mask[0].flip(-1)) and torch.equal(
                sample.image, plain.image[0].flip(-1)
            )
    with pytest.warns(DeprecationWarning), pytest.raises(ValueError, match="must return two tensors"):
        next(iter(DSGANDataset(unfiltered, 1, transforms=lambda image, mask: image)))


def test_any_label_goes_through_the_transforms() -> None:
    """The field of each target, wrapped by it; and the uncertainty beside the mask."""

    class Depth:
        kind, field = "depth", "depth"

        def wrap(self, value: torch.Tensor, size: tuple[int, int]) -> dict[str, torch.Tensor]:
            return {"depth": tv_tensors.Mask(value)}

        def unwrap(self, entries: Any, size: tuple[int, int]) -> torch.Tensor:
            return entries["depth"]

        def mirror(self, value: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
            return -value.flip(-1)

    class Deep(NumberSource):
        targets = (Depth(),)  # type: ignore[assignment]

        def stream(self, indices: Any, **options: Any) -> Any:
            for index in indices:
                row = torch.arange(4.0)[None]
                yield Sample(
                    {
                        "image": row.byte().expand(3, 1, 4),
                        "depth": row,
                        "uncertainty": row,
                        "index": torch.tensor(index),
                    }
                )

    flip = RandomHorizontalFlip(Deep.targets, p=1.0)  # type: ignore[arg-type]
    sample = DSGANDataset(Deep(), 1, transforms=v2.Compose([flip]))[0]
    assert sample.image[0].tolist() == [[3, 2, 1, 0]] == sample.uncertainty.tolist()
    assert sample["depth"].tolist() == [[-3, -2, -1, 0]]


@pytest.mark.parametrize("kind", [DSGANIterableDataset, DSGANDataset])
def test_every_dataset_gives_extras(unfiltered: LabeledGenerator, kind: Any) -> None:
    expected = unfiltered.generate([0], extras=("uncertainty", "latent"))
    sample = next(iter(kind(unfiltered, length=2, extras=("uncertainty", "latent"))))
    assert torch.equal(sample.uncertainty, expected.uncertainty[0]) and torch.equal(sample.latent, expected.latent[0])
    assert "uncertainty" not in next(iter(kind(unfiltered, length=2)))
    with pytest.raises(ValueError, match=r"give \('latent',\)"):
        kind(unfiltered, length=2, extras="latent")


def test_a_source_with_an_end() -> None:
    source = NumberSource(num_samples=6)
    assert len(DSGANDataset(source)) == 6 == len(DSGANIterableDataset(source))
    stream = DSGANIterableDataset(source, start=2)
    stream.set_epoch(3)
    assert indices(stream) == [2, 3, 4, 5]
    for kind in (DSGANDataset, DSGANIterableDataset):
        with pytest.raises(ValueError, match="length must be an integer in 1 … 6"):
            kind(source, length=7)
    with pytest.raises(ValueError, match="has no end: give the dataset a length"):
        DSGANDataset(NumberSource())


def test_old_names() -> None:
    old = {"labeled": NumberSource(), "repeat": True, "ahead": 3, "share": 0.5}
    with pytest.warns(DeprecationWarning) as warned:
        dataset = DSGANIterableDataset(length=4, **old)
    assert [str(w.message).split(" is ")[0] for w in warned] == [f"the argument {name}" for name in old]
    assert (dataset.same_epoch, dataset.prefetch, dataset.duty_cycle) == (True, 3, 0.5)
    assert all(w.filename == __file__ for w in warned)
    with pytest.warns(DeprecationWarning, match="use dataset.source"):
        assert dataset.labeled is dataset.source
    with pytest.raises(TypeError, match="given twice"):
        DSGANIterableDataset(NumberSource(), prefetch=1, ahead=1)


@pytest.mark.parametrize("kind", [DSGANIterableDataset, DSGANDataset])
def test_a_name_is_no_generator(kind: Any) -> None:
    with pytest.raises(ValueError, match="got 'demo-faces': use LabeledGenerator.from_pretrained"):
        kind("demo-faces", length=4)


class _OnGPU(LabeledGenerator):
    """Says that it is on a GPU; there may be none here."""

    device = torch.device("cuda", 0)  # type: ignore[assignment]


@pytest.mark.parametrize("kind", [DSGANIterableDataset, DSGANDataset])
def test_a_worker_with_a_cuda_checkpoint_is_told_what_to_set(
    unfiltered: LabeledGenerator, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # PyTorch waits 5 s for a worker whose dataset raised, when the loader is collected.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    labeled = _OnGPU.__new__(_OnGPU)
    labeled.__dict__.update(unfiltered.__dict__)
    dataset = kind(labeled, length=4)
    loader = iter(DataLoader(dataset, num_workers=1))
    with pytest.raises(RuntimeError, match="num_workers=0"):
        next(loader)
    del loader
    gc.collect()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"uneven": "wrap"}, '"drop", "pad" or "keep"'),
        ({"length": 0}, "length"),
        ({"length": 2.5}, "length must be an integer in 1 … 9223372036854775808, not 2.5"),
        ({"start": "1"}, "start must be an integer"),
        ({"batch_size": 2.0}, "batch_size must be an integer"),
        ({"rank": 0.5, "world_size": 2}, "rank must be an integer in 0 … 1"),
        ({"start": -1}, "start"),
        ({"start": 2**63 - 5, "length": 9}, "length must be an integer in 1 … 5"),
        ({"batch_size": 0}, "batch_size"),
        ({"prefetch": 0}, "prefetch must be an integer"),
        ({"duty_cycle": 0}, "duty_cycle must be a number above 0 and up to 1, not 0"),
        ({"duty_cycle": True}, "duty_cycle"),
        ({"rank": 0}, "both rank and world_size"),
        ({"rank": 2, "world_size": 2}, "rank must be"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_bad_arguments_say_what_is_allowed(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DSGANIterableDataset(NumberSource(), **arguments)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_with_another_batch_is_noticed(
    workers: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its steps are not those of the stream: a training that continued had other samples."""
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: print(message, file=sys.stderr, flush=True))

    def warned(batch_size: int | None, **changes: Any) -> str:
        stream = DSGANIterableDataset(NumberSource(), length=16, **{"global_batch": 8, **changes})
        context = "fork" if workers else None  # a server of processes writes to where an earlier test captured
        list(DataLoader(stream, batch_size=batch_size, num_workers=workers, multiprocessing_context=context))
        return capfd.readouterr().err

    found = warned(4)
    assert "has batch_size=4, but of global_batch=8 each of 1 rank(s) takes 8: a saved step would" in found
    assert "Set batch_size=8 or global_batch=4; or pass loader_batch_size=4, if a step takes several batches" in found
    assert "Set batch_size=4 or global_batch=16; or" in warned(8, rank=1, world_size=2)
    fitting = [warned(8), warned(None), warned(4, rank=0, world_size=2), warned(4, loader_batch_size=4)]
    assert not any("batch_size" in found for found in [*fitting, warned(4, global_batch=None)])
