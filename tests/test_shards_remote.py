"""Shards in an object store, through a server that speaks S3, and shards that a Ray cluster writes."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import psutil
import pytest
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


def test_the_bytes_are_those_of_a_local_set(tmp_path: Path, bucket: str, filtered: LabeledGenerator) -> None:
    write_shards(filtered, tmp_path, range(7), samples_per_shard=3)
    write_shards(filtered, bucket, range(7), samples_per_shard=3, shard_range=(1, 2))
    assert "manifest.json" not in objects(bucket)
    paths = write_shards(filtered, bucket, range(7), samples_per_shard=3)
    assert paths[0] == f"{bucket}/{FIRST}"
    assert objects(bucket) == content(tmp_path)


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


# Ray


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


@pytest.mark.usefixtures("cluster")
def test_a_cluster_without_room(tmp_path: Path, filtered: LabeledGenerator) -> None:
    with pytest.raises(ValueError, match="needs 64 CPU, but the Ray cluster has 2 CPU"):
        write_shards(filtered, tmp_path, range(4), engine="ray", cpus_per_generator=64)


@pytest.mark.usefixtures("cluster")
def test_an_error_on_a_worker_is_the_error_here(
    tmp_path: Path, filtered: LabeledGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "__version__", "9.9")
    with pytest.raises(ShardError, match=r"a Ray worker has .*they must agree"):
        write_shards(filtered, tmp_path, range(4), engine="ray")
    assert not list(tmp_path.glob("*.tar"))


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
