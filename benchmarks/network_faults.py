"""Reads and verifies shards through a web server that fails in every way: right samples, or one error of ours.

tests/fault_server.py drops connections, truncates, stalls, is silent or slow, answers with 4xx and 5xx, pages, circles
and garbage, ignores ranges, gives other ranges or other bytes, compresses, and does not end. Each fault hits tars or
the manifest, at once or after some requests, once or from then on. The set is read as a stream, by number, and
verified, with credentials in the URL. Another error than ShardError or OSError, a wrong sample, an error without the
URL or with a credential in it or its causes, more than half a minute, or more than 1 GB of memory is a violation: the
run then exits with 1.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # this checkout, as in the tests, whatever else is installed

from fault_server import FAULTS, Fault, FaultServer  # noqa: E402
from measuring import PeakMemory, conclude, cpu_name  # noqa: E402
from tqdm import tqdm  # noqa: E402

from dsgan_datasets import (  # noqa: E402
    LabeledGenerator,
    Sample,
    ShardDataset,
    ShardError,
    ShardMapDataset,
    verify_shards,
    write_shards,
)

EXAMPLE = "example: python benchmarks/network_faults.py --faults 200 --out benchmarks/results/network_faults.json"
SAMPLES, SAMPLES_PER_SHARD = 9, 3
PATIENCE, LONGEST, LARGEST = 0.5, 30.0, 1 << 30
USER, SIGNATURE = "someone:pa55word", "s1gnature"

Result = dict[str, Any]
#: Fault, end of the names of the files that it hits, honest answers before it, whether it comes once.
Case = tuple[Fault, str, int, bool]


def same(a: Sample, b: Sample) -> bool:
    """Whether two samples are equal, bit for bit."""
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def readings(url: str, original: Sequence[Sample]) -> dict[str, Callable[[], str]]:
    """Ways to read a set; each says what is wrong with what it got, or nothing."""

    def as_stream() -> str:
        found = list(ShardDataset(url))
        right = len(found) == len(original) and all(map(same, found, original))
        return "" if right else f"{len(found)} samples that are not the original ones"

    def by_number() -> str:
        dataset = ShardMapDataset(url)
        wrong = [i for i in (4, 0, len(original) - 1) if not same(dataset[i], original[i])]
        return f"samples {wrong} are not the original ones" if wrong else ""

    def verified() -> str:
        verify_shards(url)  # a server that gives other bytes, or says that there is no file, is believed
        return ""

    return {"stream": as_stream, "by number": by_number, "verify": verified}


def try_out(read: Callable[[], str], address: str) -> tuple[str, list[str]]:
    """ "right" or "refused", and violations."""
    started = time.monotonic()
    with PeakMemory(0.005) as memory:
        try:
            wrong = read()
            outcome, violations = "right", [wrong] if wrong else []
        except (ShardError, OSError) as error:
            outcome, violations = "refused", []
            printed = "".join(traceback.format_exception(error))
            if address not in str(error):
                violations.append(f"an error without the URL: {error}")
            if any(secret in printed for secret in (*USER.split(":"), SIGNATURE)):
                violations.append("an error with credentials")
        except Exception as error:
            outcome, violations = "refused", [f"{type(error).__module__}.{type(error).__name__}: {error}"]
    if (seconds := time.monotonic() - started) > LONGEST:
        violations.append(f"{seconds:.0f} s")
    if (growth := memory.peak - memory.before) > LARGEST:
        violations.append(f"{growth >> 20} MB more memory")
    return outcome, violations


def run(faults: int, seed: int) -> Result:
    """Try a number of faults; the result counts outcomes by fault."""
    os.environ["DSGAN_TIMEOUT"] = str(PATIENCE)
    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    counts: dict[str, Counter[str]] = {}
    violations: list[str] = []
    rest: list[Case] = list(itertools.product(FAULTS, (".tar", "manifest.json"), (0, 1, 3), (False, True)))
    Random(seed).shuffle(rest)
    cases: list[Case] = [(fault, ".tar", 0, False) for fault in FAULTS]  # every fault, whatever their number
    cases = list(itertools.islice(itertools.cycle(cases + rest), faults))
    with tempfile.TemporaryDirectory(prefix="dsgan-network-") as scratch, tqdm(total=faults, unit="fault") as bar:
        write_shards(labeled, Path(scratch) / "set", range(SAMPLES), samples_per_shard=SAMPLES_PER_SHARD)
        original = list(ShardDataset(Path(scratch) / "set"))
        for fault, of, after, once in cases:
            row = counts.setdefault(fault.__name__, Counter())
            row["faults"] += 1
            for name in readings("", original):
                with FaultServer(Path(scratch), fault, of=of, after=after, once=once) as server:
                    address = f"127.0.0.1:{server.server_port}/set"
                    read = readings(f"http://{USER}@{address}?sig={SIGNATURE}", original)[name]
                    outcome, wrong = try_out(read, address)
                row[outcome] += 1
                violations += [f"{fault.__name__} of {of} after {after}, {name}: {text}" for text in wrong]
            bar.update(1)
    outcomes = sum(counts.values(), Counter())
    return {
        "benchmark": "network_faults",
        "fingerprint": labeled.fingerprint,
        "device": cpu_name(),
        "torch": torch.__version__,
        "seed": seed,
        "faults": faults,
        "readings": outcomes["right"] + outcomes["refused"],
        "right": outcomes["right"],
        "refused": outcomes["refused"],
        "violations": violations[:100],
        "by_fault": {name: dict(sorted(row.items())) for name, row in sorted(counts.items())},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Fail, report, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--faults", type=int, default=200, help="faults, each read in three ways (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of their order (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args(arguments)
    result = run(args.faults, args.seed)
    for name, row in result["by_fault"].items():
        print(f"{row['faults']:5} faults {row.get('right', 0):5} right {row.get('refused', 0):5} refused   {name}")
    return conclude(result, "violations", args.out)


if __name__ == "__main__":
    sys.exit(main())
