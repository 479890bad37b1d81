"""What ends a stream of remote samples, and what only sends a request elsewhere."""

from __future__ import annotations


class RemoteError(RuntimeError):
    """Samples cannot be had from other machines; says which worker or cluster, what happened, and what to do."""


class WorkerLost(Exception):
    """A worker died, or is out of reach. What it was asked for may be asked of another one."""
