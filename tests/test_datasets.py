"""Who gets which index, and how a stream is continued."""

from __future__ import annotations

import itertools
import pickle
import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import assert_partition, assert_same_samples, rows_by_index
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from torchvision.transforms import v2

from dsgan_datasets import DSGANDataset, DSGANIterableDataset, LabeledGenerator, SampleBatch
from dsgan_datasets.sources import datasets


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
    filtered: LabeledGenerator, start: int, length: int, world: int, workers: int, epoch: int, uneven: Any
) -> None:
    """Without generating anything: the indices that each of world × workers consumers would ask for."""
    parts = []
    for rank, worker in itertools.product(range(world), range(workers)):
        dataset = DSGANIterableDataset(filtered, start=start, length=length, rank=rank, world_size=world, uneven=uneven)
        dataset.set_epoch(epoch)
        dataset._consumer = lambda c=worker * world + rank: (c, world * workers)  # type: ignore[method-assign]
        parts.append(list(dataset._indices(0)))
    first = start + epoch * length
    whole = range(first, first + length)
    if uneven == "keep":
        assert_partition(parts, whole)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
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
    for workers in (0, 2):
        seen = sorted(indices(DataLoader(dataset, batch_size=None, num_workers=workers)))
        assert seen == list(range(1, 20, 2)) and len(dataset) == len(seen)


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
    repeated = DSGANIterableDataset(filtered, start=2, length=5, repeat=True)
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
    batches = DSGANIterableDataset(filtered, batch_size=4, ahead=ahead).batches()
    for taken in (1, 2):
        next(batches)
        deadline = time.monotonic() + 10
        while len(made) < taken + ahead and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)  # a further one would be under way
        assert len(made) == taken + ahead
    batches.close()


def test_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece of work is followed by a rest in proportion, shortened by what passed anyway, and not after the end."""
    clock, rests = [0.0], []

    def wait(_: object, seconds: float) -> bool:
        rests.append(seconds)
        clock[0] += seconds
        return False

    monkeypatch.setattr(datasets.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(datasets.threading.Event, "wait", wait)
    rest = datasets._Rest(0.25)
    for waited_for_consumer in (0.0, 1.0, 7.0, 0.0):
        clock[0] += waited_for_consumer
        with rest.before_work():
            clock[0] += 2.0  # the work
    assert rests == pytest.approx([5.0, 6.0])


def test_a_resting_stream_ends_at_once(filtered: LabeledGenerator, reference: dict[int, Any]) -> None:
    dataset = DSGANIterableDataset(filtered, seed=5, batch_size=4, share=1e-6)
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


def test_errors_of_the_thread_reach_the_consumer(filtered: LabeledGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of memory")
        yield

    monkeypatch.setattr(LabeledGenerator, "_stream", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        next(iter(DSGANIterableDataset(filtered)))


# --- resume ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("consumed", [0, 1, 3, 5])
def test_stateful_loader_resumes_mid_epoch(
    filtered: LabeledGenerator, reference: dict[int, Any], workers: int, consumed: int
) -> None:
    def loader() -> StatefulDataLoader:
        dataset = DSGANIterableDataset(filtered, seed=5, length=20, batch_size=4)
        return StatefulDataLoader(dataset, batch_size=3, num_workers=workers)

    whole = [batch.index.tolist() for batch in loader()]
    first = loader()
    iterator = iter(first)
    seen = [next(iterator).index.tolist() for _ in range(consumed)]
    state = pickle.loads(pickle.dumps(first.state_dict()))
    del iterator
    second = loader()
    second.load_state_dict(state)
    rest = [batch.index.tolist() for batch in second]
    assert seen + rest == whole
    assert [batch.index.tolist() for batch in second] == whole  # the next epoch starts at its beginning


@pytest.mark.parametrize("consumed", [0, 1, 4, 6, 20])
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
    [{"consumed": -2}, {"consumed": "x"}, {"consumed": None}, {"epoch": -1}, {"epoch": 10**30}, {"epoch": 1.5}],
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
        ("repeat", {"repeat": True}),
        ("seed", {"seed": 6}),
        ("start", {"start": 1}),
        ("length", {"length": 21}),
        ("consumers", {"rank": 0, "world_size": 2}),
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
    generate = LabeledGenerator.generate
    monkeypatch.setattr(
        LabeledGenerator, "generate", lambda self, i, **k: (calls.append(len(i)), generate(self, i, **k))[1]
    )
    list(DataLoader(DSGANDataset(filtered, 12), batch_size=6))
    assert calls == [6, 6]


# --- transforms, devices, arguments ---------------------------------------------------------------------------------


def test_crop_keeps_image_and_mask_aligned(unfiltered: LabeledGenerator) -> None:
    """Each pixel of the image is painted with its class, so that image and mask can be compared after the transform."""

    class Painted(torch.nn.Module):
        def forward(self, image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return v2.functional.to_image(mask.as_subclass(torch.Tensor).expand(3, -1, -1).byte()), mask

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


@pytest.mark.parametrize("wrong", [lambda *_: None, lambda image, mask: image, lambda *_: ("a", "b")])
def test_transforms_that_return_something_else(unfiltered: LabeledGenerator, wrong: Any) -> None:
    with pytest.raises(ValueError, match="must take \\(image, mask\\) and return two tensors"):
        next(iter(DSGANIterableDataset(unfiltered, transforms=wrong)))


@pytest.mark.parametrize("kind", [DSGANIterableDataset, DSGANDataset])
def test_a_name_is_no_generator(kind: Any) -> None:
    with pytest.raises(ValueError, match="got 'demo-faces': use LabeledGenerator.from_pretrained"):
        kind("demo-faces", length=4)


class _OnGPU(LabeledGenerator):
    """Says that it is on a GPU; there may be none here."""

    device = torch.device("cuda", 0)  # type: ignore[assignment]


@pytest.mark.parametrize("kind", [DSGANIterableDataset, DSGANDataset])
def test_a_worker_with_a_cuda_checkpoint_is_told_what_to_set(unfiltered: LabeledGenerator, kind: Any) -> None:
    labeled = _OnGPU.__new__(_OnGPU)
    labeled.__dict__.update(unfiltered.__dict__)
    dataset = kind(labeled, length=4)
    with pytest.raises(RuntimeError, match="num_workers=0"):
        next(iter(DataLoader(dataset, num_workers=1)))


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
        ({"ahead": 0}, "ahead must be an integer"),
        ({"share": 0}, "share must be a number above 0 and up to 1, not 0"),
        ({"share": True}, "share"),
        ({"rank": 0}, "both rank and world_size"),
        ({"rank": 2, "world_size": 2}, "rank must be"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_bad_arguments_say_what_is_allowed(filtered: LabeledGenerator, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DSGANIterableDataset(filtered, **arguments)
