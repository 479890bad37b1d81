"""A line on stderr while a wait takes long, with the seconds."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

#: Seconds of a wait after which it shows.
_SHOW_AFTER = 10.0


class Waiting:
    """What is waited for; ``show`` at every turn, ``over`` at the end."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._bar: tqdm[Any] | None = None

    def show(self, what: str) -> None:
        """The wait continues."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if self._bar is None and now - self._since > _SHOW_AFTER:
            often = 1 if sys.stderr.isatty() else 30  # in a log each time is a line
            self._bar = tqdm(bar_format="{desc}, {elapsed}", leave=False, mininterval=often, miniters=0)
        if self._bar is not None:
            self._bar.set_description_str(what, refresh=False)
            self._bar.update(0)

    def over(self) -> None:
        """It has ended, or there was none."""
        self._since = None
        if self._bar is not None:
            self._bar.close()
            self._bar = None
