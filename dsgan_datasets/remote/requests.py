"""Requests in, answers out, in order: a free worker is asked, and what a lost worker had is asked of another one."""

from __future__ import annotations

import time
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dsgan_datasets.remote.crew import Crew
from dsgan_datasets.remote.errors import RemoteError, WorkerLost
from dsgan_datasets.remote.messages import Request, unpack
from dsgan_datasets.remote.waiting import Waiting
from dsgan_datasets.samples import SampleBatch
from dsgan_datasets.targets.base import Target

#: Requests that a worker has of one stream at a time: one that it works on, and the next.
_EACH = 2
#: Requests of a stream that are under way, or answered and not yet taken, at most: memory must have a bound that does
#: not grow with the number of workers.
_MOST = 64
#: Workers that may fail at one request before it is given up.
_TRIES = 4
#: Seconds of a wait before somebody looks around.
_TICK = 0.5
#: Seconds without an answer after which a worker is asked how it is, and seconds that it has to say so.
_ASK_AFTER, _ASK_FOR = 10.0, 5.0


@dataclass
class _Pending:
    """A request on its way.

    Attributes:
        request: what is wanted.
        worker: who has it; None if nobody has.
        call: of the transport.
        outcome: the answer, or why there is none.
        failures: what became of it before.
    """

    request: Request
    worker: str | None = None
    call: Any = None
    outcome: SampleBatch | RemoteError | None = None
    failures: list[str] = field(default_factory=list)


