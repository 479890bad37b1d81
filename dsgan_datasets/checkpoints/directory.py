"""The checkpoint directory: config.json, safetensors and a model card. See docs/checkpoint-format.md."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.checkpoints.migrations import FORMAT_VERSION, changed, migrate
from dsgan_datasets.checkpoints.pickles import check_content
from dsgan_datasets.checkpoints.tensors import digest_tensors, fingerprint
from dsgan_datasets.contents import ContentError, parse_json
from dsgan_datasets.files import atomic_write, exists, is_file, is_folder, written_whole

_LARGEST_CONFIG = 4 * 2**20  # bytes
PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"


def built_in() -> list[str]:
    """Names of the checkpoints that ship with the package."""
    return sorted(p.parent.name for p in PRETRAINED.glob("*/config.json"))


def is_built_in(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether this names a checkpoint that ships with the package; a `Path` to something that exists does not."""
    if not isinstance(name_or_path, str) and exists(Path(name_or_path)):
        return False
    return os.fspath(name_or_path) in built_in()


#: What the name of a checkpoint may be, for messages.
CHECKPOINT_IS = "a path, the name of a built-in checkpoint such as demo-faces, or hf://org/name"


def find(name_or_path: str | os.PathLike[str]) -> Path:
    """Where a checkpoint is: an existing path, the name of a built-in checkpoint, or ``hf://org/name``.

    A name means the same in every folder: text that is the name of a built-in checkpoint is that checkpoint, also if
    something of that name lies in the working folder. A warning then says how to name the other one.

    Raises:
        CheckpointError: there is no such thing; the message lists the built-in names.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise CheckpointError(f"expected a path or a name of a checkpoint, got {name_or_path!r:.80}")
    name = os.fspath(name_or_path)
    if name.startswith("hf://"):
        return _from_hub(name.removeprefix("hf://"))
    if "://" in name:
        raise CheckpointError(f"{name} is an address: download the file and pass its path (hf://org/name works)")
    path = Path(name).expanduser()
    if is_built_in(name_or_path):
        if exists(path):
            warnings.warn(
                f"{name} is the built-in checkpoint; to use what lies in this folder under that name, write ./{name}",
                stacklevel=2,
            )
        return PRETRAINED / name
    if exists(path):
        return path
    raise CheckpointError(
        f"no file or directory {name!r}, nor a built-in checkpoint of that name ({', '.join(built_in())})"
    )


def _from_hub(repository: str) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError('hf:// needs huggingface_hub: pip install "dsgan_datasets[hub]"') from error
    wanted = ["config.json", "*.safetensors", "README.md"]
    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=wanted))
    except (OSError, ValueError) as error:  # its errors derive from these two
        raise CheckpointError(f"hf://{repository} cannot be downloaded: {error}") from error


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a checkpoint directory, in the current format whatever format it was written in.

    Raises:
        CheckpointError: it is missing, not JSON, or of a format that this version does not read.
    """
    path = directory / "config.json"
    if not is_file(path):
        raise CheckpointError(f"{directory} is not a checkpoint directory: it has no config.json")
    if (size := path.stat().st_size) > _LARGEST_CONFIG:
        raise CheckpointError(f"{path} has {size} bytes; a config has at most {_LARGEST_CONFIG}")
    try:
        config = parse_json(path.read_bytes())
    except ContentError as error:
        raise CheckpointError(f"{path} {error}, or copy the checkpoint again") from error
    try:
        check_content(config, size)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} must hold an object of settings, not {config!r:.60}")
    return migrate(config, str(path))


def section(config: Mapping[str, Any], name: str, directory: Path) -> dict[str, Any]:
    """A part of config.json that must be there."""
    found = config.get(name)
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{directory / 'config.json'} has no section {name!r}"
            if found is None
            else f"{directory / 'config.json'}: {name!r} must be an object of settings, not {found!r:.60}"
        )
    return dict(found)


