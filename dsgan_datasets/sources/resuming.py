"""Where the workers of a DataLoader stand when a training that was interrupted goes on."""

from __future__ import annotations


def resumed_worker(worker: int, workers: int, batches: int) -> tuple[int, int]:
    """Whose work a worker of a new DataLoader goes on with, and how many batches that one has done.

    A DataLoader takes batches from its workers in turn. A new one begins with its worker 0, which therefore goes on as
    the worker whose turn it was.

    Args:
        worker: 0 … workers - 1, in the new DataLoader.
        workers: as many as before.
        batches: that the former DataLoader has given.

    Example:
        >>> resumed_worker(0, workers=2, batches=3)  # workers 0, 1 and 0 have given one each: now it is 1's turn
        (1, 1)
    """
    rounds, turn = divmod(batches, workers)
    former = (worker + turn) % workers
    return former, rounds + (former < turn)
