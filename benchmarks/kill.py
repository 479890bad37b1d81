"""Kills the shard writer again and again, at the worst moments, and compares what is left with an undisturbed run.

A writer is forked from this process, which has imported everything, and gets SIGKILL at a moment of a given kind:
between two tar entries, before a flush to the disk, before or after a rename, while plan, entries or manifest are
written, or at any time. Then the next one goes on in the same folder, until one is left alone and finishes. At every
step a file under a final name must be whole, and in the end folder and bytes must be those of a run that was never
killed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import cpu_name, progress, write_report

from dsgan_datasets import LabeledGenerator, write_shards

EXAMPLE = "example: python benchmarks/kill.py --kills 1000 --out benchmarks/results/kill.json"
SAMPLES, SAMPLES_PER_SHARD, SEED = 10, 4, 3
#: Kills before a writer is left alone; each comes upon what the others left.
KILLS_A_FOLDER = 4


def write(labeled: LabeledGenerator, folder: Path) -> None:
    """The work that is interrupted: three shards, the last one shorter."""
    write_shards(labeled, folder, range(SAMPLES), seed=SEED, samples_per_shard=SAMPLES_PER_SHARD, workers=2)


# Moments: each wraps a call that the writer makes, and tells a counter about it


def between_tar_entries(strike: Callable[[], None]) -> None:
    add = tarfile.TarFile.addfile

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        strike()
        add(self, *args, **kwargs)

    tarfile.TarFile.addfile = wrapped  # type: ignore[method-assign]


def before_flush(strike: Callable[[], None]) -> None:
    fsync = os.fsync

    def wrapped(descriptor: int) -> None:
        strike()
        fsync(descriptor)

    os.fsync = wrapped  # type: ignore[assignment]


def around_rename(strike: Callable[[], None], *, before: bool, manifest: bool) -> None:
    replace = os.replace

    def wrapped(source: Any, target: Any) -> None:
        counts = (Path(target).suffix == ".json") == manifest
        if counts and before:
            strike()
        replace(source, target)
        if counts and not before:
            strike()

    os.replace = wrapped  # type: ignore[assignment]


def in_a_description(strike: Callable[[], None]) -> None:
    """While plan, entry, index or manifest are half written under their temporary name."""
    written = Path.open

    def wrapped(self: Path, *args: Any, **kwargs: Any) -> Any:
        file = written(self, *args, **kwargs)
        if ".json." in self.name and args[:1] == ("xb",):
            write = file.write

            class Half:
                def __getattr__(self, name: str) -> Any:
                    return getattr(file, name)

                def __enter__(self) -> Half:
                    return self

                def __exit__(self, *error: object) -> None:
                    file.close()

                def write(self, content: bytes) -> int:
                    write(content[: len(content) // 2])
                    file.flush()
                    strike()
                    return int(write(content[len(content) // 2 :]))

            return Half()
        return file

    Path.open = wrapped  # type: ignore[assignment,method-assign]


MOMENTS: dict[str, Callable[[Callable[[], None]], None]] = {
    "between tar entries": between_tar_entries,
    "before fsync": before_flush,
    "before renaming a shard": lambda strike: around_rename(strike, before=True, manifest=False),
    "after renaming a shard": lambda strike: around_rename(strike, before=False, manifest=False),
    "half-way through a description": in_a_description,
    "before renaming a description": lambda strike: around_rename(strike, before=True, manifest=True),
    "after renaming a description": lambda strike: around_rename(strike, before=False, manifest=True),
}
RANDOM = "any time"


def forked(
    labeled: LabeledGenerator, folder: Path, prepare: Callable[[], None], kill_after: float | None = None
) -> tuple[int, float]:
    """A writer in a child process, killed after so many seconds if it has not ended; (its wait status, seconds)."""
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # its progress bars
            torch.set_num_threads(1)
            prepare()
            write(labeled, folder)
            code = 0
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)  # nothing if it has ended: it is still to be waited for
    _, status = os.waitpid(child, 0)
    return status, time.monotonic() - started


def counting(kind: str, tally: Path) -> Callable[[], None]:
    """Lets a writer live and notes how often a kind of moment comes."""

    def strike() -> None:
        with tally.open("ab") as file:
            file.write(b".")

    return lambda: MOMENTS[kind](strike)


def killing(kind: str, at: int) -> Callable[[], None]:
    """Kills a writer at moment number `at` of a kind."""
    left = at

    def strike() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    return lambda: MOMENTS[kind](strike)


def content(folder: Path) -> dict[str, bytes]:
    """Every file in a folder and below."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def half_written(found: dict[str, bytes], reference: dict[str, bytes]) -> list[str]:
    """Files under a final name that are not what they should be."""
    return [name for name, data in found.items() if name in reference and data != reference[name]]


