"""Shards behind a web server: what servers and networks do ends in the right samples or in an error of ours."""

from __future__ import annotations

import re
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from fault_server import (
    FAULTS,
    Fault,
    FaultServer,
    bomb,
    dropped,
    elsewhere,
    endless,
    honest,
    slow,
    stalled,
    status,
    truncated,
    whole,
)
from measured import growth_of

from dsgan_datasets import LabeledGenerator, Sample, ShardDataset, ShardError, ShardMapDataset, verify_shards
from dsgan_datasets import write_shards as write
from dsgan_datasets.shards import Folder

SAMPLES = 6


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    waits = any(name in request.node.name for name in ("silent", "stalled"))
    monkeypatch.setenv("DSGAN_TIMEOUT", "0.5" if waits else "20")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, filtered: LabeledGenerator) -> Path:
    path = tmp_path_factory.mktemp("served")
    write(filtered, path / "faces", range(SAMPLES), samples_per_shard=3)
    return path


@pytest.fixture(scope="module")
def original(folder: Path) -> list[Sample]:
    return list(ShardDataset(folder / "faces"))


def same(found: list[Sample], original: list[Sample]) -> bool:
    return len(found) == len(original) and all(
        set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(found, original, strict=True)
    )


@pytest.mark.slow
def test_a_server_with_ranges_gives_what_the_disk_gives(folder: Path, original: list[Sample]) -> None:
    with FaultServer(folder) as server:
        url = f"{server.url}/faces"
        assert same(list(ShardDataset(url)), original)
        assert same([ShardMapDataset(url)[i] for i in range(SAMPLES)], original)
        assert same(list(ShardDataset(url, shuffle=4, uneven="keep")), list(ShardDataset(folder / "faces", shuffle=4)))
        assert verify_shards(url) == []


def test_a_server_without_ranges_streams_and_says_what_it_cannot_do(folder: Path, original: list[Sample]) -> None:
    """It used to be called damage of the files."""
    with FaultServer(folder, whole, of="") as server:
        url = f"{server.url}/faces"
        assert same(list(ShardDataset(url)), original)
        assert same(list(ShardDataset(url, shuffle=4)), list(ShardDataset(folder / "faces", shuffle=4)))
        assert verify_shards(url) == []
        with pytest.raises(ShardError, match=r"shard-000000\.tar: this server gives whole files only.*ShardDataset"):
            ShardMapDataset(url)[1]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("of", [".tar", "manifest.json"])
def test_every_fault_ends_well_or_in_an_error_with_the_url(
    folder: Path, original: list[Sample], fault: Fault, of: str
) -> None:
    with FaultServer(folder, fault, of=of) as server:
        url = f"{server.url}/faces"
        with suppress(ShardError, OSError):
            verify_shards(url)  # that it ends
        for read in (lambda: list(ShardDataset(url)), lambda: [ShardMapDataset(url)[i] for i in range(SAMPLES)]):
            try:
                found = read()
            except (ShardError, OSError) as error:
                assert server.url in str(error) and len(str(error).splitlines()) == 1
            else:
                assert same(found, original)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (dropped, OSError, "Payload.*Try again"),
        (stalled, TimeoutError, r"silent for 0\.5 s.*DSGAN_TIMEOUT"),
        (elsewhere, OSError, "was asked for the bytes from 0 on, and gave 'bytes 7-"),
        (endless, OSError, "sends more than the"),
        (bomb, OSError, "compresses what it sends"),
        (status(403), PermissionError, "check the credentials"),
        (status(404), ShardError, "there is no such file"),
        (status(503), OSError, "an error of its own.*later"),
    ],
)
def test_messages_say_what_happened(folder: Path, fault: Fault, error: type[Exception], message: str) -> None:
    with FaultServer(folder, fault) as server, pytest.raises(error, match=rf"(?s)shard-000000\.tar.*{message}"):
        list(ShardDataset(f"{server.url}/faces"))


@pytest.mark.parametrize("fault", [slow, truncated, honest])
def test_slow_and_short_answers_are_none(folder: Path, original: list[Sample], fault: Fault) -> None:
    with FaultServer(folder, fault, once=fault is truncated) as server:
        assert same(list(ShardDataset(f"{server.url}/faces")), original)


@pytest.mark.parametrize("fault", [bomb, endless])
@pytest.mark.parametrize("of", [".tar", "manifest.json"])
def test_a_server_cannot_fill_the_memory(folder: Path, fault: Fault, of: str) -> None:
    with FaultServer(folder, fault, of=of) as server:
        url = f"{server.url}/faces"
        assert growth_of(lambda: list(ShardDataset(url))) < (200e6 if of == ".tar" else 1e9)


