"""Remote samples over a real Ray cluster of this machine: workers in processes of their own, which are killed."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from test_shards_remote import Deadly

from dsgan_datasets import DSGANIterableDataset, LabeledGenerator
from dsgan_datasets.remote import RemoteError, RemoteSource, serve
from dsgan_datasets.remote.ray_cluster import Workers

ROOT = Path(__file__).parent.parent
#: Ray lets its workers run after everything else (niceness 15): beside other tests they would hardly run.
POLITENESS = {"RAY_worker_niceness": "0"}
ENVIRONMENT = {**os.environ, **POLITENESS, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster with room for two workers, to which this process is connected."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in POLITENESS.items():
            patch.setenv(name, value)
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def faces() -> LabeledGenerator:
    return LabeledGenerator.from_pretrained("demo-faces", device="cpu")


@pytest.mark.slow
def test_samples_of_a_worker_are_those_of_the_checkpoint(address: str, faces: LabeledGenerator) -> None:
    reports = serve(faces, "demo-faces", workers=1)
    while not next(reports).running:
        pass
    for got, expected in zip(RemoteSource("demo-faces").stream(range(24)), faces.stream(range(24)), strict=True):
        assert got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in expected)
    deadline = time.monotonic() + 60  # the worker counts what it has made before what was fetched
    while (now := next(reports)).bytes <= 24 * 3 * 64 * 64:
        assert time.monotonic() < deadline
    assert now.samples >= 24 and now.lost == 0
    reports.close()


@pytest.mark.extended
def test_a_worker_that_is_killed_is_replaced(address: str, faces: LabeledGenerator) -> None:
    """Of the only worker; what it was asked for comes from the next one."""
    reports = serve(faces, "demo-faces", workers=1)
    while not (first := next(reports)).running:
        pass
    stream = iter(DSGANIterableDataset(RemoteSource("demo-faces"), length=400))
    for seen, expected in enumerate(faces.stream(range(400))):
        got = next(stream)
        assert got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in expected)
        if seen == 40:
            os.kill(int(first.running[0].rpartition(":")[2]), signal.SIGKILL)
            with pytest.warns(UserWarning, match=r"worker \S+ died and is replaced"):
                while not (now := next(reports)).running or now.running == first.running:
                    pass
    assert next(stream, None) is None and now.lost == 1
    reports.close()
    ray = pytest.importorskip("ray")
    assert not Workers(ray).look()


@pytest.mark.slow
@pytest.mark.usefixtures("address")
def test_a_cluster_without_room(faces: LabeledGenerator) -> None:
    with pytest.raises(ValueError, match=r"needs 64 CPU, but the Ray cluster has 2 .*--cpus-per-worker"):
        next(serve(faces, "demo-faces", cpus_per_worker=64))


@pytest.mark.extended
@pytest.mark.usefixtures("address")
@pytest.mark.filterwarnings("ignore:.* died and is replaced")
def test_workers_that_cannot_start_are_given_up(filtered: LabeledGenerator) -> None:
    with pytest.raises(RemoteError, match="4 workers in a row died soon after their start and made no sample"):
        for _ in serve(Deadly(filtered), "small", workers=1):  # type: ignore[arg-type]
            pass


def run(code: str, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT, check=False)


@pytest.mark.slow
def test_a_cluster_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"ray://me:secret@127.0.0.1:{free.getsockname()[1]}"
    done = run("import sys; from dsgan_datasets import *; RemoteSource('demo-faces', sys.argv[1]).batch([0])", where)
    assert "cannot be reached" in (last := done.stderr.splitlines()[-1]) and "ray start --head" in last
    assert "RemoteError" in last and "secret" not in done.stderr


@pytest.mark.extended
def test_another_port_than_that_of_rays_client(address: str) -> None:
    """Ray would try for 35 seconds, and then say nothing of ports."""
    done = run(
        "import sys; from dsgan_datasets import *; RemoteSource('demo-faces', sys.argv[1]).batch([0])",
        f"ray://{address}",
    )
    last = done.stderr.splitlines()[-1]
    assert "RemoteError" in last and "what listens there is not Ray's client server. Its port is 10001" in last


@pytest.mark.extended
@pytest.mark.usefixtures("address")
@pytest.mark.parametrize(("where", "warns"), [("", True), ("'auto', ", False)])
def test_a_cluster_that_was_not_named_is_named(where: str, warns: bool) -> None:
    """Someone else may have started it, and serve the same: here a recipe that nobody serves is asked for."""
    recipe = "truncation_psi=0.4321, reject_fraction=0.0"
    done = run(f"from dsgan_datasets import *; RemoteSource('demo-faces', {where}timeout=1, {recipe}).batch([0])")
    assert ("no address was given, so the Ray cluster of this machine (" in done.stderr) == warns
    assert re.search(r"nobody serves demo-faces .* on the Ray cluster of this machine \(\S+:\d+\)", done.stderr)


@pytest.mark.extended
def test_a_cluster_that_goes_away_ends_in_an_error(monkeypatch: pytest.MonkeyPatch, faces: LabeledGenerator) -> None:
    """Ray itself ends the process that is connected to it: that must not be this one."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    command = [sys.executable, "-c", CLUSTER]
    environment = {**ENVIRONMENT, "RAY_AUTH_MODE": "disabled"}
    cluster = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        # Long enough for a worker to start beside other tests.
        stream = RemoteSource("demo-faces", address, timeout=40).stream(itertools.count())
        got = [next(stream) for _ in range(40)]
        assert all(torch.equal(a.image, b.image) for a, b in zip(got, faces.stream(range(40)), strict=True))
        for process in (*psutil.Process(cluster.pid).children(recursive=True), cluster):
            process.kill()
        with pytest.raises(RemoteError, match=r"nobody serves demo-faces .*`dsgan serve demo-faces`"):
            for _ in stream:
                pass
    finally:
        cluster.kill()
        cluster.wait()


CLUSTER = """
import ray
from dsgan_datasets import LabeledGenerator
from dsgan_datasets.remote import serve
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, flush=True)
for _ in serve(LabeledGenerator.from_pretrained("demo-faces", device="cpu"), "demo-faces", workers=1):
    pass
"""


@pytest.mark.extended
def test_kills_change_no_sample(tmp_path: Path) -> None:
    """The benchmark, for twenty seconds; `dsgan serve` replaces the workers, and ends in order."""
    command = [sys.executable, str(ROOT / "benchmarks" / "remote.py"), "--runs", "0", "--seconds", "20", "--every", "5"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "result.json")],
        capture_output=True,
        text=True,
        timeout=400,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["killing"]["kills"] >= 2 and result["device"] and result["cores"]
    assert (result["killing"]["changed"], result["killing"]["missing"]) == (0, 0)