def read_tensors(path: Path, sha256: object, *, recorded: bool = True) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU; the file may change afterwards.

    The digest is taken of the very tensors that are returned, so that it also finds a file that is replaced while it is
    read, and one that was left by another save into the same directory.

    Args:
        path: the file.
        sha256: digest of its tensors, as config.json records it.
        recorded: False for a config.json that records none.

    Raises:
        CheckpointError: missing, truncated or otherwise no safetensors file, or not the one that was recorded.
    """
    if not is_file(path):
        raise CheckpointError(f"{path} is missing")
    try:
        with safetensors.safe_open(path, "pt"):  # its header must fit its length, before all of it is read
            pass
        content = path.read_bytes()
        tensors = safetensors.torch.load(content)  # not load_file: its tensors are the pages of the file
    except MemoryError as error:
        raise CheckpointError(f"{path} ({path.stat().st_size} bytes) needs more memory than there is") from error
    except Exception as error:  # SafetensorError, and whatever else a type that torch does not know may raise
        raise CheckpointError(f"{path} ({path.stat().st_size} bytes) is damaged: {error}") from error
    if recorded and (found := digest_tensors(tensors)) != sha256:
        raise CheckpointError(
            f"{path} was changed or damaged, or belongs to another checkpoint: config.json says SHA-256 "
            f"{str(sha256)[:16]}…, the tensors give {found[:16]}…. Copy config.json and all safetensors files of one "
            "checkpoint again"
        )
    return tensors


def read_part(config: Mapping[str, Any], name: str, directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a network of a checkpoint, which belong together.

    Args:
        config: content of config.json, see `read_config`.
        name: file stem, such as "generator".
        directory: where config.json was.

    Raises:
        CheckpointError: there is no such part, or its file is not the one that config.json was written for.
    """
    parts = section(config, "parts", directory)
    if (expected := config.get("parts_sha256")) not in (None, found := fingerprint(parts)):
        raise CheckpointError(
            changed(str(directory / "config.json"), str(expected), found, what="SHA-256 of its parts")
        )
    part = section(parts, name, directory)
    sha256 = part.get("sha256")
    # Format 1 recorded no digest of a generator without labels.
    recorded = sha256 is not None or "migrated_from" not in config
    tensors = read_tensors(directory / f"{name}.safetensors", sha256, recorded=recorded)
    return section(part, "config", directory), tensors


def write(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    card: str,
    pictures: Mapping[str, bytes | None] | None = None,
) -> None:
    """Write a checkpoint directory: a new one appears whole or not at all.

    Where one is replaced, each file appears whole or not at all, config.json last: killed in between, it is found to be
    a mixture when it is read.

    Args:
        directory: is made if needed. Files of other names in it stay.
        config: content of config.json; the format version is added.
        tensors: file stem ("generator", "interpreter") -> its tensors.
        card: text of README.md.
        pictures: file name -> content, beside the card; None removes a picture of the checkpoint that is replaced.

    Raises:
        CheckpointError: the directory cannot be written.
    """
    try:
        if is_folder(directory) and any(directory.iterdir()):
            _write_files(directory, config, tensors, card, pictures or {})
        else:
            with written_whole(directory) as folder:
                _write_files(folder, config, tensors, card, pictures or {})
    except OSError as error:
        raise CheckpointError(f"cannot write the checkpoint to {directory}: {error}") from error


def _write_files(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    card: str,
    pictures: Mapping[str, bytes | None],
) -> None:
    for stem, named in tensors.items():
        contents = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in named.items()})
        _write(directory / f"{stem}.safetensors", contents)
    for name, content in pictures.items():
        if content is None:
            (directory / name).unlink(missing_ok=True)
        else:
            _write(directory / name, content)
    # Half a character, as names in another encoding hold, is written as its escape: in JSON that is the character.
    _write(directory / "README.md", card.encode(errors="backslashreplace"))
    # For parts that are loaded alone; the fingerprint, where there is one, needs the whole checkpoint.
    parts = json.loads(json.dumps(config["parts"]))  # as it will be read: keys are text
    signed = {"format_version": FORMAT_VERSION, "parts_sha256": fingerprint(parts), **config}
    text = json.dumps(signed, indent=1, ensure_ascii=False) + "\n"
    _write(directory / "config.json", text.encode(errors="backslashreplace"))


def _write(path: Path, contents: bytes) -> None:
    with atomic_write(path) as file:
        file.write(contents)
