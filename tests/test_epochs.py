"""New samples in each pass: without workers and with, left early, continued, and on several ranks."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import NumberSource
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from dsgan_datasets import DSGANDataset, DSGANIterableDataset, Mixture, ShardDataset, write_shards
from dsgan_datasets.sources.board import Board

Make = Callable[..., Any]
WORKERS: list[dict[str, Any]] = [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}]


def stream(length: int | None = 8, **options: Any) -> DSGANIterableDataset:
    return DSGANIterableDataset(NumberSource(), length=length, **options)  # type: ignore[arg-type]


def mixture(length: int | None = 8, **options: Any) -> Mixture:
    parts = [stream(5, start=100), DSGANDataset(NumberSource(), 3)]
    return Mixture(parts, [2, 1], length=length, **options)


def read(loader: Any) -> list[int]:
    return [i for batch in loader for i in batch.index.tolist()]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("options", WORKERS, ids=str)
def test_each_pass_has_new_samples(options: dict[str, Any], named: bool) -> None:
    dataset = stream(8, global_batch=4)
    loader = DataLoader(dataset, batch_size=4, **options)
    seen = []
    for epoch in range(3):
        if named:
            dataset.set_epoch(epoch)
        seen.append(read(loader))
    assert seen == [list(range(8)), list(range(8, 16)), list(range(16, 24))]


@pytest.mark.parametrize("options", WORKERS, ids=str)
def test_a_pass_that_was_left_early_is_repeated(options: dict[str, Any]) -> None:
    dataset = stream(48, global_batch=4)
    loader = DataLoader(dataset, batch_size=4, **options)
    assert read(loader) == list(range(48))
    for _ in range(2):
        rows = iter(loader)
        assert [next(rows).index.tolist() for _ in range(2)] == [[48, 49, 50, 51], [52, 53, 54, 55]]
        del rows
    assert read(loader) == list(range(48, 96))
    assert read(loader) == list(range(96, 144))


@pytest.mark.parametrize("options", WORKERS, ids=str)
def test_the_same_epoch_if_that_is_asked_for(options: dict[str, Any]) -> None:
    loader = DataLoader(stream(8, same_epoch=True, global_batch=4), batch_size=4, **options)
    assert [read(loader) for _ in range(2)] == [list(range(8))] * 2


@pytest.mark.parametrize("options", WORKERS, ids=str)
def test_naming_an_epoch_that_has_begun_changes_nothing(options: dict[str, Any]) -> None:
    dataset = stream(16, global_batch=4)
    loader = DataLoader(dataset, batch_size=4, **options)
    rows = iter(loader)
    next(rows)
    dataset.set_epoch(0)
    read(rows)
    assert read(loader) == list(range(16, 32))


def test_an_endless_stream_begins_again() -> None:
    loader = DataLoader(stream(None), batch_size=4)
    assert [next(iter(loader)).index.tolist() for _ in range(2)] == [[0, 1, 2, 3]] * 2


def test_a_loop_that_counts_its_batches_comes_to_the_end_too() -> None:
    dataset = stream(8)
    rows = iter(DataLoader(dataset, batch_size=4))
    assert [next(rows).index.tolist() for _ in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    held = rows  # still suspended after the last batch
    assert read(DataLoader(dataset, batch_size=4)) == list(range(8, 16))
    del held, rows
    assert read(DataLoader(dataset, batch_size=4)) == list(range(16, 24))


def test_workers_of_loaders_with_one_seed_are_told_apart() -> None:
    import torch

    dataset, seen = stream(8, global_batch=4), []
    for _ in range(3):
        torch.manual_seed(0)
        seen.append(read(DataLoader(dataset, batch_size=4, num_workers=2)))
    assert seen == [list(range(8)), list(range(8, 16)), list(range(16, 24))]


def test_passes_here_and_in_workers_follow_each_other() -> None:
    dataset = stream(8, global_batch=4)
    loader = DataLoader(dataset, batch_size=4, num_workers=1)
    assert [read(loader)[0], int(next(iter(dataset)).index), read(loader)[0]] == [0, 8, 8]
    assert [int(sample.index) for sample in dataset] == list(range(16, 24))
    assert read(loader) == list(range(24, 32))


@pytest.mark.parametrize("options", WORKERS, ids=str)
def test_a_step_counts_in_the_epoch_that_was_read_last(options: dict[str, Any]) -> None:
    dataset = stream(16, global_batch=4)
    loader = DataLoader(dataset, batch_size=4, **options)
    rest = {}
    for step, _ in enumerate(loader, 1):
        rest[step] = dataset.state_dict(step=step)
    rest[0] = dataset.state_dict(step=0)
    for step, epoch, following in ((2, 0, [8]), (4, 0, []), (0, 1, [16])):
        again = stream(16, global_batch=4)
        again.load_state_dict(pickle.loads(pickle.dumps(rest[step])))
        assert rest[step]["epoch"] == epoch
        assert read(DataLoader(again, batch_size=4))[:1] == following
        assert read(DataLoader(again, batch_size=4))[:1] == [16 if epoch == 0 else 32]


@pytest.mark.parametrize(
    ("workers", "passes", "consumed"),
    [
        *((0, passes, consumed) for passes in (0, 1) for consumed in (0, 1, 3, 5, 6)),
        (2, 1, 3),
        *(pytest.param(2, 1, consumed, marks=pytest.mark.extended) for consumed in (0, 1, 5, 6)),
    ],
)
def test_torchdatas_loader_continues_in_a_later_epoch(workers: int, passes: int, consumed: int) -> None:
    def loader() -> StatefulDataLoader:
        return StatefulDataLoader(stream(18), batch_size=3, num_workers=workers)

    first = loader()
    whole = [[batch.index.tolist() for batch in first] for _ in range(passes + 2)]
    assert sorted(i for batches in whole for batch in batches for i in batch) == list(range(18 * (passes + 2)))
    first = loader()
    for _ in range(passes):
        read(first)
    rows = iter(first)
    seen = [next(rows).index.tolist() for _ in range(consumed)]
    state = pickle.loads(pickle.dumps(first.state_dict()))
    del rows
    second = loader()
    second.load_state_dict(state)
    assert seen + [batch.index.tolist() for batch in second] == whole[passes]
    assert [batch.index.tolist() for batch in second] == whole[passes + 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_torchdatas_state_between_two_epochs(workers: int) -> None:
    first = StatefulDataLoader(stream(18), batch_size=3, num_workers=workers)
    read(first)
    second = StatefulDataLoader(stream(18), batch_size=3, num_workers=workers)
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    assert sorted(read(second)) == list(range(18, 36))


def test_naming_another_epoch_drops_a_loaded_state_loudly() -> None:
    dataset = stream(16, global_batch=4)
    dataset.load_state_dict({**dataset.state_dict(step=2), "epoch": 3})
    with pytest.warns(UserWarning, match=r"set_epoch\(0\) drops the loaded state, which is in epoch 3"):
        dataset.set_epoch(0)
    assert read(DataLoader(dataset, batch_size=4)) == list(range(16))


B = 12


def steps(make: Make, ranks: int, workers: int, state: Any, epochs: int) -> Iterator[list[int]]:
    """The indices of each global batch, as ranks of their own see them over some epochs."""
    loaders = []
    for rank in range(ranks):
        data = make(length=4 * B, rank=rank, world_size=ranks, global_batch=B)
        if state is not None:
            data.load_state_dict(pickle.loads(pickle.dumps(state)))
        options = {"num_workers": workers, "persistent_workers": True} if workers else {}
        loaders.append(DataLoader(data, batch_size=B // ranks, **options))
    for _ in range(epochs):
        for parts in zip(*loaders, strict=True):
            yield [i for part in parts for i in part.index.tolist()]


def check_ranks(make: Make, before: tuple[int, int], after: tuple[int, int], stopped: int) -> None:
    """Two epochs with a stop in the middle are what one process sees."""
    whole = list(steps(make, 1, 0, None, 2))
    seen = list(islice(steps(make, *before, None, 2), stopped))
    epoch, step = divmod(stopped, 4)
    saving = make(length=4 * B, rank=0, world_size=before[0], global_batch=B)
    saving.set_epoch(epoch)
    rest = list(steps(make, *after, saving.state_dict(step=step), 2 - epoch))
    assert seen + rest == whole


MAKE: dict[str, Make] = {"stream": stream, "mixture": mixture}


@settings(max_examples=25, deadline=None)
@given(
    make=st.sampled_from(list(MAKE)),
    before=st.integers(1, 3),
    after=st.integers(1, 3),
    stopped=st.integers(0, 7),
)
def test_ranks_see_what_one_process_sees(make: str, before: int, after: int, stopped: int) -> None:
    check_ranks(MAKE[make], (before, 0), (after, 0), stopped)


@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize(
    ("before", "after"), [((2, 1), (1, 2)), pytest.param((3, 2), (2, 2), marks=pytest.mark.extended)], ids=str
)
def test_ranks_with_living_workers_too(make: str, before: tuple[int, int], after: tuple[int, int]) -> None:
    check_ranks(MAKE[make], before, after, 6)


def test_shards_come_in_another_order_each_pass(tmp_path: Any, unfiltered: Any) -> None:
    write_shards(unfiltered, tmp_path, range(12), samples_per_shard=4)
    dataset = ShardDataset(tmp_path, shuffle=6, seed=1)
    first, second = read(DataLoader(dataset, batch_size=4)), read(DataLoader(dataset, batch_size=4))
    assert first != second and sorted(first) == sorted(second) == list(range(12))


ABANDONED = """
import itertools, threading
from torch.utils.data import DataLoader
from dsgan_datasets import DSGANDataset, DSGANIterableDataset, LabeledGenerator, Mixture
labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
stream = DSGANIterableDataset(labeled, batch_size=2)
mixture = Mixture([stream, DSGANDataset(labeled, 3, seed=1)], [1, 1])
opened = [iter(stream), stream.batches(), iter(DataLoader(stream, batch_size=2)), iter(mixture)]
opened += [labeled.stream(itertools.count())]
print([type(next(each)).__name__ for each in opened])
"""


@pytest.mark.slow
def test_a_stream_that_is_open_at_the_end_prints_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", ABANDONED], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == "['Sample', 'SampleBatch', 'SampleBatch', 'Sample', 'Sample']\n"


@pytest.mark.parametrize("make", MAKE)
def test_no_thread_is_left(make: str) -> None:
    import threading

    def threads() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("dsgan-generate")}

    rows = iter(MAKE[make](None))
    list(islice(rows, 4))
    assert threads()
    rows.close()  # type: ignore[attr-defined]
    assert not threads()
    list(MAKE[make](8))
    assert not threads()


@pytest.mark.parametrize("moment", range(8))
def test_workers_that_begin_at_once_begin_one_pass(moment: int) -> None:
    """One that begins while another looks at what the latest pass is; two passes made the next one repeat an epoch."""

    class Interrupted(Board):
        reads = -1  # of the latest pass, until the other one begins; below 0: never

        def __getattr__(self, name: str) -> int:
            if name == "current" and Interrupted.reads >= 0:
                Interrupted.reads -= 1
                if Interrupted.reads < 0:
                    self.join(0, 2, 7, 2)
            return super().__getattr__(name)

    board = Interrupted()
    for worker, begun in [(worker, board.join(worker, 2, 7, 1)) for worker in range(2)]:
        board.leave(worker, begun)
    Interrupted.reads = moment
    board.join(1, 2, 7, 2)
    Interrupted.reads = -1
    assert (board.current, board.join(0, 2, 7, 2).epoch, board.join(1, 2, 7, 2).epoch) == (2, 1, 1)
