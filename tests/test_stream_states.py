"""Where a stream is: copies, living workers, several iterators, and states that are checked where they are used."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from sources import NumberSource, Worker, as_worker
from torch.utils.data import DataLoader

from dsgan_datasets import DSGANDataset, DSGANIterableDataset

B = 4


def stream(length: int | None = 24, **options: Any) -> DSGANIterableDataset:
    return DSGANIterableDataset(NumberSource(), length=length, **options)  # type: ignore[arg-type]


def indices(samples: Any) -> list[int]:
    return [int(sample.index) for sample in samples]


def read(loader: Any) -> list[int]:
    return [i for batch in loader for i in batch.index.tolist()]


def by_ray(dataset: Any) -> Any:
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    return pickle.loads(cloudpickle.dumps(dataset))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("copied", "context"),
    [
        (copy.copy, "fork"),
        (copy.deepcopy, "fork"),
        (copy.deepcopy, "spawn"),
        (lambda dataset: pickle.loads(pickle.dumps(dataset)), "fork"),
        (by_ray, "fork"),
    ],
)
def test_living_workers_of_a_copy_see_its_epoch(copied: Callable[[Any], Any], context: str) -> None:
    original = stream(4)
    original.set_epoch(2)
    dataset = copied(original)
    loader = DataLoader(dataset, batch_size=4, num_workers=1, persistent_workers=True, multiprocessing_context=context)
    assert read(loader) == [8, 9, 10, 11]
    dataset.set_epoch(1)
    assert read(loader) == [4, 5, 6, 7]


def test_living_workers_take_a_state_that_is_loaded_later() -> None:
    dataset = stream(12, global_batch=B)
    loader = DataLoader(dataset, batch_size=B, num_workers=2, persistent_workers=True)
    assert read(loader) == list(range(12))
    dataset.load_state_dict(dataset.state_dict(step=1))
    assert read(loader) == list(range(4, 12))
    assert read(loader) == list(range(12, 24)), "a state is used once"
    dataset.load_state_dict(dataset.state_dict(step=2))
    assert read(loader) == list(range(20, 24))


def test_datasets_that_nobody_iterates_hold_no_files() -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("counts open files in /proc")
    before = len(os.listdir("/proc/self/fd"))
    alive = [stream() for _ in range(300)]
    alive += copy.deepcopy(alive)
    assert len(os.listdir("/proc/self/fd")) - before < 20


def test_a_look_right_before_saving_does_not_count() -> None:
    dataset = stream(40)
    kept = iter(dataset)
    next(kept)  # a check of the shape whose iterator is kept
    rows = iter(dataset)
    list(islice(rows, 10))
    next(iter(dataset))
    other = iter(dataset)
    next(other)
    assert dataset.state_dict()["batches"] == 10
    rows.close()  # type: ignore[attr-defined]
    assert dataset.state_dict()["batches"] == 1, "others are still running"
    kept.close(), other.close()  # type: ignore[attr-defined]
    assert dataset.state_dict()["batches"] == 10, "all were left: the furthest"


def test_a_second_pass_counts_from_its_beginning() -> None:
    dataset = stream(12)

    def place() -> tuple[int, int]:
        state = dataset.state_dict()
        return state["epoch"], state["batches"]

    assert len(indices(dataset)) == 12 and place() == (1, 0)
    rows = iter(dataset)
    list(islice(rows, 5))
    assert place() == (1, 5)
    rows.close()  # type: ignore[attr-defined]
    assert place() == (1, 5)


def test_a_look_does_not_use_up_a_loaded_state() -> None:
    dataset = stream(24, global_batch=B)
    dataset.load_state_dict(dataset.state_dict(step=3))
    assert int(next(iter(dataset)).index) == 12
    assert dataset.state_dict()["batches"] == 3 and dataset.state_dict()["within"] == 1
    loader = DataLoader(dataset, batch_size=B, num_workers=2)
    assert read(loader) == list(range(12, 24))
    assert indices(dataset) == list(range(24, 48))


def test_workers_do_not_count_what_the_process_looked_at() -> None:
    dataset = stream(24, global_batch=B)
    list(islice(dataset, 6))
    pid = os.fork()
    if not pid:  # as a DataLoader worker that StatefulDataLoader asks before its first sample
        with as_worker(Worker(0, 1)):
            os._exit(dataset.state_dict()["consumed"])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_ranks_that_are_known_later_are_compared_when_iteration_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    state = stream(rank=0, world_size=2).state_dict()
    dataset = stream()
    dataset.load_state_dict({**state, "batches": 3})  # before init_process_group
    for _ in range(2):  # it stays loaded
        with pytest.raises(ValueError, match="cannot resume: world_size is 1 here, but 2 in the saved state"):
            next(iter(dataset))
    with as_worker(Worker(1, 2)), pytest.raises(ValueError, match="world_size is 1 here"):
        next(iter(dataset))
    monkeypatch.setattr("dsgan_datasets.sources.streaming.current_rank", lambda: (1, 2))
    assert indices(dataset) == list(range(7, 24, 2))


def test_a_global_batch_that_is_set_later_is_compared_when_iteration_starts() -> None:
    state = stream(global_batch=B).state_dict(step=2)
    dataset = stream()
    dataset.load_state_dict(state)
    with pytest.raises(ValueError, match="global_batch is None here, but 4 in the saved state"):
        next(iter(dataset))
    dataset.batch_by(8)
    with pytest.raises(ValueError, match="global_batch is 8 here, but 4 in the saved state"):
        read(DataLoader(dataset, batch_size=8))
    dataset.batch_by(B)
    assert indices(dataset) == list(range(8, 24))
    changed = stream(global_batch=B)
    changed.load_state_dict(state)
    changed.batch_by(8)
    with pytest.raises(ValueError, match="global_batch is 8 here, but 4"):
        next(iter(changed))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_beyond_the_epoch_is_refused(workers: int) -> None:
    dataset = stream(24, global_batch=B)
    with pytest.raises(ValueError, match="global batches of this epoch, which has 6, not 7"):
        dataset.state_dict(step=7)
    dataset.load_state_dict({**dataset.state_dict(step=6), "batches": 7})
    with pytest.raises(ValueError, match="7 global batches were done in the saved state, an epoch has 6"):
        read(DataLoader(dataset, batch_size=B, num_workers=workers))
    dataset.load_state_dict(dataset.state_dict(step=6))
    assert read(DataLoader(dataset, batch_size=B, num_workers=workers)) == []


class Killed(NumberSource):
    """Its process is killed, as by the kernel when memory runs out."""

    def stream(self, *arguments: Any, **options: Any) -> Any:
        for sample in super().stream(*arguments, **options):
            if int(sample.index) == 9:
                os.kill(os.getpid(), signal.SIGKILL)
            yield sample


def test_a_killed_worker_is_noticed() -> None:
    dataset = DSGANIterableDataset(Killed(), length=24)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="(?s)DataLoader worker .*(killed|exited)"):
        read(DataLoader(dataset, batch_size=2, num_workers=2, timeout=5, multiprocessing_context="fork"))


def test_a_stream_travels_to_a_process_of_ones_own() -> None:
    """Not a DataLoader worker: a plain child that reads the same stream."""
    dataset = stream(6)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(indices(dataset)))
    child.start()
    assert queue.get(timeout=30) == list(range(6))
    child.join()


def test_a_slow_worker_of_an_earlier_loader_does_not_take_a_new_state() -> None:
    dataset = stream(24, global_batch=B)
    loading, begun = (multiprocessing.get_context("fork").Event() for _ in range(2))
    queue = multiprocessing.get_context("fork").Queue()

    def late() -> None:
        loading.wait(30)
        with as_worker(Worker(0, 1, base_seed=77)):
            queue.put([indices(dataset), indices(dataset)])
        begun.set()

    child = multiprocessing.get_context("fork").Process(target=late)
    child.start()
    dataset.load_state_dict(dataset.state_dict(step=2))
    loading.set()
    assert begun.wait(30)
    both = queue.get(timeout=30)
    assert both == [list(range(24)), list(range(8, 24))], "a living worker takes it with its next iteration"
    assert indices(dataset) == list(range(24, 48))
    child.join()


@pytest.mark.parametrize("field", ["seed", "start", "length", "same_epoch", "epoch", "batches"])
@pytest.mark.parametrize("value", [torch.tensor([1, 2]), np.array([1, 2]), True, 0.0], ids=repr)
def test_edited_states_are_refused_by_field(field: str, value: Any) -> None:
    dataset = stream(seed=1, start=1)
    before = dataset.state_dict()
    with pytest.raises(ValueError, match=f"(?s)(cannot resume: )?{field} "):
        dataset.load_state_dict({**before, field: value})
    assert dataset.state_dict() == before


def test_a_state_without_its_number_of_ranks_is_refused() -> None:
    one_of_two = stream(rank=0, world_size=2)
    next(iter(one_of_two))
    state = one_of_two.state_dict()
    del state["world_size"]
    with pytest.raises(ValueError, match="world_size"):
        stream(rank=0, world_size=3).load_state_dict(state)


def test_a_sample_whose_transforms_fail_was_not_handed_out() -> None:
    def broken(fields: dict[str, Any]) -> dict[str, Any]:
        seen.append(0)
        if len(seen) == 3:
            raise LookupError
        return fields

    seen: list[int] = []
    dataset = stream(6, transforms=broken)
    with pytest.raises(LookupError):
        indices(dataset)
    rest = stream(6)
    rest.load_state_dict(dataset.state_dict())
    assert indices(rest) == [2, 3, 4, 5]


@pytest.mark.parametrize("dataset", [DSGANDataset, stream], ids=["map", "stream"])
def test_transforms_that_run_out_do_not_end_the_loop(dataset: Callable[..., Any]) -> None:
    augmentations = iter([1, 2])

    def choose(fields: dict[str, Any]) -> dict[str, Any]:
        next(augmentations)
        return fields

    source = (NumberSource(),) if dataset is DSGANDataset else ()
    loader = DataLoader(dataset(*source, length=6, transforms=choose), batch_size=1)
    with pytest.raises(RuntimeError, match="StopIteration"):
        read(loader)