def test_a_web_server_is_not_written_to(folder: Path, filtered: LabeledGenerator) -> None:
    with FaultServer(folder) as server, pytest.raises(OSError, match="read from, not written to"):
        write(filtered, f"{server.url}/new", range(2))


def test_nobody_there(folder: Path) -> None:
    with FaultServer(folder) as server:
        url = f"{server.url}/faces"
    with pytest.raises(OSError, match=r"127\.0\.0\.1.*Try again"):
        ShardDataset(url)


@pytest.mark.parametrize("seconds", ["soon", "-1", "nan", "0"])
def test_a_patience_that_is_none(monkeypatch: pytest.MonkeyPatch, seconds: str) -> None:
    monkeypatch.setenv("DSGAN_TIMEOUT", seconds)
    with pytest.raises(ValueError, match="DSGAN_TIMEOUT must be a positive number of seconds"):
        Folder("http://127.0.0.1/faces")


# Credentials


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_no_error_shows_credentials(folder: Path, fault: Fault) -> None:
    """Nor do its causes, as a traceback prints them."""
    with FaultServer(folder, fault) as server:
        plain = server.url.removeprefix("http://")
        url = f"http://me:hunter2/5ecret@{plain}/faces?sig=t0ken%2Fvalue&se=2026"
        secret = f"http://me:pa55word@{plain}/faces?sig=t0ken%2Fvalue&se=2026"
        for location in (secret, url):
            try:
                list(ShardDataset(location))
            except (ShardError, OSError) as error:
                printed = "".join(traceback.format_exception(error))
                assert "***" in str(error)
                for text in ("hunter2", "5ecret", "pa55word", "t0ken", "2026"):
                    assert text not in printed


def test_credentials_are_used_and_travel_but_are_not_shown(folder: Path, original: list[Sample]) -> None:
    with FaultServer(folder) as server:
        location = f"http://me:pa55word@127.0.0.1:{server.server_port}/faces?sig=t0ken"
        shown = f"http://***@127.0.0.1:{server.server_port}/faces"
        found = Folder(location)
        assert (str(found), found.at("a.tar")) == (f"{shown}?sig=***", f"{shown}/a.tar?sig=***")
        assert found.location == location and found.url("a.tar") == location.replace("?", "/a.tar?")
        assert repr(found) == f"Folder('{shown}?sig=***')"
        assert found.names() == ["manifest.json", "shard-000000.tar", "shard-000001.tar", "wids.json"]
        dataset = ShardDataset(location)
        assert same(list(dataset), original)
        assert dataset.source.name == "faces" and "t0ken" not in repr(dataset.source.identity)
        (second,) = ShardDataset(found.url("shard-000001.tar")).shards.places
        assert second.shard.name == "shard-000001.tar"


def test_nothing_that_is_written_holds_credentials(filtered: LabeledGenerator) -> None:
    location = "memory://me:pa55word@set?sig=t0ken"
    write(filtered, location, range(2), samples_per_shard=1, shard_range=(0, 1))
    folder = Folder(location)
    written = [folder.read(f".unfinished/{name}") for name in folder.names(".unfinished")]
    write(filtered, location, range(2), samples_per_shard=1)
    written += [folder.read(name) for name in folder.names()]
    assert len(written) == 6 and not any(b"pa55word" in data or b"t0ken" in data for data in written)


@pytest.mark.parametrize(
    "location",
    [
        "s3://AKIAKEY:abc/def+gh@bucket/set",
        "nope://me:hunter2@host/set",
        "pipe:curl https://me:hunter2@host/set",
        "ftp://me:hunter2@127.0.0.1:1/set",
        "http://me:hunter2@127.0.0.1:99999/set",
        "http://me:hunter2@[::1/set",
    ],
)
def test_locations_that_cannot_be_reached_show_none(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with pytest.raises((ValueError, OSError)) as raised:
        ShardDataset(location)
    printed = "".join(traceback.format_exception(raised.value))
    assert not any(secret in printed for secret in ("hunter2", "AKIAKEY", "def+gh"))


@pytest.mark.slow
def test_a_missing_package_is_named_with_its_extra() -> None:
    """In a process of its own: fsspec remembers the packages that another test imported."""
    code = """
import sys
from dsgan_datasets import verify_shards
for url, package in (("https://host/set", "aiohttp"), ("s3://b/x", "s3fs")):
    sys.modules[package] = None
    try:
        verify_shards(url)
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for line, (url, package, extra) in zip(
        done.stdout.splitlines(), (("https://host/set", "aiohttp", "http"), ("s3://b/x", "s3fs", "s3")), strict=True
    ):
        assert re.match(rf".*{url}: .*{package}.*pip install 'dsgan_datasets\[{extra}\]'", line)
