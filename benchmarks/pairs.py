"""The same measurement in this checkout and in another one: interleaved pairs of processes, median of their ratios.

A benchmark that offers `--baseline CHECKOUT` calls `add_options`, and after parsing `run_pairs`. The measurement itself
has to work with the library of both checkouts. It runs in a fresh process each time, which imports the library from the
checkout that is measured; both must give the same results, but for their last bits, which a version may change.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from measuring import BenchmarkError, cpu_name, progress, write_report
from torch import Tensor

HERE = Path(__file__).resolve().parent.parent
TARGET = 0.97


class Measurement(NamedTuple):
    """What a process found.

    Attributes:
        seconds: case -> seconds, without imports and warm-up.
        moments: of the results, from `moments`.
    """

    seconds: dict[str, float]
    moments: list[list[float]]


def moments(results: Iterable[Tensor]) -> list[list[float]]:
    """Of each tensor the number of its values, their mean, and the mean of their squares."""
    flat = [tensor.detach().cpu().double().flatten() for tensor in results]
    return [[float(len(values)), float(values.mean()), float(values.square().mean())] for values in flat]


def _alike(a: list[list[float]], b: list[list[float]]) -> bool:
    """Whether moments differ by a thousandth at most; a level of an image here and there changes far less."""
    numbers = [[number for tensor in moments for number in tensor] for moments in (a, b)]
    near = (math.isclose(x, y, rel_tol=1e-3, abs_tol=1e-6) for x, y in zip(*numbers, strict=False))
    return len(a) == len(b) and all(near)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --baseline and --pairs."""
    text = f"another checkout to compare with, side by side; --check then wants {TARGET} of its speed in each case"
    parser.add_argument("--baseline", type=Path, metavar="CHECKOUT", help=text)
    parser.add_argument("--pairs", type=int, default=5, help="of processes, with --baseline (default: %(default)s)")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)  # a process of a pair


def run_pairs(args: argparse.Namespace, arguments: Sequence[str], measure: Callable[[], Measurement]) -> int | None:
    """Measure or compare, if that is what the options ask for; the exit status, or None if they do not.

    Args:
        args: parsed options.
        arguments: what they were parsed from.
        measure: measures in this process.
    """
    if args.once:
        found = measure()
        library = [m.__file__ for n, m in sys.modules.items() if n.partition(".")[0] == "dsgan_datasets" and m.__file__]
        print(json.dumps({"library": library, "seconds": found.seconds, "moments": found.moments}))
        return 0
    if args.baseline is None:
        return None
    try:
        ratios = compare(arguments, args.baseline.resolve(), args.pairs)
    except BenchmarkError as error:
        progress(f"FAILED: {error}")
        return 1
    print(f"speed relative to {args.baseline}, median of {args.pairs} pairs:")
    for case, values in ratios.items():
        print(f"  {case:<24}{statistics.median(values):.3f}   ({', '.join(f'{value:.3f}' for value in values)})")
    if args.out is not None:
        medians = {case: round(statistics.median(values), 3) for case, values in ratios.items()}
        report = {"cpu": cpu_name(), "pairs": args.pairs, "medians": medians, "ratios": ratios}
        write_report(args.out, report)
    missed = [case for case, values in ratios.items() if not statistics.median(values) >= TARGET]
    for case in missed:
        progress(f"target missed: {case} is below {TARGET}")
    return 1 if missed and args.check else 0


def compare(arguments: Sequence[str], baseline: Path, pairs: int) -> dict[str, list[float]]:
    """Case -> for each pair the seconds of the baseline divided by those of this checkout; above 1 this one is faster.

    Raises:
        BenchmarkError: a process fails, measures another library, or the results of the checkouts differ.
    """
    ratios: dict[str, list[float]] = {}
    for pair in range(pairs):
        order = (HERE, baseline) if pair % 2 else (baseline, HERE)  # the second may find a warmer or busier machine
        found = {checkout: _process(checkout, arguments) for checkout in order}
        ours, theirs = found[HERE], found[baseline]
        if not _alike(ours.moments, theirs.moments):
            raise BenchmarkError(f"{baseline} gives other results")
        for case, seconds in ours.seconds.items():
            ratios.setdefault(case, []).append(theirs.seconds[case] / seconds)
        progress(
            f"pair {pair + 1}/{pairs}: " + ", ".join(f"{case} {values[-1]:.3f}" for case, values in ratios.items())
        )
    return ratios


def _process(checkout: Path, arguments: Sequence[str]) -> Measurement:
    command = [sys.executable, "-W", "ignore", sys.argv[0], *arguments, "--once"]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchmarkError(f"the measurement in {checkout} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    # adapters/ and tools/ of a checkout are found with `make links`; without, they may be those that are installed.
    if foreign := [file for file in found["library"] if checkout not in Path(file).resolve().parents]:
        raise BenchmarkError(f"{checkout} was to be measured, but {foreign[0]} was imported: run `make links` in it")
    return Measurement(found["seconds"], found["moments"])
