"""Two real ranks over gloo: no sample is lost, DistributedDataParallel does not hang."""

from __future__ import annotations

import os
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import small_labeled
from sources import NumberSource
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from dsgan_datasets import DSGANIterableDataset


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def _train(rank: int, port: int, folder: str, uneven: Any, workers: int, context: str | None) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    # Made before the process group: rank and world size are asked for when iteration starts.
    dataset = DSGANIterableDataset(small_labeled(), length=7, uneven=uneven, batch_size=2)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model = DistributedDataParallel(torch.nn.Conv2d(3, 4, 1))
    seen = []
    loader = DataLoader(dataset, batch_size=1, num_workers=workers, multiprocessing_context=context)
    for batch in loader:
        torch.nn.functional.cross_entropy(model(batch.image / 255), batch.mask).backward()
        seen += batch.index.tolist()
    dist.barrier()
    torch.save(seen, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def run(function: Any, *arguments: Any) -> None:
    """Call the function on two ranks: (rank, port, …)."""
    running = mp.start_processes(function, args=(_free_port(), *arguments), nprocs=2, join=False, start_method="spawn")
    try:
        assert running.join(timeout=120) or running.join(timeout=30), "the ranks hang"
    finally:
        for process in running.processes:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("uneven", "workers", "context", "expected"),
    [
        (None, 0, None, [[0, 2, 4], [1, 3, 5]]),
        ("pad", 0, None, [[0, 2, 4, 6], [1, 3, 5, 0]]),
        ("drop", 1, "spawn", [[0, 2, 4], [1, 3, 5]]),
    ],
)
def test_two_ranks_of_an_odd_epoch(
    tmp_path: Path, uneven: str | None, workers: int, context: str | None, expected: list[list[int]]
) -> None:
    run(_train, str(tmp_path), uneven, workers, context)
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == expected


#: How a loader is prepared -> (dispatch_batches, split_by_rank, workers, context).
PREPARED = [
    (None, None, 0, None),
    (False, None, 0, None),
    (True, None, 0, None),
    (None, False, 2, None),
    (False, None, 2, None),
    (False, None, 1, "spawn"),
    ("not prepared", None, 0, None),
    ("skipped", None, 0, None),
]


def _accelerate(rank: int, port: int, folder: str) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank)
    )
    torch.set_num_threads(1)
    from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches

    results = []
    for dispatch, split, workers, context in PREPARED:
        batches = dispatch if isinstance(dispatch, bool) else None
        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=batches))
        dataset = DSGANIterableDataset(NumberSource(), length=16, split_by_rank=split, global_batch=4)
        loader: Any = DataLoader(dataset, batch_size=2, num_workers=workers, multiprocessing_context=context)
        if dispatch == "skipped":
            loader = skip_first_batches(loader, 1)
        elif dispatch != "not prepared":
            loader = accelerator.prepare(loader)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            epochs = []
            for epoch in range(2):
                dataset.set_epoch(epoch)
                epochs.append([i for batch in loader for i in batch["index"].tolist()])
        results.append((epochs, [str(w.message) for w in warned if "split_by_rank=False" in str(w.message)]))
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.extended
def test_accelerate_shares_out_each_sample_once(tmp_path: Path) -> None:
    """A launcher that shares out batches itself got every n-th of every n-th sample: 5 of 10 were never seen."""
    pytest.importorskip("accelerate")
    run(_accelerate, str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for (dispatch, split, workers, _), first, second in zip(PREPARED, *ranks, strict=True):
        for epoch in range(2):
            seen = sorted(first[0][epoch] + second[0][epoch])
            whole = list(range(16 * epoch, 16 * epoch + 16))
            if dispatch == "skipped":  # the first batch of each rank: what was not prepared shares out nothing
                assert seen == whole[4:]
            else:
                assert seen == whole, (dispatch, split, workers)
        warns = split is None and dispatch in (None, True, False)
        assert len(first[1]) == warns and all("accelerate" in text for text in first[1]), (dispatch, first[1])
