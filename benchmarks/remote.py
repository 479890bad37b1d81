"""What samples cost that other processes make, and whether they stay the same while workers are killed.

- speed: two workers of one core each and a trainer, against one process on the same two cores, in interleaved runs;
- carrying: the same path for samples that cost nothing to make, so that what is left is packing, Ray and unpacking;
- kills: `dsgan serve` keeps two workers alive, one of which gets SIGKILL every few seconds, while a trainer reads on.

Every sample of the last part, and some of the first, are compared, bit for bit, with those that are generated here. A
sample that is changed, missing or doubled is a fault; then nothing is written.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from measuring import BenchmarkError, conclude, cpu_name, median_interval, progress

from dsgan_datasets import DSGANIterableDataset, LabeledGenerator, Sample
from dsgan_datasets.remote import RemoteSource, serve
from dsgan_datasets.remote.messages import pack, size_of
from dsgan_datasets.remote.ray_cluster import Workers
from dsgan_datasets.samples import SampleBatch
from dsgan_datasets.sources import SampleSource

EXAMPLE = "example: python benchmarks/remote.py --out benchmarks/results/remote.json     # ten minutes on two cores"
CHECKPOINT, WORKERS = "demo-faces", 2
#: Workers that are killed at least, however long it takes.
KILLS = 2
#: Samples that the workers are asked for at once: when they have come, no open request has met an earlier kill.
ON_THE_WAY = WORKERS * 32
#: Sides of images whose carrying is timed.
SIDES = (64, 256, 1024)
#: Bytes of samples that are carried for a figure.
CARRIED = 1 << 28
Result = dict[str, Any]


class Ready(LabeledGenerator):
    """Its samples cost nothing: all are the same picture."""

    side: int

    def stream(self, indices: Iterable[int], **_: Any) -> Iterator[Sample]:  # type: ignore[override]
        """The picture under these numbers."""
        image = torch.zeros(3, self.side, self.side, dtype=torch.uint8)
        mask = torch.zeros(self.side, self.side, dtype=torch.int64)
        for index in indices:
            yield Sample({"image": image, "mask": mask, "index": torch.tensor(index), "attempt": torch.tensor(0)})

    def generate(self, indices: Collection[int], **_: Any) -> SampleBatch:  # type: ignore[override]
        """As `stream`."""
        return SampleBatch.stack(list(self.stream(indices)))


def loaded(kind: type[LabeledGenerator] = LabeledGenerator) -> LabeledGenerator:
    """The checkpoint on the CPU."""
    return kind.from_pretrained(CHECKPOINT, device="cpu")


@contextmanager
def cluster() -> Iterator[str]:
    """Address of a Ray cluster of this machine, with a core for each worker."""
    import ray

    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]))
    ray.init(
        address="local",
        num_cpus=WORKERS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


@contextmanager
def served(labeled: LabeledGenerator) -> Iterator[None]:
    """Workers that are ready, for the length of a block; nobody keeps them alive."""
    reports = serve(labeled, CHECKPOINT, workers=WORKERS)
    while len(next(reports).running) < WORKERS:
        pass
    try:
        yield
    finally:
        reports.close()


def same(got: Sample, expected: Sample) -> bool:
    """Whether two samples are equal, bit for bit."""
    return got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in expected)


def drain(dataset: DSGANIterableDataset) -> float:
    """Seconds for all samples of a dataset, each looked at."""
    started = time.perf_counter()
    for sample in dataset:
        sample.mask.sum().item()
    return time.perf_counter() - started


def speed(samples: int, runs: int) -> Result:
    """Two workers and a trainer, against one process."""
    labeled, source = loaded(), RemoteSource(CHECKPOINT)
    ways: dict[str, SampleSource] = {"one process": labeled, "two workers": source}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with served(loaded()):
        for got, expected in zip(source.stream(range(64)), labeled.stream(range(64)), strict=True):
            if not same(got, expected):
                raise BenchmarkError(f"sample {int(expected.index)} differs from local generation")
        for run in range(runs):
            for name in list(ways)[:: 1 if run % 2 else -1]:
                seconds[name].append(drain(DSGANIterableDataset(ways[name], length=samples, seed=run)))
            progress(f"speed: run {run + 1} of {runs}")
    pairs = list(zip(seconds["one process"], seconds["two workers"], strict=True))
    ratios, extra = [a / b for a, b in pairs], [(b - a) / samples * 1000 for a, b in pairs]
    return {
        "samples": samples,
        "image": list(labeled.image_size),
        "samples_per_second": {name: round(samples / statistics.median(s), 1) for name, s in seconds.items()},
        "seconds": {name: [round(value, 3) for value in s] for name, s in seconds.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratio_interval": [round(value, 3) for value in median_interval(ratios)],
        "overhead_ms_per_sample": round(statistics.median(extra), 3),
        "overhead_ms_interval": [round(value, 3) for value in median_interval(extra)],
        "bytes_per_sample": size_of(pack(labeled.generate(range(8)))) // 8,
    }


def carrying() -> Result:
    """What is left if samples cost nothing to make."""
    found = {}
    for side in SIDES:
        ready = cast(Ready, loaded(Ready))
        ready.side = side
        size = size_of(pack(ready.generate(range(8)))) // 8
        samples = max(CARRIED // size, 64)
        source = RemoteSource(CHECKPOINT, request_size=max(1, min(32, (1 << 24) // size)))
        with served(ready):
            list(source.stream(range(64)))
            started = time.perf_counter()
            for number, sample in enumerate(source.stream(iter(range(samples)))):
                if int(sample.index) != number:
                    raise BenchmarkError(f"sample {int(sample.index)} came in place of {number}")
            seconds = time.perf_counter() - started
        found[str(side)] = {
            "samples": samples,
            "bytes_per_sample": size,
            "ms_per_sample": round(seconds / samples * 1000, 3),
            "megabytes_per_second": round(samples * size / seconds / 1e6, 1),
        }
        progress(f"carrying {side}²: {found[str(side)]['ms_per_sample']} ms a sample")
    return found


def kills(address: str, seconds: float, every: float) -> Result:
    """Read and compare for a while, in which workers of `dsgan serve` are killed."""
    command = [sys.executable, "-m", "dsgan_datasets.tools.cli", "serve", CHECKPOINT, "--workers", str(WORKERS)]
    serving = subprocess.Popen([*command, "--address", address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    over, struck, faults = threading.Event(), list[str](), list[str]()
    read = changed = missing = wanted = 0
    longest = started = 0.0

    def enough() -> bool:
        return time.perf_counter() - started >= seconds and len(struck) >= KILLS

    def strike() -> None:
        nonlocal wanted
        import ray

        workers, draw = Workers(ray), random.Random(0)
        while not over.wait(every):
            if enough() or read < wanted:
                continue  # on a busy machine a worker needs longer to start, and a request is given up after four
            names = sorted(facts["name"] for facts in workers.look().values() if facts is not None)
            if names:
                name, wanted = draw.choice(names), read + ON_THE_WAY
                os.kill(int(name.rpartition(":")[2]), signal.SIGKILL)
                struck.append(name)
                progress(f"killed {name} of {len(names)}, {read} samples so far")

    try:
        here = loaded().stream(itertools.count())
        there = iter(DSGANIterableDataset(RemoteSource(CHECKPOINT)))
        first = next(there)  # when the workers are ready
        changed += not same(first, next(here))
        started = last = time.perf_counter()
        killer = threading.Thread(target=strike, daemon=True)
        killer.start()
        while killer.is_alive() and not (enough() and read >= wanted):  # the last kill, too, is survived
            got = next(there)
            now = time.perf_counter()
            longest = max(longest, now - last)
            expected = next(here)
            read += 1
            if int(got.index) != read:
                missing = abs(int(got.index) - read)
                faults.append(f"sample {int(got.index)} came in place of {read}")
                break
            changed += not same(got, expected)
            last = time.perf_counter()
        over.set()
        killer.join(60)
        there.close()  # type: ignore[attr-defined]
        serving.send_signal(signal.SIGTERM)
        status = serving.wait(60)
        if status != 128 + signal.SIGTERM:
            faults.append(f"dsgan serve ended with status {status} after SIGTERM")
    finally:
        serving.kill()
    if changed:
        faults.append(f"{changed} samples differ from local generation")
    if len(struck) < KILLS:
        faults.append(f"{len(struck)} workers were killed, not {KILLS}")
    return {
        "seconds": seconds,
        "every": every,
        "kills": len(struck),
        "samples": read + 1,
        "changed": changed,
        "missing": missing,
        "longest_wait_seconds": round(longest, 2),
        "faults": faults,
    }


def main() -> int:
    """Measure, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=1500, help="of a timed run (default: 1500)")
    parser.add_argument("--runs", type=int, default=7, help="interleaved pairs; 0 leaves the timing out (default: 7)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=300,
        help=f"of killing, longer if less than {KILLS} workers were killed; 0 leaves it out (default: 300)",
    )
    parser.add_argument("--every", type=float, default=10, help="seconds between kills (default: 10)")
    parser.add_argument(
        "--out", type=Path, help="JSON file for the result; parts that are left out stay as they are there"
    )
    args = parser.parse_args()
    import ray

    result: Result = {
        "benchmark": "remote",
        "device": cpu_name(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "ray": ray.__version__,
        "checkpoint": CHECKPOINT,
        "workers": WORKERS,
        "faults": [],
    }
    try:
        with cluster() as address:
            if args.runs:
                result |= {"speed": speed(args.samples, args.runs), "carrying": carrying()}
            if args.seconds:
                result["killing"] = kills(address, args.seconds, args.every)
                result["faults"] = result["killing"].pop("faults")
    except BenchmarkError as error:
        print(f"benchmark failed: {error}", file=sys.stderr)
        return 1
    if "speed" in result:
        found = result["speed"]
        print(f"samples/s: {found['samples_per_second']}; ratio {found['ratio']} {found['ratio_interval']}")
        print(f"overhead: {found['overhead_ms_per_sample']} ms a sample of {found['bytes_per_sample']} bytes")
    if "killing" in result:
        found = result["killing"]
        print(f"{found['kills']} kills, longest wait {found['longest_wait_seconds']} s")
        print(f"{found['samples']} samples: {found['changed']} changed, {found['missing']} missing")
    if args.out is not None and args.out.exists():
        result = {**json.loads(args.out.read_text()), **result}
    return conclude(result, "faults", args.out, "every sample is as generated here")


if __name__ == "__main__":
    sys.exit(main())
