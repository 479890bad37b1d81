"""How often a filter accepts a draw, measured once for a user and remembered by fingerprint.

A calibrated checkpoint stores its rate. For any other filter, such as one whose rules were changed on loading, the rate
is measured before the first filtered draw, and kept in the user's cache, so that the ranks and workers of a training
measure it once between them. Samples do not depend on it: it only bounds the attempts that an index may take.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import filelock
import platformdirs

from dsgan_datasets.files import atomic_write
from dsgan_datasets.filtering import Acceptance

#: Seconds that a process waits for another one that measures the same rate, before it measures for itself.
_PATIENCE = 600


def cache_folder() -> Path:
    """Where rates are kept: ``DSGAN_CACHE``, or the user's cache folder of the platform.

    Example:
        >>> cache_folder().name
        'acceptance'
    """
    return Path(os.environ.get("DSGAN_CACHE") or platformdirs.user_cache_path("dsgan_datasets")) / "acceptance"


def remembered(fingerprint: str, measure: Callable[[], Acceptance]) -> Acceptance:
    """The rate of a filter: the remembered one, or else a measured one, which is remembered.

    A cache that cannot be read or written is not an error: the rate is measured then.

    Args:
        fingerprint: of checkpoint and recipe.
        measure: measures the rate.
    """
    file = cache_folder() / f"{fingerprint}.json"
    if (known := _read(file)) is not None:
        return known
    lock = filelock.FileLock(file.with_suffix(".lock"), timeout=_PATIENCE)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, filelock.Timeout):
        return measure()
    try:
        known = _read(file) or measure()
        try:
            with atomic_write(file) as out:
                out.write(json.dumps(asdict(known)).encode())
        except OSError:
            pass
        return known
    finally:
        lock.release()


def _read(file: Path) -> Acceptance | None:
    try:
        found = Acceptance(**json.loads(file.read_text(encoding="utf-8")))
        usable = found.num_draws >= 1 and 0 <= found.jointly <= 1
        return found if usable else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None
