"""Shards in an object store, through a server that speaks S3, and shards that a Ray cluster writes."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import numpy as np
import psutil
import pytest
import s3fs
import torch
from conftest import small_labeled
from test_shards import content
from torch.utils.data import DataLoader

from dsgan_datasets import (
    LabeledGenerator,
    ShardDataset,
    ShardError,
    ShardMapDataset,
    calibrate,
    verify_shards,
    write_shards,
)
from dsgan_datasets.engines.ray import RayPool, WorkersDied
from dsgan_datasets.shards import Folder, Manifest, repair_shards

FIRST = "shard-000000.tar"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3 server in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    log = subprocess.DEVNULL
    server = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/moto-api/", timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, "the S3 server did not start"
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty bucket, reached as a user would: through the environment."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    name = f"faces-{time.monotonic_ns()}"
    boto3.client("s3").create_bucket(Bucket=name)
    yield f"s3://{name}/set"


def objects(url: str) -> dict[str, bytes]:
    """What the bucket holds, asked for without our code."""
    client, name = boto3.client("s3"), url.split("/")[2]
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=name).get("Contents", [])]
    return {key.removeprefix("set/"): client.get_object(Bucket=name, Key=key)["Body"].read() for key in keys}


@pytest.mark.slow
def test_the_bytes_are_those_of_a_local_set(tmp_path: Path, bucket: str, filtered: LabeledGenerator) -> None:
    write_shards(filtered, tmp_path, range(7), samples_per_shard=3)
    write_shards(filtered, bucket, range(7), samples_per_shard=3, shard_range=(1, 2))
    assert "manifest.json" not in objects(bucket)
    paths = write_shards(filtered, bucket, range(7), samples_per_shard=3)
    assert paths[0] == f"{bucket}/{FIRST}"
    assert objects(bucket) == content(tmp_path)


@pytest.mark.slow
def test_reading_verifying_and_mending(bucket: str, filtered: LabeledGenerator) -> None:
    write_shards(filtered, bucket, range(7), samples_per_shard=3)
    reference = objects(bucket)
    live = list(filtered.stream(range(7)))
    assert all(
        torch.equal(a.image, b.image) for a, b in zip(ShardDataset(bucket, check_hashes=True), live, strict=True)
    )
    assert torch.equal(ShardMapDataset(bucket)[5].mask, live[5].mask)
    loader = DataLoader(ShardDataset(f"{bucket}/shard-{{000000..000001}}.tar"), batch_size=2, num_workers=2)
    assert sorted(int(i) for batch in loader for i in batch.index) == list(range(6))
    name = bucket.split("/")[2]
    boto3.client("s3").put_object(Bucket=name, Key=f"set/{FIRST}", Body=reference[FIRST][:2000])
    assert [(p.name, p.kind) for p in verify_shards(bucket)] == [(FIRST, "truncated")]
    assert repair_shards(bucket, filtered) == []
    assert objects(bucket) == reference


def test_an_upload_that_fails_leaves_no_object(
    bucket: str, filtered: LabeledGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: object, **kwargs: object) -> Iterator[object]:
        yield from filtered.generate(range(2)).rows()
        raise RuntimeError("the generator broke")

    with monkeypatch.context() as patch:
        patch.setattr(filtered, "stream", failing)
        with pytest.raises(RuntimeError, match="broke"):
            write_shards(filtered, bucket, range(3))
    assert not any(name.endswith(".tar") for name in objects(bucket))
    write_shards(filtered, bucket, range(3))
    assert verify_shards(bucket) == []


def test_a_bucket_that_is_not_there(bucket: str, filtered: LabeledGenerator) -> None:
    with pytest.raises(OSError, match="bucket"):
        write_shards(filtered, "s3://no-such-bucket-here/set", range(2))


def uploads(url: str) -> list[str]:
    """Keys of uploads that began and did not end: invisible, and billed."""
    found = boto3.client("s3").list_multipart_uploads(Bucket=url.split("/")[2])
    return [upload["Key"] for upload in found.get("Uploads", [])]


def test_uploads_of_killed_writers_are_given_up(bucket: str, filtered: LabeledGenerator) -> None:
    client, name = boto3.client("s3"), bucket.split("/")[2]
    for key in (f"set/{FIRST}", f"set/{FIRST}.mine", "set/manifest.json"):
        client.create_multipart_upload(Bucket=name, Key=key)
    write_shards(filtered, bucket, range(2))
    assert uploads(bucket) == [f"set/{FIRST}.mine"]  # which is somebody's


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_upload_is_given_up(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a large file."""
    begun = threading.Event()

    async def endless(*_: object, **__: object) -> None:
        begun.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(s3fs.S3FileSystem, "_upload_file_part_concurrent", endless)
    threading.Thread(target=lambda: (begun.wait(30), os.kill(os.getpid(), signal.SIGINT)), daemon=True).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Folder(bucket).writing("large.tar") as file:
        file.truncate(120 << 20)
    assert begun.is_set() and time.monotonic() - started < 30
    assert uploads(bucket) == [] and objects(bucket) == {}


