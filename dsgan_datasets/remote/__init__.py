"""Samples that other machines make: `dsgan serve` runs workers there, a `RemoteSource` asks them."""

from dsgan_datasets.remote.errors import RemoteError, WorkerLost
from dsgan_datasets.remote.messages import Request
from dsgan_datasets.remote.serving import Serving, serve
from dsgan_datasets.remote.source import RemoteSource, checkpoint_source
from dsgan_datasets.remote.transport import Transport
from dsgan_datasets.remote.worker import GeneratorWorker

__all__ = [
    "GeneratorWorker",
    "RemoteError",
    "RemoteSource",
    "Request",
    "Serving",
    "Transport",
    "WorkerLost",
    "checkpoint_source",
    "serve",
]
