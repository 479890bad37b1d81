"""Remote workers without machines: a transport in one thread, whose workers come and go as a test wants."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from dsgan_datasets import LabeledGenerator
from dsgan_datasets.remote import GeneratorWorker, RemoteError, Request, WorkerLost


class ClaimingWorker(GeneratorWorker):
    """A worker that says of itself what a test wants."""

    def __init__(self, labeled: LabeledGenerator, **claims: Any) -> None:
        super().__init__(labeled, "cpu", "small")
        self._claims = claims

    def facts(self) -> dict[str, Any]:
        facts = super().facts()
        made_with = {**facts["made_with"], **self._claims.get("made_with", {})}
        return {**facts, **self._claims, "made_with": made_with}


class Yard:
    """Workers, and what happens to them; a `Transport`. Calls are answered when they are waited for, the last first.

    Attributes:
        present: workers by id; None for one that is starting.
        calls: that have not been answered: call -> (worker, request).
        most: the largest number of calls that a worker has had at a time.
        made: requests that were answered, by worker.
        before: called with (worker, request) before each answer; it may kill, add, or give the answer.
        at_look: what to do at which look at who is there.
        away: why the cluster does not answer; None while it does.
        silent: workers that answer nothing.
    """

    place = "the yard"

    def __init__(self) -> None:
        self.present: dict[str, GeneratorWorker | None] = {}
        self.calls: dict[int, tuple[str, Request]] = {}
        self.most: Counter[str] = Counter()
        self.made: Counter[str] = Counter()
        self.before: Callable[[str, Request], Mapping[str, Any] | None] = lambda worker, request: None
        self.at_look: dict[int, Callable[[], object]] = {}
        self.away: str | None = None
        self.silent: set[str] = set()
        self.looks = 0
        self._numbers = itertools.count()

    def serve(self, labeled: LabeledGenerator, count: int = 1, **claims: Any) -> list[str]:
        """Add workers; their ids."""
        names = [f"{next(self._numbers):04d}" for _ in range(count)]
        self.present |= {name: ClaimingWorker(labeled, **claims) for name in names}
        return names

    def kill(self, worker: str) -> None:
        self.present.pop(worker, None)

    def workers(self) -> Mapping[str, Mapping[str, Any] | None]:
        self.looks += 1
        self.at_look.get(self.looks, lambda: None)()
        if self.away is not None:
            raise RemoteError(self.away)
        return {name: worker and worker.facts() for name, worker in self.present.items()}

    def ask(self, worker: str, request: Request) -> int:
        if worker not in self.present:
            raise WorkerLost("it is gone")
        call = next(self._numbers)
        self.calls[call] = worker, request
        self.most[worker] = max(self.most[worker], sum(w == worker for w, _ in self.calls.values()))
        return call

    def wait(self, calls: Collection[int], timeout: float) -> list[int]:
        able = [call for call in calls if self.calls[call][0] not in self.silent]
        if not able:
            time.sleep(min(timeout, 0.01))
        return able[-1:]

    def answer(self, call: int) -> Mapping[str, Any]:
        worker, request = self.calls.pop(call)
        said = self.before(worker, request)
        there = self.present.get(worker)
        if there is None:
            raise WorkerLost("it died")
        self.made[worker] += 1
        return said or there.generate(*request)

    def drop(self, calls: Collection[int]) -> None:
        for call in calls:
            self.calls.pop(call, None)

    def status(self, worker: str, timeout: float) -> Mapping[str, Any] | None:
        there = self.present.get(worker)
        return None if there is None or worker in self.silent else there.status()