def run(kills: int, seed: int) -> dict[str, Any]:
    """Kill that often; the result says how it ended."""
    draw = random.Random(seed)
    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    done: Counter[str] = Counter()
    states: set[tuple[str, ...]] = set()
    faults: list[str] = []
    kinds = [*MOMENTS, RANDOM]
    with tempfile.TemporaryDirectory(prefix="dsgan-kill-") as scratch:
        root = Path(scratch)
        status, seconds = forked(labeled, root / "reference", lambda: None)
        if status != 0:
            raise SystemExit("the undisturbed writer failed")
        reference = content(root / "reference")
        chances = {}
        for kind in MOMENTS:
            forked(labeled, root / "counted", counting(kind, root / "tally"))
            if not (root / "tally").exists():
                raise SystemExit(f"no writer comes to the moment {kind!r}: the benchmark does not fit the writer")
            chances[kind] = (root / "tally").stat().st_size
            (root / "tally").unlink()
            shutil.rmtree(root / "counted")
        while sum(done.values()) < kills:
            folder = root / "killed"
            for _ in range(KILLS_A_FOLDER):
                if sum(done.values()) >= kills:
                    break
                kind = min(kinds, key=lambda k: (done[k], draw.random()))
                if kind == RANDOM:
                    status, _ = forked(labeled, folder, lambda: None, kill_after=draw.uniform(0, seconds))
                else:
                    status, _ = forked(labeled, folder, killing(kind, draw.randrange(chances[kind])))
                if status == 0:
                    break  # it was faster
                if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                    done[kind] += 1
                else:
                    faults.append(f"a writer failed by itself, to be killed {kind}")
                found = content(folder)
                states.add(tuple(sorted(found)))
                faults += [f"{name} is half written after a kill {kind}" for name in half_written(found, reference)]
            status, _ = forked(labeled, folder, lambda: None)
            if status != 0 or content(folder) != reference:
                faults.append(f"after {dict(done)} the set ended with status {status} and {sorted(content(folder))}")
            shutil.rmtree(folder)
            if len(faults) > 20:
                break
            progress(f"{sum(done.values())} of {kills} kills, {len(faults)} faults")
    return {
        "benchmark": "kill",
        "fingerprint": labeled.fingerprint,
        "samples": SAMPLES,
        "samples_per_shard": SAMPLES_PER_SHARD,
        "device": cpu_name(),
        "torch": torch.__version__,
        "seed": seed,
        "kills": dict(done),
        "kills_in_all": sum(done.values()),
        "different_sets_of_files_left": len(states),
        "faults": faults,
    }


def main() -> int:
    """Kill, report, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=1000, help="(default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    result = run(args.kills, args.seed)
    for kind, count in result["kills"].items():
        print(f"{count:6}  {kind}")
    print(f"{result['kills_in_all']:6}  in all, which left {result['different_sets_of_files_left']} sets of files")
    for fault in result["faults"]:
        print(f"FAULT  {fault}")
    if result["faults"]:
        return 1
    print("no file half written under its name; every set ended as one that was never killed")
    if args.out is not None:
        write_report(args.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
