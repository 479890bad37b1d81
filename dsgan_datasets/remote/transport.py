"""The seam between those who ask for samples and those who make them: Ray, or the one in the tests."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from dsgan_datasets.remote.messages import Request

#: A transport's own; hashable.
Call = Any


class Transport(Protocol):
    """Finds workers and carries requests to them. No method waits for longer than it says.

    A worker's id is a string that is never given again; ids sort by age, the oldest first.

    Attributes:
        place: where the workers are, for people and without credentials.

    Example:
        >>> from dsgan_datasets.remote import RemoteSource
        >>> RemoteSource("demo-faces", "ray://head:10001").transport.place  # doctest: +SKIP
        'ray://head:10001'
    """

    place: str

    def workers(self) -> Mapping[str, Mapping[str, Any] | None]:
        """The `facts` of all workers that are there now, by id; None for one that is still starting. Takes seconds at
        most.

        Raises:
            RemoteError: the process that knows the workers does not answer.
        """

    def ask(self, worker: str, request: Request) -> Call:
        """Send a request; returns at once. `WorkerLost` if the worker is gone."""

    def wait(self, calls: Collection[Call], timeout: float) -> Collection[Call]:
        """Those of some calls that have ended, as soon as there is one; none after `timeout` seconds."""

    def answer(self, call: Call) -> Mapping[str, Any]:
        """What the worker's `generate` gave; `WorkerLost` if it died over it. Of a call that has ended, once."""

    def drop(self, calls: Collection[Call]) -> None:
        """The answers of some calls are not wanted any more. Those that were answered may be among them."""

    def status(self, worker: str, timeout: float) -> Mapping[str, Any] | None:
        """A worker's `status`; None if it does not give one within `timeout` seconds."""
