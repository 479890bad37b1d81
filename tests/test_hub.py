"""What goes to the Hugging Face Hub, as a server that speaks its language on this machine receives it; and what
`load_dataset` makes of shards and exports."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from dsgan_datasets import LabeledGenerator, push_to_hub, write_shards
from dsgan_datasets.cards import with_metadata
from dsgan_datasets.export import ExportInput, export

constants = pytest.importorskip("huggingface_hub.constants")


class Hub(ThreadingHTTPServer):
    """Repositories in memory.

    Attributes:
        files: "models/me/faces" -> name -> content.
        refuses: answer every commit with an error.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, Any] = {}
        self.tokens: set[str | None] = set()
        self.refuses = False


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, body: Any, status: int = 200) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization"))
        url = f"http://127.0.0.1:{self.server.server_port}"
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('type', 'model')}s/{wanted['organization']}/{wanted['name']}"
            self.server.files.setdefault(name, {})
            self.server.private[name] = wanted.get("private", wanted.get("visibility"))
            kind = "" if name.startswith("models/") else "datasets/"
            return self.answer({"url": f"{url}/{kind}{name.split('/', 1)[1]}"})
        _, _, kind, owner, repository, verb, *_ = self.path.split("/")
        if verb == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        assert verb == "commit", self.path
        if self.server.refuses:
            return self.answer({"error": "no more space"}, 403)
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                value = line["value"]
                assert value["encoding"] == "base64"
                self.server.files[f"{kind}/{owner}/{repository}"][value["path"]] = base64.b64decode(value["content"])
        commit = f"{url}/{'datasets/' * (kind == 'datasets')}{owner}/{repository}/commit/0"
        return self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": commit, "pullRequestUrl": None})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def metadata(card: bytes) -> dict[str, Any]:
    import yaml

    _, front, _ = card.decode().split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(front)
    return found


def test_a_checkpoint(tmp_path: Path, unfiltered: LabeledGenerator, hub: Hub) -> None:
    unfiltered.save_pretrained(tmp_path / "faces", card="# Faces\n\nOf a test.\n")
    (tmp_path / "faces" / "notes.txt").write_text("mine")
    address = push_to_hub(tmp_path / "faces", "me/faces", private=True, token="hf_secret")
    assert address.endswith("/me/faces") and hub.tokens == {"Bearer hf_secret"}
    (name,) = hub.files
    assert name == "models/me/faces" and hub.private[name] in (True, "private")
    files = hub.files[name]
    assert sorted(files) == ["README.md", "config.json", "generator.safetensors", "interpreter.safetensors"]
    assert metadata(files["README.md"])["license"] == "other" and b"Of a test." in files["README.md"]
    back = tmp_path / "back"
    back.mkdir()
    for file, content in files.items():
        (back / file).write_bytes(content)
    assert LabeledGenerator.from_pretrained(back, device="cpu").fingerprint == unfiltered.fingerprint


def test_shards(tmp_path: Path, unfiltered: LabeledGenerator, hub: Hub) -> None:
    write_shards(unfiltered, tmp_path / "tars", range(5), samples_per_shard=3)
    push_to_hub(tmp_path / "tars", "me/tars")
    files = hub.files["datasets/me/tars"]
    local = {path.name: path.read_bytes() for path in (tmp_path / "tars").iterdir()}
    assert {name: content for name, content in files.items() if name != "README.md"} == local
    assert metadata(files["README.md"])["configs"] == [{"config_name": "default", "data_files": "shard-*.tar"}]
    assert unfiltered.fingerprint in files["README.md"].decode()


def test_an_export(tmp_path: Path, unfiltered: LabeledGenerator, hub: Hub) -> None:
    export(ExportInput.generated(unfiltered, 4), tmp_path / "out", "imagefolder", splits={"val": 0.25})
    push_to_hub(tmp_path / "out", "me/out")
    files = hub.files["datasets/me/out"]
    assert files["README.md"] == (tmp_path / "out" / "README.md").read_bytes()
    assert {"train/metadata.jsonl", "train/masks/000000000.png", "val/images/000000003.png", "samples.jsonl"} < set(
        files
    )


def test_what_cannot_be_uploaded(tmp_path: Path, unfiltered: LabeledGenerator, hub: Hub) -> None:
    with pytest.raises(ValueError, match=r"neither a checkpoint, nor finished shards, nor an export.*Nothing was"):
        push_to_hub(tmp_path, "me/nothing")
    with pytest.raises(ValueError, match="repository must be org/name"):
        push_to_hub(tmp_path, "https://huggingface.co/me/faces")
    unfiltered.save_pretrained(tmp_path / "faces")
    hub.refuses = True
    with pytest.raises(OSError, match="me/faces cannot be uploaded") as error:
        push_to_hub(tmp_path / "faces", "me/faces", token="hf_secret")
    assert "hf_secret" not in str(error.value)
    config = (tmp_path / "faces" / "config.json").read_text()
    (tmp_path / "faces" / "config.json").write_text(config[:100])
    with pytest.raises(ValueError, match=r"config\.json"):
        push_to_hub(tmp_path / "faces", "me/faces")


@pytest.mark.parametrize(
    ("license", "expected"),
    [
        ("CC0-1.0", {"license": "cc0-1.0"}),
        ("CC-BY-NC-4.0", {"license": "cc-by-nc-4.0"}),
        ("Nvidia Source: 'x'\n\ny", {"license": "other", "license_name": "nvidia-source-x-y"}),
        ("unspecified", {"license": "other", "license_name": "unspecified"}),
    ],
)
def test_licenses_are_named_as_the_hub_wants(license: str, expected: dict[str, str]) -> None:
    card = with_metadata("# A", license)
    assert metadata(card.encode()) == expected and card.endswith("# A")
    assert with_metadata(card, "MIT") == card


# --- load_dataset ---------------------------------------------------------------------------------------------------


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    found = pytest.importorskip("datasets")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return found


def pixels(picture: Any) -> torch.Tensor:
    import numpy as np

    return torch.from_numpy(np.array(picture))


@pytest.mark.parametrize("splits", [{}, {"val": 0.25}], ids=str)
@pytest.mark.parametrize("palette", [False, True])
def test_imagefolder(
    tmp_path: Path, datasets: Any, unfiltered: LabeledGenerator, splits: dict[str, float], palette: bool
) -> None:
    export(ExportInput.generated(unfiltered, 8), tmp_path / "out", "imagefolder", splits=splits, palette=palette)
    found = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in found.items()} == (
        {"train": 6, "validation": 2} if splits else {"train": 8}
    )
    batch = unfiltered.generate(range(8))
    for row in (row for rows in found.values() for row in rows):
        assert set(row) == {"image", "mask", "index"} and row["mask"].mode == "L"
        assert torch.equal(pixels(row["image"]).permute(2, 0, 1), batch.image[row["index"]])
        assert torch.equal(pixels(row["mask"]).long(), batch.mask[row["index"]])


def test_webdataset(tmp_path: Path, datasets: Any, unfiltered: LabeledGenerator) -> None:
    write_shards(unfiltered, tmp_path / "tars", range(6), samples_per_shard=4)
    files = {"train": str(tmp_path / "tars" / "shard-*.tar")}
    rows = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    mask = unfiltered.generate(range(6)).mask
    assert [row["json"]["index"] for row in rows] == list(range(6))
    assert all(torch.equal(pixels(row["seg.png"]).long(), mask[i]) for i, row in enumerate(rows))
