"""One order of an epoch for any number of ranks and workers, and states that move between them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import NumberSource, loaded
from torch.utils.data import DataLoader

from dsgan_datasets import DSGANIterableDataset, LabeledGenerator, ShardDataset, write_shards
from dsgan_datasets.sources.share import Share

B = 24
LENGTH = 6 * B
RANKS = st.sampled_from([1, 2, 3, 4, 8])
WORKERS = st.integers(0, 3)

Make = Callable[..., Any]


def steps(make: Make, ranks: int, workers: int, state: Any = None, item: int | None = None) -> Iterator[list[int]]:
    """The indices of each global batch, rank after rank, as a training on that many ranks and workers sees them."""
    u = item or B // ranks

    def dataset(rank: int) -> Any:
        data = make(rank=rank, world_size=ranks, loader_batch_size=item)
        if state is not None:
            data.load_state_dict(state)
        return data

    loaders = []
    for rank in range(ranks):
        sent = dataset(rank)  # its workers get copies of it
        loaders.append(
            loaded(
                (lambda sent=sent: pickle.loads(pickle.dumps(sent))) if workers else lambda sent=sent: sent, workers, u
            )
        )
    while True:
        step = [[i for _ in range(B // ranks // u) for i in next(loader, [])] for loader in loaders]
        if not any(step):
            return
        assert [len(part) for part in step] == [B // ranks] * ranks
        yield [i for part in step for i in part]


def of_numbers(**options: Any) -> DSGANIterableDataset:
    return DSGANIterableDataset(NumberSource(), length=LENGTH, global_batch=B, seed=3, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory, unfiltered: LabeledGenerator) -> Path:
    path = tmp_path_factory.mktemp("tars")
    write_shards(unfiltered, path, range(LENGTH), samples_per_shard=17)
    return path


def items(ranks: int) -> list[int]:
    return [u for u in range(1, B // ranks + 1) if (B // ranks) % u == 0]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(before=st.tuples(RANKS, WORKERS), after=st.tuples(RANKS, WORKERS), stopped=st.integers(0, 6), data=st.data())
def test_a_state_moves_between_numbers_of_ranks_and_workers(
    before: tuple[int, int], after: tuple[int, int], stopped: int, data: st.DataObject
) -> None:
    first_item, second_item = (data.draw(st.sampled_from(items(ranks))) for ranks, _ in (before, after))
    running = steps(of_numbers, *before, item=first_item)
    seen = [next(running) for _ in range(stopped)]
    state = of_numbers(rank=0, world_size=before[0]).state_dict(step=stopped)
    assert state["batches"] == stopped and "world_size" not in state
    rest = list(steps(of_numbers, *after, pickle.loads(pickle.dumps(state)), second_item))
    assert [i for step in seen + rest for i in step] == list(range(LENGTH))


@pytest.mark.parametrize("shuffle", [0, 20])
@pytest.mark.parametrize(
    ("before", "after"), [((4, 2), (1, 0)), ((1, 0), (8, 3)), ((3, 1), (2, 2)), ((2, 3), (4, 0))], ids=str
)
def test_a_state_moves_over_shards(tars: Path, before: tuple[int, int], after: tuple[int, int], shuffle: int) -> None:
    def make(**options: Any) -> ShardDataset:
        return ShardDataset(tars, shuffle=shuffle, seed=3, global_batch=B, **options)

    whole = [int(sample.index) for sample in make()]
    assert sorted(whole) == list(range(LENGTH)) and (whole == sorted(whole)) == (not shuffle)
    running = steps(make, *before)
    seen = [next(running) for _ in range(4)]
    rest = list(steps(make, *after, make().state_dict(step=4)))
    assert [i for step in seen + rest for i in step] == whole


def test_the_example_of_the_design() -> None:
    """B = 24, 4 ranks × 2 workers stopped after 5 steps."""
    running = steps(of_numbers, 4, 2)
    seen = [next(running) for _ in range(5)]
    assert seen[4] == list(range(96, 120))
    state = of_numbers(rank=0, world_size=4).state_dict(step=5)
    assert next(steps(of_numbers, 1, 0, state))[0] == 120
    assert list(steps(of_numbers, 8, 3, state)) == [list(range(120, 144))]


def test_a_resumed_stream_asks_for_nothing_of_the_past() -> None:
    source = NumberSource()
    dataset = DSGANIterableDataset(source, length=10**12, global_batch=B, batch_size=1, prefetch=1)  # type: ignore[arg-type]
    dataset.load_state_dict(dataset.state_dict(step=10**9))
    assert int(next(iter(dataset)).index) == 24 * 10**9
    assert min(source.asked) == 24 * 10**9


def test_a_state_inside_a_global_batch_needs_as_many_ranks() -> None:
    first = of_numbers(rank=1, world_size=2)
    rows = iter(first)
    for _ in range(12 + 4):
        last = int(next(rows).index)
    state = first.state_dict()
    assert (state["batches"], state["within"], state["world_size"]) == (1, 4, 2)
    again = of_numbers(rank=1, world_size=2)
    again.load_state_dict(state)
    assert int(next(iter(again)).index) == last + 1
    with pytest.raises(ValueError, match="cannot resume: world_size is 3 here, but 2 in the saved state"):
        of_numbers(rank=1, world_size=3).load_state_dict(state)
    workers = of_numbers(rank=1, world_size=2, loader_batch_size=4)
    workers.load_state_dict(state)
    batches = loaded(lambda: pickle.loads(pickle.dumps(workers)), 2, 4)
    assert [i for batch in batches for i in batch] == [i for i in range(last + 1, LENGTH) if i % B >= 12]
    with_others = of_numbers(rank=1, world_size=2, loader_batch_size=6)
    with_others.load_state_dict(state)
    with pytest.raises(ValueError, match="not a multiple of the 6 samples of a DataLoader item: continue without work"):
        next(loaded(lambda: with_others, 2, 6))


def test_what_workers_read_needs_a_step() -> None:
    sent = of_numbers()
    next(iter(DataLoader(sent, batch_size=24, num_workers=1)))
    with pytest.raises(ValueError, match=r"pass state_dict\(step=…\), the number of global batches"):
        sent.state_dict()
    assert sent.state_dict(step=2)["batches"] == 2
    sent.set_epoch(1)
    assert sent.state_dict()["epoch"] == 1 and sent.state_dict()["batches"] == 0
    with pytest.raises(ValueError, match="give the stream a global_batch"):
        DSGANIterableDataset(NumberSource(), length=4).state_dict(step=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"global_batch": 10, "rank": 0, "world_size": 4}, "10 does not divide among 4 ranks: choose 8 or 12"),
        ({"global_batch": 3, "rank": 0, "world_size": 4}, "choose 4"),
        ({"global_batch": 24, "loader_batch_size": 5}, "items of 1, 2, 3, 4, 6, 8, 12, 24 do"),
        ({"loader_batch_size": 5}, "give global_batch too"),
        ({"global_batch": 0}, "global_batch must be an integer of at least 1"),
        ({"split_by_rank": False, "rank": 1, "world_size": 2}, "every process the only rank"),
        ({"split_by_rank": "no"}, "split_by_rank must be True, False or None"),
    ],
)
def test_numbers_that_do_not_divide(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DSGANIterableDataset(NumberSource(), length=48, **arguments)  # type: ignore[arg-type]


def test_view_groups_stay_together() -> None:
    """A1: whole groups for every consumer, whatever splits the epoch; and errors where they would be torn."""
    source = NumberSource(group=4)
    for ranks, workers, item in ((2, 2, 4), (3, 0, 8), (1, 3, 8), (2, 2, 12)):
        for rank in range(ranks):
            sent = DSGANIterableDataset(
                source, length=96, global_batch=B, rank=rank, world_size=ranks, loader_batch_size=item
            )  # type: ignore[arg-type]
            for batch in loaded(lambda sent=sent: pickle.loads(pickle.dumps(sent)), workers, item):  # type: ignore[misc]
                assert all(batch[i] % 4 == i % 4 and batch[i] // 4 == batch[i - i % 4] // 4 for i in range(len(batch)))
    with pytest.raises(ValueError, match="tear view groups of 4: choose a multiple of 8, such as 16"):
        DSGANIterableDataset(source, length=96, global_batch=12, rank=0, world_size=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="items of 4, 12 do"):
        DSGANIterableDataset(source, length=96, global_batch=12, loader_batch_size=2)  # type: ignore[arg-type]


def test_uneven_rounds_to_global_batches() -> None:
    source = NumberSource()

    def parts(**options: Any) -> list[list[int]]:
        return [
            [
                int(s.index)
                for s in DSGANIterableDataset(source, length=10, global_batch=4, rank=r, world_size=2, **options)
            ]  # type: ignore[arg-type]
            for r in range(2)
        ]

    assert parts() == parts(uneven="drop") == [[0, 1, 4, 5], [2, 3, 6, 7]]  # A6: several ranks end together
    assert parts(uneven="pad") == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 0, 1]]
    assert parts(uneven="keep") == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7]]
    assert len(DSGANIterableDataset(source, length=10)) == 10  # type: ignore[arg-type]
    for options, lengths in (({}, [4, 4]), ({"uneven": "pad"}, [6, 6]), ({"uneven": "keep"}, [6, 4])):
        made = [
            DSGANIterableDataset(source, length=10, global_batch=4, rank=r, world_size=2, **options)
            for r in range(2)  # type: ignore[arg-type]
        ]
        assert [len(dataset) for dataset in made] == lengths


@settings(max_examples=100, deadline=None)
@given(
    rank_batch=st.integers(1, 6),
    ranks=st.integers(1, 4),
    workers=st.integers(1, 3),
    length=st.integers(0, 60),
    done=st.integers(0, 4),
    consumed=st.integers(0, 9),
    data=st.data(),
)
def test_a_share_continues_where_it_was(
    rank_batch: int, ranks: int, workers: int, length: int, done: int, consumed: int, data: st.DataObject
) -> None:
    """Counted in samples of one consumer, as a DataLoader worker counts."""
    item = data.draw(st.sampled_from([u for u in range(1, rank_batch + 1) if rank_batch % u == 0]))
    share = Share(ranks - 1, ranks, workers - 1, workers, rank_batch * ranks, item)
    everything = [p for part in share.positions(length, batches_done=done) for p in part]
    rest = [p for part in share.positions(length, batches_done=done, samples_done=consumed) for p in part]
    assert rest == everything[consumed:]
    consumers = [Share(r, ranks, w, workers, rank_batch * ranks, item) for r in range(ranks) for w in range(workers)]
    seen = sorted(p for one in consumers for part in one.positions(length) for p in part)
    assert seen == list(range(length))
    assert sum(Share(r, ranks, global_batch=rank_batch * ranks).count(length) for r in range(ranks)) == length
