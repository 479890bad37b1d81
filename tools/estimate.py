"""`--dry-run`: what a long command would take on this machine, from small runs of it."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dsgan_datasets.files import is_file
from dsgan_datasets.tools import options

#: Samples of the first run. The next ones have four times as many each, until one takes so many seconds.
_FIRST, _LONG_ENOUGH = 4, 3.0
#: Seconds by which a longer run must differ.
_CLEAR = 1.0


class Estimate(NamedTuple):
    """What a command would take.

    Attributes:
        num_samples: of the whole command.
        samples_per_second: on this machine, in one process.
        bytes_per_sample: of what it writes.
        noun: what a sample is called.

    Example:
        >>> Estimate(3600, 2.0, 10_000).rows()
        {'samples': '3,600', 'speed': '2.00 samples/s', 'time': '30 min', 'size': '36.0 MB'}
    """

    num_samples: int
    samples_per_second: float
    bytes_per_sample: float
    noun: str = "sample"

    @property
    def seconds(self) -> float:
        """Of the whole command."""
        return self.num_samples / self.samples_per_second

    @property
    def bytes(self) -> int:
        """Of all that it writes."""
        return round(self.num_samples * self.bytes_per_sample)

    def rows(self) -> dict[str, str]:
        """For people."""
        return {
            f"{self.noun}s": f"{self.num_samples:,}",
            "speed": f"{self.samples_per_second:.2f} {self.noun}s/s",
            "time": duration(self.seconds),
            "size": size(self.bytes),
        }


def duration(seconds: float) -> str:
    """For people.

    Example:
        >>> duration(30), duration(90), duration(9000)
        ('under a minute', '2 min', '2.5 h')
    """
    minutes = seconds / 60
    short = f"{minutes:.0f} min" if minutes >= 1 else "under a minute"
    return f"{minutes / 60:,.1f} h" if minutes >= 60 else short


def size(count: float) -> str:
    """Bytes for people.

    Example:
        >>> size(2_500_000), size(3e9)
        ('2.5 MB', '3.0 GB')
    """
    megabytes = count / 1e6
    return f"{megabytes / 1e3:,.1f} GB" if megabytes >= 1e3 else f"{megabytes:.1f} MB"


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """The option; a command that has it measures itself and shows what it found."""
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="write nothing, and estimate from a small run how fast this machine is, how long the command would take, "
        "and how much it would write",
    )


def measure(
    num_samples: int,
    write: Callable[[Path, int], object],
    *,
    unit: int = 1,
    first: int = _FIRST,
    noun: str = "sample",
) -> Estimate:
    """Run a command with few samples, then with more. What a run costs beside its samples cancels out.

    Args:
        num_samples: of the command that is estimated.
        write: writes that many samples into a folder that it creates.
        unit: samples are made in multiples of this (view groups).
        first: samples of the first run.
        noun: what a sample is called.
    """
    few = more = min(first * unit, num_samples)
    begun = last = run_once(write, few)
    while more < num_samples and (more == few or last[0] < _LONG_ENOUGH):
        more = min(4 * more, num_samples)
        last = run_once(write, more)
    count, seconds, written = more - few, last[0] - begun[0], last[1] - begun[1]
    if count == 0 or seconds < last[0] / 4:  # so few in all, or something held up the first run
        count, (seconds, written) = more, last
    return Estimate(num_samples, count / seconds, written / count, noun)


def rate(seconds_of: Callable[[int], float], first: int, most: int) -> tuple[float, float]:
    """Seconds of a run of `first` units, and units a second of longer ones.

    The second run is lengthened until it takes clearly longer than the first one: other work on the machine moves both.
    If even `most` units do not, they count as what their whole run took, which is too slow rather than too fast.

    Args:
        seconds_of: seconds of a run of so many units.
        first: units of the first run.
        most: units of the command that is estimated.

    Example:
        >>> rate(lambda units: 10 + units / 50, 15, 1500)
        (10.3, 50.0)
    """
    begun, more, seconds = seconds_of(first), first, 0.0
    while more < most:
        more = min(4 * more, most)
        seconds = seconds_of(more)
        if seconds - begun >= max(_CLEAR, begun / 4):
            return begun, (more - first) / (seconds - begun)
    return begun, more / max(seconds, begun)


def run_once(write: Callable[[Path, int], object], count: int) -> tuple[float, int]:
    """Seconds and bytes that a command takes for so many samples; what it writes is removed."""
    with tempfile.TemporaryDirectory(prefix="dsgan-dry-run-") as folder:
        began = time.perf_counter()
        write(Path(folder) / "out", count)
        seconds = time.perf_counter() - began
        return seconds, sum(file.stat().st_size for file in Path(folder).rglob("*") if is_file(file))


def show(estimate: Estimate, args: argparse.Namespace) -> None:
    """Print it, as JSON if asked to."""
    if getattr(args, "json", False):
        options.print_json({**estimate._asdict(), "seconds": estimate.seconds, "bytes": estimate.bytes})
        return
    options.print_rows(estimate.rows())
    print(f"estimated from a few {estimate.noun}s on this machine, in one process; nothing was written")
