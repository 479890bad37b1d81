"""Kills processes that write, repair and upload shards, at the worst moments, and compares what is left with the goal.

A worker is forked from this process, which has imported everything, and gets SIGKILL at a moment of a given kind:
between two tar entries, before a flush to the disk, before or after a rename or an upload, between two parts of an
upload, while plan, entries or manifest are written, or at any time. Then the next one resumes in the same place, until
one is left alone and finishes. At every step a file under a final name must be whole (or, when repairing, what it was
before). In the end the place must hold the bytes of a run that was never killed, and no unfinished upload.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from killing import Kills, Moments, Strike, around_rename, before_flush, failed, half_way_through_a_file
from measuring import conclude, cpu_name
from tqdm import tqdm

from dsgan_datasets import LabeledGenerator, verify_shards, write_shards
from dsgan_datasets.shards import repair_shards

EXAMPLE = "example: python benchmarks/kill.py --kills 1000 --out benchmarks/results/kill.json"
SAMPLES, SAMPLES_PER_SHARD, SEED = 10, 4, 3
#: Kills before a worker is left alone; each comes upon what the others left.
KILLS_IN_A_ROW = 4
#: Bytes of a part of an upload here: each shard has several.
PART = 8192


# Moments: each wraps a call that a worker makes, and tells a counter about it


def between_tar_entries(strike: Strike) -> None:
    add = tarfile.TarFile.addfile

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        strike()
        add(self, *args, **kwargs)

    tarfile.TarFile.addfile = wrapped  # type: ignore[method-assign]


def is_description(name: str) -> bool:
    """Plan, entry, index or manifest, under its final or its temporary name."""
    return name.endswith(".json") or ".json." in name


def is_shard(name: str) -> bool:
    return not is_description(name)


def around_upload(strike: Strike, *, before: bool) -> None:
    from s3fs import S3FileSystem

    put = S3FileSystem._put_file

    async def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        if before:
            strike()
        await put(self, *args, **kwargs)
        if not before:
            strike()

    S3FileSystem._put_file = wrapped


def between_parts(strike: Strike) -> None:
    from s3fs import S3FileSystem

    call = S3FileSystem._call_s3

    async def wrapped(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        result = await call(self, method, *args, **kwargs)
        if method in ("create_multipart_upload", "upload_part"):
            strike()
        return result

    S3FileSystem._call_s3 = wrapped


LOCAL: Moments = {
    "between tar entries": between_tar_entries,
    "before fsync": before_flush,
    "before renaming a shard": lambda strike: around_rename(strike, before=True, of=is_shard),
    "after renaming a shard": lambda strike: around_rename(strike, before=False, of=is_shard),
    "half-way through a description": lambda strike: half_way_through_a_file(strike, of=is_description),
    "before renaming a description": lambda strike: around_rename(strike, before=True, of=is_description),
    "after renaming a description": lambda strike: around_rename(strike, before=False, of=is_description),
}
REMOTE: Moments = {
    "between tar entries": between_tar_entries,
    "before an upload": lambda strike: around_upload(strike, before=True),
    "between parts of an upload": between_parts,
    "after an upload": lambda strike: around_upload(strike, before=False),
}

# Works


class Work(Protocol):
    """What is interrupted.

    Attributes:
        name: of the work.
        moments: at which it is killed.
    """

    name: str
    moments: Moments

    def begin(self) -> None:
        """Make its place what it is before the first worker."""

    def run(self, labeled: LabeledGenerator) -> None:
        """What a worker does."""

    def content(self) -> dict[str, bytes]:
        """Every file that there is."""

    def leftovers(self) -> list[str]:
        """What a finished work must not leave, besides files."""


def write(labeled: LabeledGenerator, where: str | Path) -> None:
    """Three shards, the last one shorter."""
    write_shards(labeled, where, range(SAMPLES), seed=SEED, samples_per_shard=SAMPLES_PER_SHARD, workers=2)


class Writing:
    """A set on a disk."""

    name, moments = "writing", LOCAL

    def __init__(self, scratch: Path) -> None:
        self.folder = scratch / "set"

    def begin(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, labeled: LabeledGenerator) -> None:
        write(labeled, self.folder)

    def content(self) -> dict[str, bytes]:
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in paths}

    def leftovers(self) -> list[str]:
        return [str(problem) for problem in verify_shards(self.folder)]


class Repairing(Writing):
    """A set of which one shard is damaged, one is lost, one has a copy, and the index is gone."""

    name = "repairing"

    def __init__(self, scratch: Path, labeled: LabeledGenerator) -> None:
        super().__init__(scratch)
        self.damaged = scratch / "damaged"
        write(labeled, self.damaged)
        first, second, third = sorted(self.damaged.glob("*.tar"))
        data = bytearray(first.read_bytes())
        data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
        first.write_bytes(data)
        second.unlink()
        shutil.copy(third, self.damaged / "copy.tar")
        (self.damaged / "wids.json").unlink()

    def begin(self) -> None:
        super().begin()
        shutil.copytree(self.damaged, self.folder)

    def run(self, labeled: LabeledGenerator) -> None:
        repair_shards(self.folder, labeled, strict=True)


class Uploading:
    """A set in a bucket of a server that speaks S3."""

    name, moments = "uploading", REMOTE

    def __init__(self, endpoint: str) -> None:
        import boto3

        settings = {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ.update(settings | {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"})
        self.client = boto3.client("s3")
        self.client.create_bucket(Bucket="kills")

    def begin(self) -> None:
        for key in self.content():
            self.client.delete_object(Bucket="kills", Key=f"set/{key}")

    def run(self, labeled: LabeledGenerator) -> None:
        import s3fs.core

        s3fs.core.calculate_chunksize = lambda size, chunksize=None: PART
        write(labeled, "s3://kills/set")

    def content(self) -> dict[str, bytes]:
        keys = [entry["Key"] for entry in self.client.list_objects_v2(Bucket="kills").get("Contents", [])]
        read = {key: self.client.get_object(Bucket="kills", Key=key)["Body"].read() for key in keys}
        return {key.removeprefix("set/"): data for key, data in read.items()}

    def leftovers(self) -> list[str]:
        found = self.client.list_multipart_uploads(Bucket="kills").get("Uploads", [])
        return [f"an upload of {upload['Key']} was begun and not ended" for upload in found]


@contextmanager
def object_store() -> Iterator[str]:
    """An S3 server in a process of its own (needs moto); it takes small parts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    settings = {**os.environ, "S3_UPLOAD_PART_MIN_SIZE": "1"}
    server = subprocess.Popen(
        [sys.executable, "-c", code], env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/moto-api/", timeout=1).close()
                break
            except OSError:
                if server.poll() is not None:
                    raise SystemExit("the S3 server did not start: pip install 'moto[server]' boto3 s3fs") from None
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait()


class Killer:
    """Kills workers of one kind of work.

    Args:
        labeled: makes the samples.
        work: what is killed.
        draw: draws the moments.
        scratch: folder for notes.

    Attributes:
        kills: of the work.
        states: different sets of files that were left.
        faults: what went wrong.

    Raises:
        SystemExit: the work does not come to one of its moments.
    """

    def __init__(self, labeled: LabeledGenerator, work: Work, draw: random.Random, scratch: Path) -> None:
        self.work = work
        self.states: set[tuple[str, ...]] = set()
        self.faults: list[str] = []
        self.kills = Kills(work.name, lambda: work.run(labeled), work.moments, work.begin, scratch, draw)
        if missing := set(work.moments) - set(self.kills.moments):
            raise SystemExit(f"{work.name} does not come to the moments {sorted(missing)}: the benchmark does not fit")
        work.begin()
        self.before = work.content()
        self.kills.undisturbed()
        self.goal = work.content()

    def run(self, kills: int, bar: Any) -> None:
        """Kill that often."""
        done = self.kills.done
        while done.total() < kills and len(self.faults) <= 20:
            self.work.begin()
            for _ in range(min(KILLS_IN_A_ROW, kills - done.total())):
                if not self.kill():
                    break  # the worker was faster
                bar.update(1)
            status, _ = self.kills.undisturbed()
            found = self.work.content()
            if status != 0 or found != self.goal:
                self.faults.append(f"{self.work.name} ended with status {status} and {sorted(found)}")
            self.faults += [f"{self.work.name} left {what}" for what in self.work.leftovers()]

    def kill(self) -> bool:
        """Kill one worker and look at what is left; False if it ended before."""
        kind, status = self.kills.kill()
        if status == 0:
            return False
        if failed(status):
            self.faults.append(f"{self.work.name} failed by itself, to be killed {kind}")
        found = self.work.content()
        self.states.add(tuple(sorted(found)))
        for name, data in found.items():
            if name in self.goal and data not in (self.goal[name], self.before.get(name)):
                self.faults.append(f"{self.work.name}: {name} is half written after a kill {kind}")
        return True


WORKS = ("writing", "repairing", "uploading")


def run(works: Sequence[str], kills: int, seed: int) -> dict[str, Any]:
    """Kill that often, in all; the result says how it ended."""
    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    draw, killers = random.Random(seed), []
    with ExitStack() as stack, tqdm(total=kills, unit="kill") as bar:
        for number, name in enumerate(works):
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dsgan-kill-")))
            work: Work
            if name == "uploading":
                work = Uploading(stack.enter_context(object_store()))
            else:
                work = Writing(scratch) if name == "writing" else Repairing(scratch, labeled)
            killers.append(Killer(labeled, work, draw, scratch))
            killers[-1].run(kills // len(works) + (number < kills % len(works)), bar)
    return {
        "benchmark": "kill",
        "fingerprint": labeled.fingerprint,
        "samples": SAMPLES,
        "samples_per_shard": SAMPLES_PER_SHARD,
        "device": cpu_name(),
        "torch": torch.__version__,
        "seed": seed,
        "kills": {killer.work.name: dict(killer.kills.done) for killer in killers},
        "kills_in_all": sum(killer.kills.done.total() for killer in killers),
        "different_sets_of_files_left": sum(len(killer.states) for killer in killers),
        "faults": [fault for killer in killers for fault in killer.faults],
    }


def main() -> int:
    """Kill, report, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=1000, help="(default: 1000)")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=WORKS, help="what is killed (default: everything)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    result = run(args.works, args.kills, args.seed)
    for work, kinds in result["kills"].items():
        for kind, count in kinds.items():
            print(f"{count:6}  {work}, {kind}")
    print(f"{result['kills_in_all']:6}  in all, which left {result['different_sets_of_files_left']} sets of files")
    return conclude(
        result, "faults", args.out, "no file half written under its name; every set ended as one that was never killed"
    )


if __name__ == "__main__":
    sys.exit(main())
