"""What ends a stream of remote samples, and what only sends a request elsewhere."""

from __future__ import annotations


class RemoteError(RuntimeError):
    """Samples cannot be had from other machines; says which worker or cluster, what happened, and what to do.

    Example:
        >>> source = RemoteSource("demo-faces", "ray://head:10001")  # doctest: +SKIP
        >>> source.batch([0])  # doctest: +SKIP
        Traceback (most recent call last):
            ...
        dsgan_datasets.remote.errors.RemoteError: no worker serves demo-faces …
    """


class WorkerLost(Exception):
    """A worker died, or is out of reach. What it was asked for may be asked of another one.

    Example:
        >>> try:
        ...     raise WorkerLost("gpu-1 ended")
        ... except WorkerLost as lost:
        ...     print(f"{lost}: another worker is asked")
        gpu-1 ended: another worker is asked
    """
