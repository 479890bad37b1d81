"""Checkpoints, shards and exports -> the Hugging Face Hub, each with its card."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dsgan_datasets.cards import dataset_card, with_metadata
from dsgan_datasets.checkpoints.card import PICTURES
from dsgan_datasets.checkpoints.labeled import Checkpoint
from dsgan_datasets.files import is_file
from dsgan_datasets.shards.folder import Folder
from dsgan_datasets.shards.manifest import MANIFEST, WIDS_INDEX, Manifest

_CARD = "README.md"


def push_to_hub(
    folder: str | os.PathLike[str], repository: str, *, private: bool | None = None, token: str | None = None
) -> str:
    """Upload a folder of this machine to the Hub: a checkpoint, a finished set of shards, or an export.

    What it is decides the kind of repository (model or dataset), which is created if it is not there. All files arrive
    in one commit, or none does. The card (README.md) goes with them: that of the folder, or one that is made from what
    is known; the license stands where the Hub looks for it. Files that belong to neither stay here.

    Read them back with ``LabeledGenerator.from_pretrained("hf://org/name")``, with
    ``ShardDataset("hf://datasets/org/name")``, and with ``datasets.load_dataset("org/name")``.

    Args:
        folder: checkpoint directory, folder of shards, or exported folder.
        repository: "org/name" on the Hub.
        private: whether others can see it; None is the organization's default.
        token: None takes the one that you logged in with (``hf auth login``).

    Returns:
        address of the repository.

    Raises:
        ValueError: the folder holds none of these (CheckpointError or ShardError if it is damaged), or the repository
            is not named org/name.
        OSError: the Hub cannot be reached, or refuses.
        ImportError: huggingface_hub is not installed.

    Example:
        >>> LabeledGenerator.from_pretrained("demo-faces", device="cpu").save_pretrained(tmp)
        >>> push_to_hub(tmp, "me/faces")  # doctest: +SKIP
        'https://huggingface.co/me/faces'
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError('push_to_hub needs huggingface_hub: pip install "dsgan_datasets[hub]"') from error
    if not isinstance(repository, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"repository must be org/name, such as me/faces, not {repository!r:.80}")
    path = Path(folder)
    kind, files, card = _contents(path)
    operations = [
        huggingface_hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path / name)) for name in files
    ]
    operations.append(huggingface_hub.CommitOperationAdd(path_in_repo=_CARD, path_or_fileobj=card.encode()))
    api = huggingface_hub.HfApi(token=token)
    try:
        address = api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        api.create_commit(repository, operations, repo_type=kind, commit_message=f"Upload {path.name}")
    except (OSError, ValueError) as error:  # its errors derive from these two
        raise OSError(f"{repository} cannot be uploaded: {error}") from error
    return str(address)


def _contents(path: Path) -> tuple[str, list[str], str]:
    """(kind of repository, files but the card, card) of a folder."""
    for name, contents in _KINDS.items():
        if is_file(path / name):
            return contents(path)
    raise ValueError(
        f"{path} is neither a checkpoint, nor finished shards, nor an export: it holds none of {', '.join(_KINDS)}. "
        "Nothing was uploaded"
    )


def _checkpoint(path: Path) -> tuple[str, list[str], str]:
    checkpoint = Checkpoint.open(path)
    files = ["config.json", *sorted(file.name for file in path.glob("*.safetensors"))]
    files += [name for name in PICTURES if is_file(path / name)]
    card = path / _CARD
    text = card.read_text(encoding="utf-8") if is_file(card) else f"# {path.name}\n"
    tags = ["synthetic", "image-segmentation", "dsgan_datasets"]
    return "model", files, with_metadata(text, checkpoint.license, tags=tags)


def _shards(path: Path) -> tuple[str, list[str], str]:
    manifest = Manifest.read(Folder(path))
    plan = manifest.plan
    # Without this, readers on the Hub take the manifest for the data.
    configs: Mapping[str, Any] = {"configs": [{"config_name": "default", "data_files": "shard-*.tar"}]}
    card = dataset_card(
        plan.targets,
        num_samples=plan.num_samples,
        image_size=plan.image_size,
        license=plan.license,
        fingerprint=plan.fingerprint,
        seed=plan.seed,
        start=plan.start,
        layout="WebDataset tars; `manifest.json` says what made them, `wids.json` is an index for random reading.",
        metadata=configs,
    )
    indices = [WIDS_INDEX] if is_file(path / WIDS_INDEX) else []
    return "dataset", [*(shard.name for shard in manifest.shards), *indices, MANIFEST], card


def _export(path: Path) -> tuple[str, list[str], str]:
    files = sorted(str(file.relative_to(path).as_posix()) for file in path.rglob("*") if is_file(file))
    card = path / _CARD
    text = card.read_text(encoding="utf-8") if is_file(card) else f"# {path.name}\n"
    return "dataset", [name for name in files if name != _CARD], text


#: File that tells what a folder is -> what of it is uploaded.
_KINDS: Mapping[str, Callable[[Path], tuple[str, list[str], str]]] = {
    "config.json": _checkpoint,
    MANIFEST: _shards,
    "samples.jsonl": _export,
}
