"""Who may be asked: the workers that are there, serve these very samples, and make them as the others do."""

from __future__ import annotations

import random
import threading
import time
import warnings
from collections.abc import Mapping
from typing import Any

from dsgan_datasets._version import __version__
from dsgan_datasets.remote.errors import RemoteError
from dsgan_datasets.remote.messages import difference
from dsgan_datasets.remote.transport import Transport

#: Seconds between two looks at who is there.
_LOOK_EVERY = 1.0
#: Seconds for which a worker that failed is left alone. One that is dead is not listed any more.
_REST = 30.0


class Crew:
    """The workers that serve a checkpoint, as one process sees them; they join and leave at any time.

    All of them must have the versions and the kind of device of the first that was found: the last bits of samples
    depend on these.

    Args:
        transport: finds them.
        fingerprint: of what they must serve.
        checkpoint: what it is called, for people.
    """

    def __init__(self, transport: Transport, fingerprint: str, checkpoint: str) -> None:
        self.transport, self.fingerprint, self.checkpoint = transport, fingerprint, checkpoint
        self._lock = threading.Lock()
        self._looked = -float("inf")
        self._known: dict[str, str | None] = {}  # id -> why it is not asked, None if it is
        self._names: dict[str, str] = {}
        self._others: dict[str, str] = {}  # fingerprint -> checkpoint, of what else is served
        self._resting: dict[str, float] = {}
        self._made_with: Mapping[str, Any] | None = None
        self._unreachable: str | None = None
        self._last_loss: str | None = None
        self._starting = 0

    def workers(self) -> list[str]:
        """Ids of those that may be asked now.

        Raises:
            RemoteError: all workers of this checkpoint are unfit, and were from the start; says why.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._looked >= _LOOK_EVERY:
                self._look()
                self._looked = time.monotonic()
            fit = [worker for worker, why in self._known.items() if why is None]
            if not fit and self._made_with is None and not self._starting and any(self._known.values()):
                raise RemoteError(self.nobody())
            return [worker for worker in fit if self._resting.get(worker, 0) <= now]

    def name(self, worker: str) -> str:
        """Machine and process of a worker."""
        return self._names.get(worker, worker)

    @property
    def is_reachable(self) -> bool:
        """Whether the cluster answered the last look at it."""
        return self._unreachable is None

    def rest(self, worker: str, why: str, seconds: float | None = None) -> None:
        """Ask this one nothing for a while, by default `_REST` seconds."""
        with self._lock:
            self._resting[worker] = time.monotonic() + (_REST if seconds is None else seconds)
            self._last_loss = f"worker {self.name(worker)}: {why}"

    def nobody(self) -> str:
        """Why there is nobody to ask, and what to do."""
        served = f"{self.checkpoint} (fingerprint {self.fingerprint[:8]})"
        facts = [f"nobody serves {served} on {self.transport.place}"]
        if self._unreachable is not None:
            facts.append(self._unreachable)
        facts += [f"worker {self.name(worker)} {why}" for worker, why in self._known.items() if why is not None]
        if self._last_loss is not None:
            facts.append(f"lost last: {self._last_loss}")
        if self._others:
            others = ", ".join(f"{name} ({print_[:8]})" for print_, name in self._others.items())
            facts.append(f"others are served: {others}; a recipe with other values is another fingerprint")
        return (
            f"{'; '.join(facts)}. Start workers with `dsgan serve {self.checkpoint}` and the options of this recipe; "
            "what was delivered stays valid, and a saved state continues"
        )

    def _look(self) -> None:
        try:
            there = self.transport.workers()
        except RemoteError as error:
            self._unreachable = str(error)
            return  # those that are known may still answer
        self._unreachable = None
        self._starting = sum(facts is None for facts in there.values())
        self._others = {
            facts["fingerprint"]: facts["checkpoint"]
            for facts in there.values()
            if facts is not None and facts["fingerprint"] != self.fingerprint
        }
        ours = {
            worker: facts
            for worker, facts in sorted(there.items())
            if facts is not None and facts["fingerprint"] == self.fingerprint
        }
        known = {worker: why for worker, why in self._known.items() if worker in ours}
        new = [worker for worker in ours if worker not in known]
        for worker in new:
            self._names[worker] = ours[worker]["name"]
            known[worker] = why = self._unfit(ours[worker])
            if why is not None:
                warnings.warn(f"remote worker {self.name(worker)} {why}: it is not asked", stacklevel=4)
        # Several trainers should not all begin with the same one.
        order = list(known.items())
        if new:
            random.shuffle(order)
        self._known = dict(order)

    def _unfit(self, facts: Mapping[str, Any]) -> str | None:
        """Why a worker may not be asked; None if it may."""
        version = facts["made_with"].get("dsgan_datasets")
        if facts["trouble"] is not None:
            return f"cannot work: {facts['trouble']}"
        if version != __version__:
            return f"has dsgan_datasets {version}, not {__version__}: install the same version on both sides"
        if self._made_with is None:
            self._made_with = facts["made_with"]
        if (what := difference(facts["made_with"], self._made_with)) is not None:
            return f"has {what} as the others; the last bits of its samples would differ: serve with one kind only"
        return None