def test_of_two_plans_at_once_one_wins_in_a_bucket_too(bucket: str, filtered: LabeledGenerator) -> None:
    folder = Folder(bucket)
    folder.create("plan.json", b"mine")
    with pytest.raises(FileExistsError, match=r"plan\.json is there already"):
        folder.create("plan.json", b"yours")
    assert folder.read("plan.json") == b"mine"
    folder.remove("plan.json")
    write_shards(filtered, bucket, range(4), samples_per_shard=2, shard_range=(0, 1))
    with pytest.raises(ShardError, match="seed is 1, there 0"):
        write_shards(filtered, bucket, range(4), seed=1, samples_per_shard=2, shard_range=(1, 2))


def test_names_in_a_bucket_are_no_patterns(bucket: str, filtered: LabeledGenerator) -> None:
    write_shards(filtered, f"{bucket}/run1", range(2), samples_per_shard=1, shard_range=(0, 1))
    write_shards(filtered, f"{bucket}/run[12]*?", range(1))
    assert Folder(f"{bucket}/run1").names(".unfinished") == ["plan.json", f"{FIRST}.json"]
    assert Folder(f"{bucket}/run[12]*?").names() == ["manifest.json", FIRST, "wids.json"]
    assert verify_shards(f"{bucket}/run[12]*?") == [] and len(ShardMapDataset(f"{bucket}/run[12]*?")) == 1


