"""Remote samples over a real Ray cluster of this machine: workers in processes of their own, which are killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dsgan_datasets import DSGANIterableDataset, LabeledGenerator
from dsgan_datasets.remote import RemoteSource, serve
from dsgan_datasets.remote.ray_cluster import Workers

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster with room for two workers, to which this process is connected."""
    ray = pytest.importorskip("ray")
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


def run(code: str, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT, check=False)


def test_a_cluster_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"ray://me:secret@127.0.0.1:{free.getsockname()[1]}"
    done = run("import sys; from dsgan_datasets import *; RemoteSource('demo-faces', sys.argv[1]).batch([0])", where)
    assert "cannot be reached" in (last := done.stderr.splitlines()[-1]) and "ray start --head" in last
    assert "RemoteError" in last and "secret" not in done.stderr