class Asking:
    """One stream of requests.

    Args:
        crew: who may be asked.
        requests: taken from only as far as there are workers for them.
        targets: that the answers must have.
        timeout: seconds without any worker, or without a sample from one, that are waited for.
    """

    def __init__(self, crew: Crew, requests: Iterator[Request], targets: tuple[Target, ...], timeout: float) -> None:
        self._crew, self._transport = crew, crew.transport
        self._requests, self._targets, self._timeout = requests, targets, timeout
        self._window: deque[_Pending] = deque()
        self._news = _News()

    def answers(self) -> Iterator[SampleBatch]:
        """The answers, in the order of the requests.

        Raises:
            RemoteError: nobody is there to ask, or the next request failed with `_TRIES` workers or cannot be made.
        """
        more = True
        waiting = Waiting()
        hope = time.monotonic()  # when there was last somebody to ask, or an answer
        try:
            while True:
                workers = self._crew.workers()
                # Workers of a cluster that is away may answer, but that they are known is no reason to wait for them.
                if workers and self._crew.is_reachable:
                    hope = time.monotonic()
                elif time.monotonic() - hope > self._timeout:
                    raise RemoteError(f"no samples for {self._timeout:.0f} s: {self._crew.nobody()}")
                room = max(1, min((_EACH + 1) * len(workers), _MOST))
                while more and len(self._window) < room:
                    request = next(self._requests, None)
                    if request is None:
                        more = False
                    else:
                        self._window.append(_Pending(request))
                if not self._window:
                    return
                self._hand_out(workers)
                first = self._window[0]
                self._collect(0 if first.outcome is not None else _TICK)
                if first.outcome is None:
                    waiting.show(self._what_for(first))
                    self._look_after(first)
                    continue
                if isinstance(first.outcome, RemoteError):
                    raise first.outcome
                waiting.over()
                self._window.popleft()
                yield first.outcome
                hope = time.monotonic()
        finally:
            waiting.over()
            self._transport.drop([pending.call for pending in self._window if pending.call is not None])

    def _hand_out(self, workers: list[str]) -> None:
        """Give requests that nobody has to those with the fewest."""
        load = Counter(pending.worker for pending in self._window if pending.call is not None)
        for pending in self._window:
            if pending.call is None and pending.outcome is None:
                worker = min(workers, key=lambda each: load[each], default=None)
                if worker is None or load[worker] >= _EACH:
                    return
                try:
                    pending.call = self._transport.ask(worker, pending.request)
                except WorkerLost as error:
                    self._lose(worker, str(error))
                    workers = [each for each in workers if each != worker]
                    continue
                pending.worker = worker
                load[worker] += 1
                self._news.begin(worker)

    def _collect(self, timeout: float) -> None:
        """Take what has come, waiting for the first a little."""
        calls = {pending.call: pending for pending in self._window if pending.call is not None}
        if not calls:
            time.sleep(timeout)
            return
        for call in self._transport.wait(list(calls), timeout):
            pending = calls[call]
            worker = pending.worker
            if pending.call is not call or worker is None:
                continue  # its worker was lost a moment ago
            try:
                answer = self._transport.answer(call)
            except WorkerLost as error:
                self._lose(worker, str(error))
                continue
            pending.worker = pending.call = None
            self._news.came(worker)
            self._take(pending, worker, answer)

    def _take(self, pending: _Pending, worker: str, answer: Mapping[str, Any]) -> None:
        who = f"worker {self._crew.name(worker)}"
        if "error" not in answer:
            try:
                pending.outcome = unpack(answer["samples"], pending.request, self._targets)
            except RemoteError as error:
                pending.outcome = RemoteError(f"{who}: {error}")
        elif answer["elsewhere"]:
            self._failed(pending, worker, answer["error"])
            self._crew.rest(worker, answer["error"])
        else:
            pending.outcome = RemoteError(f"{who} cannot make {pending.request.what}: {answer['error']}")

    def _lose(self, worker: str, why: str, seconds: float | None = None) -> None:
        """Whatever this worker had is to be asked of others."""
        self._crew.rest(worker, why, seconds)
        for pending in self._window:
            if pending.worker == worker:
                self._transport.drop([pending.call])
                pending.worker = pending.call = None
                self._failed(pending, worker, why)

    def _failed(self, pending: _Pending, worker: str, why: str) -> None:
        pending.failures.append(f"worker {self._crew.name(worker)}: {why}")
        if len(pending.failures) >= _TRIES:
            pending.outcome = RemoteError(
                f"{_TRIES} workers in turn failed at {pending.request.what}; the last, {pending.failures[-1]}. Do they "
                "have enough memory? Fewer on a machine: `dsgan serve --cpus-per-worker`. `dsgan serve` and the logs "
                "of Ray say more; a saved state continues"
            )

    def _look_after(self, first: _Pending) -> None:
        """Give up a worker that keeps a stream waiting and makes nothing. One that is busy for others is waited for."""
        worker = first.worker
        if worker is None or not self._news.is_due(worker):
            return
        silence = self._news.ask(worker, self._transport.status(worker, _ASK_FOR))
        if silence > self._timeout:
            why = f"made nothing for {silence:.0f} s"
            warnings.warn(f"remote worker {self._crew.name(worker)} {why}: others are asked", stacklevel=2)
            self._lose(worker, why, self._timeout)

    def _what_for(self, first: _Pending) -> str:
        if first.worker is not None:
            return f"waiting for worker {self._crew.name(first.worker)}"
        return f"waiting for a worker on {self._transport.place}: dsgan serve {self._crew.checkpoint}"


class _News:
    """When each worker was last known to make samples."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        self._made: dict[str, Any] = {}

    def begin(self, worker: str) -> None:
        """It was given something; one that was idle before has its time from now on."""
        self._last[worker] = self._asked[worker] = time.monotonic()

    came = begin

    def is_due(self, worker: str) -> bool:
        """Whether it should be asked how it is."""
        return time.monotonic() - self._asked[worker] > _ASK_AFTER

    def ask(self, worker: str, status: Any) -> float:
        """Note what it says, if anything; seconds for which it has made nothing."""
        now = self._asked[worker] = time.monotonic()
        made = None if status is None else status["samples"]
        if made is not None and made != self._made.get(worker):
            self._made[worker], self._last[worker] = made, now
        return now - self._last[worker]
