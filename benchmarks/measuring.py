"""What the benchmarks share: the machine's name, peak memory, an interval for a median, reports that appear whole."""

from __future__ import annotations

import itertools
import math
import platform
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONFIDENCE = 0.95


class BenchmarkError(Exception):
    """The benchmark does not measure what it says it measures."""


def cpu_name() -> str:
    """Name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write a report, whole or not at all; its folder is made if need be."""
    from dsgan_datasets.files import write_json  # here: --baseline imports this module with another library

    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, report)


def conclude(result: dict[str, Any], wrong: str, out: Path | None, success: str = "") -> int:
    """Print what went wrong, else write the result; the exit status.

    Args:
        result: of a benchmark that counts.
        wrong: the entry that lists what must not happen, such as "faults".
        out: where to write a result without any; None for nowhere.
        success: printed if there are none.
    """
    for line in result[wrong]:
        print(f"{wrong.removesuffix('s').upper()}  {line}")
    if result[wrong]:
        return 1
    if success:
        print(success)
    if out is not None:
        write_report(out, result)
    return 0


def progress(message: str) -> None:
    """A line on stderr."""
    print(message, file=sys.stderr, flush=True)


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Order statistics that hold the median of a population with at least that probability, whatever its shape.

    The k-th smallest of n lies above the median with probability P(B < k), B binomial (n, 1/2).
    Source: Conover, "Practical Nonparametric Statistics", section on quantiles.
    """
    n, ordered = len(values), sorted(values)
    tails = list(itertools.accumulate(math.comb(n, k) / 2**n for k in range(n)))
    k = sum(tail <= (1 - confidence) / 2 for tail in tails)
    if k == 0:
        return -math.inf, math.inf
    return ordered[k - 1], ordered[n - k]


class PeakMemory:
    """Samples this process's resident memory while it is entered, every half millisecond by default.

    Needs psutil (`pip install "dsgan_datasets[test]"`).

    Not ru_maxrss: Linux hands the parent's on to its children, and it would hide whatever lies below an earlier peak.
    """

    def __init__(self, seconds: float = 0.0005) -> None:
        import psutil  # here, as most benchmarks run without it

        self._seconds = seconds
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> PeakMemory:
        self.before = self.peak = self._resident()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(self._seconds):
            self.peak = max(self.peak, self._resident())
        self.peak = max(self.peak, self._resident())

    def _resident(self) -> int:
        return int(self._process.memory_info().rss)
