"""Two real ranks over gloo: they share the epoch out, and DistributedDataParallel does not hang at its end."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import small_labeled
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


@pytest.mark.parametrize(
    ("uneven", "workers", "context", "expected"),
    [
        ("drop", 0, None, [[0, 2, 4], [1, 3, 5]]),
        ("pad", 0, None, [[0, 2, 4, 6], [1, 3, 5, 0]]),
        ("drop", 1, "spawn", [[0, 2, 4], [1, 3, 5]]),
    ],
)
def test_two_ranks_of_an_odd_epoch(
    tmp_path: Path, uneven: str, workers: int, context: str | None, expected: list[list[int]]
) -> None:
    arguments = (_free_port(), str(tmp_path), uneven, workers, context)
    running = mp.start_processes(_train, args=arguments, nprocs=2, join=False, start_method="spawn")
    try:
        assert running.join(timeout=120) or running.join(timeout=30), "the ranks hang"
    finally:
        for process in running.processes:
            process.kill()
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == expected