@pytest.mark.slow
def test_an_object_store_that_says_no(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody there, and no such bucket: an OSError with the location, without an error of a package behind it."""
    monkeypatch.setenv("DSGAN_TIMEOUT", "2")
    with pytest.raises(ShardError, match=r"s3://no-such-bucket/set has no manifest"):
        ShardDataset("s3://no-such-bucket/set/shard-000000.tar")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    code = f"from dsgan_datasets import ShardDataset; ShardDataset({bucket + '/elsewhere'!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith(f"OSError: {bucket}/elsewhere")
    assert "Try again" in done.stderr and "botocore" not in done.stderr


# Ray


class FakeRay:
    """As much of Ray as a pool needs, in one thread: what it is asked for happens when it is waited for."""

    class exceptions:
        class RayActorError(Exception):
            pass

    def __init__(self, dies: Callable[[object, int], bool], *, places: int = 99) -> None:
        self.dies, self.places = dies, places
        self.made = self.killed = 0
        self.calls: dict[object, object] = {}
        self.tries: Counter[object] = Counter()

    def make(self) -> Any:
        self.made += 1
        actor = SimpleNamespace()
        for name, item in (("__ray_ready__", "start"), ("work", None)):
            setattr(actor, name, SimpleNamespace(remote=lambda *given, start=item: self.call(*(given or (start,)))))
        return actor

    def call(self, item: object) -> object:
        call = object()
        if item != "start" or self.places > 0:
            self.places -= item == "start"
            self.calls[call] = item
        return call

    def wait(self, calls: list[object], *, num_returns: int, timeout: float) -> tuple[list[object], list[object]]:
        ended = [call for call in calls if call in self.calls][:num_returns]
        return ended, [call for call in calls if call not in ended]

    def get(self, call: object) -> object:
        item = self.calls.pop(call)
        self.tries[item] += 1
        if self.dies(item, self.tries[item]):
            raise self.exceptions.RayActorError("the worker died\nof something")
        return item

    def kill(self, actor: object) -> None:
        self.killed += 1


def test_what_a_lost_worker_did_is_done_again() -> None:
    ray = FakeRay(lambda item, tries: item != "start" and tries < RayPool.TRIES)
    assert sorted(RayPool(ray, ray.make, 3).map_unordered("work", range(7))) == list(range(7))
    assert {ray.tries[item] for item in range(7)} == {RayPool.TRIES} and ray.made == 3 + ray.killed


@pytest.mark.parametrize("where", ["start", 4])
def test_workers_that_die_at_every_try_are_given_up(where: object) -> None:
    ray = FakeRay(lambda item, tries: item == where)
    with pytest.raises(WorkersDied, match="4 Ray workers in a row died.* the worker died … of something") as raised:
        list(RayPool(ray, ray.make, 2).map_unordered("work", range(9)))
    assert ray.tries[where] == RayPool.TRIES and raised.value.item == (None if where == "start" else where)


def test_workers_that_are_left_do_the_work_of_lost_machines() -> None:
    """A cluster that shrank: there is no place for another worker."""
    ray = FakeRay(lambda item, tries: item == 0 and tries == 1, places=2)
    assert sorted(RayPool(ray, ray.make, 2).map_unordered("work", range(6))) == list(range(6))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster of this machine with room for two generators."""
    ray = pytest.importorskip("ray")
    paths = os.pathsep.join([str(Path(__file__).parent.parent)])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    yield
    ray.shutdown()


@pytest.mark.slow  # three workers import torch
@pytest.mark.usefixtures("cluster")
def test_ray_writes_the_same_bytes_though_a_worker_is_lost(tmp_path: Path) -> None:
    """Of merged classes, too: what merges them travels with the generator."""
    labeled = calibrate(small_labeled(), 100, reject_fraction=0.4).merge_classes({"side": ["left", "right"]})
    write_shards(labeled, tmp_path / "local", range(240), samples_per_shard=20)
    killed: list[int] = []
    done = threading.Event()

    def kill_a_writer() -> None:
        """As soon as the first shard is there, one of those that write is killed."""
        while not done.is_set():
            if list((tmp_path / "ray").glob("*.tar")) and (writers := ray_writers()):
                writers[0].kill()
                killed.append(writers[0].pid)
                return
            time.sleep(0.02)

    killer = threading.Thread(target=kill_a_writer)
    killer.start()
    try:
        write_shards(labeled, tmp_path / "ray", range(240), samples_per_shard=20, engine="ray")
    finally:
        done.set()
        killer.join()
    assert killed, "nothing was killed: the test shows nothing"
    assert {len(shard.tallies["mask"]) for shard in Manifest.read(Folder(tmp_path / "ray")).shards} == {3}
    assert content(tmp_path / "ray") == content(tmp_path / "local")


def ray_writers() -> list[psutil.Process]:
    """Processes of actors at work."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any("_Writer" in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_cluster_without_room(tmp_path: Path, filtered: LabeledGenerator) -> None:
    with pytest.raises(ValueError, match="needs 64 CPU, but the Ray cluster has 2 CPU"):
        write_shards(filtered, tmp_path, range(4), engine="ray", cpus_per_generator=64)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_error_on_a_worker_is_the_error_here(
    tmp_path: Path, filtered: LabeledGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "__version__", "9.9")
    with pytest.raises(ShardError, match=r"a Ray worker has .*they must agree"):
        write_shards(filtered, tmp_path, range(4), engine="ray")
    assert not list(tmp_path.glob("*.tar"))


class Deadly:
    """Ends every other process that it is sent to."""

    def __init__(self, labeled: LabeledGenerator) -> None:
        self.labeled, self.home = labeled, os.getpid()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["labeled"], name)

    def to(self, device: object) -> Deadly:
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        if os.getpid() != state["home"]:
            os._exit(9)
        self.__dict__.update(state)


@pytest.mark.extended
@pytest.mark.usefixtures("cluster")
def test_workers_that_cannot_start_are_given_up(tmp_path: Path, filtered: LabeledGenerator) -> None:
    with pytest.raises(RuntimeError, match=r"4 Ray workers in a row died while they started: .*continues where it"):
        write_shards(Deadly(filtered), tmp_path, range(4), engine="ray")  # type: ignore[arg-type]


def test_folders_know_their_files() -> None:
    folder = Folder("memory://somewhere/deep/")
    folder.write("a.json", b"12345")
    assert (folder.names(), folder.size("a.json"), folder.size("b.json")) == (["a.json"], 5, None)
    assert folder.read("a.json", 1, 3) == b"23"
    folder.remove("a.json"), folder.remove("a.json")
    assert folder.names() == [] and folder.at("x") == "memory://somewhere/deep/x"
    folder.write("part/b.json", b"1")
    assert folder.names() == [] and folder.names("part") == ["b.json"]
    folder.remove_folder("part"), folder.remove_folder("part")
    assert folder.names("part") == []


def test_folders_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path means the same folder in a process with another working directory."""
    monkeypatch.chdir(tmp_path)
    folder = pickle.loads(pickle.dumps(Folder("set")))
    folder.write("a", b"1")
    monkeypatch.chdir("/")
    assert (folder.read("a"), folder.local, str(folder)) == (b"1", tmp_path / "set", str(tmp_path / "set"))
    assert Folder(f"file://{tmp_path}/set/").at("a") == str(tmp_path / "set" / "a")


def test_a_forked_process_connects_anew(bucket: str) -> None:
    folder = Folder(bucket)
    folder.write("a", b"1")
    if (child := os.fork()) == 0:
        os._exit(0 if folder.read("a") == b"1" and folder.names() == ["a"] else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    ("location", "message"),
    [("nope://x/y", "cannot reach nope://x/y"), ("pipe:cat x", "never read through a command"), (" ", "is empty")],
)
def test_locations_that_are_refused(location: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Folder(location)
